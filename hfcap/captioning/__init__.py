"""Caption a person's own pictures, from the command line (captions in a file or table) and from Python (objects)."""

from hfcap.captioning.captioner import ImageCaptioner, load_captioner
from hfcap.captioning.images import caption_pictures
from hfcap.captioning.inputs import DatasetChoice, find_pictures, one_picture, pictures_of
from hfcap.captioning.options import decoding_options, with_enough_beams

__all__ = [
    "DatasetChoice",
    "ImageCaptioner",
    "caption_pictures",
    "decoding_options",
    "find_pictures",
    "load_captioner",
    "one_picture",
    "pictures_of",
    "with_enough_beams",
]
