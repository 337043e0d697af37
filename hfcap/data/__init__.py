"""From captions and images on disk to packed batches."""
