"""Reading and correcting captions: a page on this machine over a folder of images and their sidecars."""

from hfcap.review.folder import ReviewFolder
from hfcap.review.page import ReviewPage

__all__ = ["ReviewFolder", "ReviewPage"]
