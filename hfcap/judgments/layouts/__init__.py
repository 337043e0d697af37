"""Readers of human judgments, one file per layout in which they are published."""
