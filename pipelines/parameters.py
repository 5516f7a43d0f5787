"""A profile's sections as pipeline parameters, one STRUCT a step."""

from collections.abc import Iterable
from typing import Any

from components.core.config import Config, Profile


def sections(profile: Profile, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """These sections, by name."""
    return {name: struct(getattr(profile, name)) for name in names}


def struct(section: Config) -> dict[str, Any]:
    """A section without nulls, which the KFP SDK takes nowhere in a STRUCT.

    A null that is the default is left out; any other becomes the text "null", which the config reads as one.
    """
    struct = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if value is not None:
            struct[name] = _plain(value)
        elif field.default is not None:
            struct[name] = "null"
    return struct


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return struct(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
