"""Caption a person's own pictures: files, folders, patterns, web addresses or a dataset -> table, JSON lines or CSV."""

from hfcap.captioning.inputs import DatasetChoice, find_pictures, one_picture, pictures_of
from hfcap.captioning.pictures import caption_pictures, decoding_options

__all__ = [
    "DatasetChoice",
    "caption_pictures",
    "decoding_options",
    "find_pictures",
    "one_picture",
    "pictures_of",
]
