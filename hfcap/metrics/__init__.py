"""Caption metrics: one file each, found by file name."""
