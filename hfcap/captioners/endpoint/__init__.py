"""Captioners that somebody else runs: images on their way to a server, and captions in its answers."""
