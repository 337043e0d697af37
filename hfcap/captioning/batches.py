"""From records of images to captions, batch by batch: what `hfcap caption` and the Python interface share."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing

from hfcap.caption_batch import generate_captions
from hfcap.captioners.base import Captioner, GeneratedCaption
from hfcap.captioning.reading import batched, read_images
from hfcap.data.loading import PixelInputs, stacked
from hfcap.decoding import DecodingJob
from hfcap.schema import CaptionedImage

CaptionedRecord = tuple[CaptionedImage, list[GeneratedCaption] | str]
"""An image's record, and its captions, best first, or what is wrong with it."""


def caption_records(
    captioner: Captioner, job: DecodingJob, records: Iterable[CaptionedImage], place: int = 0
) -> Generator[list[CaptionedRecord], None, None]:
    """Yield the captions of batch after batch; images that cannot be read stand between the others with the reason.

    Args:
        job: options, prompt, batch size and pixels; its own records are not used.
        records: images, read ahead when their turn comes near.
        place: how many images of the whole captioning were captioned before.
    """
    pixels = job.inputs
    assert isinstance(pixels, PixelInputs)
    captioner.model.eval()
    with closing(read_images(records, pixels, ahead=2 * job.batch_size)) as read:
        for batch in batched(read, job.batch_size):
            images = [content for _, content in batch if not isinstance(content, str)]
            found: list[list[GeneratedCaption]] = []
            if images:
                found = generate_captions(
                    captioner, stacked(images), job.options, job.prompt, plan=pixels.plan, place=place
                )
                place += len(images)
            remaining = iter(found)
            yield [(record, content if isinstance(content, str) else next(remaining)) for record, content in batch]
