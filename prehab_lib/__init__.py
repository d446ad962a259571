"""Low-Rank Prehab, its rivals and its controls: a small library the notebooks import.

Every room is imported by name (``from prehab_lib import surgery``).  Importing the package loads
nothing heavy; it only makes transformers, now or whenever it is imported, know the compressed
models that `surgery.save` writes.
"""

from prehab_lib.save import announce

__version__ = "0.1.0"

announce.to_transformers()
