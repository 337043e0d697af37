"""Generated scenes of shapes with captions, the data of the quick start."""
