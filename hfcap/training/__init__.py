"""One training loop for every captioner."""
