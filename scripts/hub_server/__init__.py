"""A small Hub for one machine or one room: enough of the Hub's HTTP interface for the real huggingface_hub client."""
