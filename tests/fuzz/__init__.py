"""Damaged and hostile input for every reader of files: `python -m tests.fuzz --help`."""
