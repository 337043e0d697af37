"""Which images and captions a batch has, for any number of images in arrays."""
