"""Tables of captions in the forms in which people and datasets keep them: one way from rows to images with captions."""
