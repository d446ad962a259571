"""One file an idea beyond the paper, for the notebooks 09."""
