"""From records of images to captions, batch by batch: what `hfcap caption` and the Python interface share."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing

from hfcap.caption_batch import generate_captions
from hfcap.captioners.asking.asked import has_fields, prompt_of, prompts_of
from hfcap.captioners.base import Captioner, GeneratedCaption
from hfcap.captioning.reading import batched, read_images
from hfcap.data.loading import PixelInputs, stacked
from hfcap.decoding import DecodingJob
from hfcap.errors import UserError
from hfcap.schema import CaptionedImage, Images

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
    differ = has_fields(captioner, job.prompt)
    with closing(read_images(records, pixels, ahead=2 * job.batch_size)) as read:
        for batch in batched(read, job.batch_size):
            if differ:
                batch = [_with_prompt(captioner, job.prompt, *one) for one in batch]
            images = [content for _, content in batch if not isinstance(content, str)]
            found: list[list[GeneratedCaption]] = []
            if images:
                told = [record for record, content in batch if not isinstance(content, str)]
                asked = prompts_of(captioner, job.prompt, told)
                found = generate_captions(captioner, stacked(images), job.options, asked, plan=pixels.plan, place=place)
                place += len(images)
            remaining = iter(found)
            yield [(record, content if isinstance(content, str) else next(remaining)) for record, content in batch]


def _with_prompt(
    captioner: Captioner, template: str | None, record: CaptionedImage, content: Images | str
) -> tuple[CaptionedImage, Images | str]:
    """Return an image and its pixels; in place of them what is wrong with it, or why nothing can be asked of it."""
    try:
        prompt_of(captioner, template, record)
    except UserError as error:
        return record, content if isinstance(content, str) else str(error)
    return record, content
