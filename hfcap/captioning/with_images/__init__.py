"""Captions that stay with their images: in sidecars next to them, or inside the files."""
