"""From captions and pictures on disk to packed batches."""
