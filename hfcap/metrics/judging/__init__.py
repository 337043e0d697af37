"""Models that judge captions: they see the image, and are asked to grade a caption or to choose between two."""
