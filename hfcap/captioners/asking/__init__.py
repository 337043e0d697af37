"""What captioners are asked, and what of their answers is a caption."""
