"""The demo: captions of one picture by several models side by side, on this machine or as a Space."""
