"""Ideas of notebook 09, one file each: what the paper leaves to future work, and its neighbours."""
