"""Low-Rank Prehab, its rivals and its controls: a small library the notebooks import.

Every room is imported by name (``from prehab_lib import surgery``).  Importing the package loads
nothing heavy.
"""

__version__ = "0.1.0"
