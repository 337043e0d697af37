"""LoRA adapters, merging them, and quantised weights."""
