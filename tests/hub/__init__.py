"""A loopback Hub: enough of the Hub's HTTP interface for the real huggingface_hub client (see server.py)."""
