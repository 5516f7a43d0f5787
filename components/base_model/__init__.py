"""The base model: brought from a hub or a store, or made small from the run's own text."""
