"""The demo: captions of one image by several models side by side, on this machine or as a Space."""
