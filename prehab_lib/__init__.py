"""Low-Rank Prehab, its rivals and its controls: a small library, imported room by room."""

__version__ = "0.1.0"
