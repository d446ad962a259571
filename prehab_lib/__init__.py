"""Low-Rank Prehab, its rivals and its controls: a small library the notebooks import.

Nothing happens at import; every room is imported by name (``from prehab_lib import surgery``).
"""

__version__ = "0.1.0"
