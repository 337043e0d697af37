"""Records of a split in a memory-mapped file of the cache folder, and what was found out about their images."""
