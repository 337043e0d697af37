"""Caption a person's own images, from the command line (captions in a file or table) and from Python (objects)."""

from hfcap.captioning.captioner import ImageCaptioner, load_captioner
from hfcap.captioning.images import caption_images
from hfcap.captioning.inputs import DatasetChoice, find_images, images_of, one_image
from hfcap.captioning.options import decoding_options, with_enough_beams

__all__ = [
    "DatasetChoice",
    "ImageCaptioner",
    "caption_images",
    "decoding_options",
    "find_images",
    "images_of",
    "load_captioner",
    "one_image",
    "with_enough_beams",
]
