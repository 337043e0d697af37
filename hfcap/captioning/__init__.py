"""Caption a person's own images, from the command line (captions in a file or table) and from Python (objects)."""

from hfcap.captioning.alt_text import AltText
from hfcap.captioning.captioner import ImageCaptioner, load_captioner
from hfcap.captioning.forbidden import forbidden_words
from hfcap.captioning.gate import QualityGate
from hfcap.captioning.images import Finishing, caption_images
from hfcap.captioning.inputs import DatasetChoice, find_images, images_of, one_image
from hfcap.captioning.options import decoding_options, with_enough_beams
from hfcap.captioning.with_images.embedded_output import EmbeddedOutput
from hfcap.captioning.with_images.sidecar_output import SidecarOutput
from hfcap.captioning.wording import Wording

__all__ = [
    "AltText",
    "DatasetChoice",
    "EmbeddedOutput",
    "Finishing",
    "ImageCaptioner",
    "QualityGate",
    "SidecarOutput",
    "Wording",
    "caption_images",
    "decoding_options",
    "find_images",
    "forbidden_words",
    "images_of",
    "load_captioner",
    "one_image",
    "with_enough_beams",
]
