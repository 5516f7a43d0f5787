"""One folder a pipeline step; `core` is what every step stands on."""

__version__ = "0.1.0"
