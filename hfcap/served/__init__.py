"""Models that somebody else runs: the client of an OpenAI-compatible server."""
