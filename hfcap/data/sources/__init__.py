"""Data sources: one file each, found by file name."""
