"""From records of images to captions, batch by batch: what `hfcap caption` and the Python interface share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing

from hfcap.caption_batch import generate_captions
from hfcap.captioners.asking.asked import has_fields, prompt_of, prompts_of
from hfcap.captioners.base import Captioner, GeneratedCaption
from hfcap.captioning.reading import ReadImage, batched, read_images
from hfcap.data.loading import PixelInputs, stacked
from hfcap.decoding import DecodingJob
from hfcap.errors import UserError
from hfcap.schema import CaptionedImage, Images, SizedImages

CaptionedRecord = tuple[CaptionedImage, list[GeneratedCaption] | str]
"""An image's record, and its captions, best first, or what is wrong with it."""

_TOGETHER = 4
"""Batches of images that keep their shape, sorted together: what has one shape is computed at once."""


def caption_records(
    captioner: Captioner,
    job: DecodingJob,
    records: Iterable[CaptionedImage],
    place: int = 0,
    advance: Callable[[int], object] | None = None,
) -> Generator[list[CaptionedRecord], None, None]:
    """Yield images with their captions, list after list; those that cannot be read stand between with the reason.

    A list is what is captioned independently of all others: one batch, or several where images keep their shape, so
    that those of one shape make whole batches.

    Args:
        job: options, prompt, batch size and pixels; its own records are not used.
        records: images, read ahead when their turn comes near.
        place: how many images of the whole captioning were captioned before.
        advance: called after each batch with the number of images that are done with it.
    """
    pixels = job.inputs
    assert isinstance(pixels, PixelInputs)
    captioner.model.eval()
    differ = has_fields(captioner, job.prompt)
    keeps_shape = getattr(pixels.image_processor, "keeps_shape", False)  # transformers' own processors do not say
    together = _TOGETHER if keeps_shape and not differ else 1
    with closing(read_images(records, pixels, ahead=2 * job.batch_size)) as read:
        for window in batched(read, job.batch_size, together):
            if differ:
                window = [_with_prompt(captioner, job.prompt, *one) for one in window]
            found: list[list[GeneratedCaption] | str] = [
                content if isinstance(content, str) else [] for _, content in window
            ]
            unreadable = sum(isinstance(content, str) for _, content in window)
            for numbers in _batches(window, job.batch_size):
                images = [content for number in numbers if not isinstance(content := window[number][1], str)]
                asked = prompts_of(captioner, job.prompt, [window[number][0] for number in numbers])
                captions = generate_captions(
                    captioner, stacked(images), job.options, asked, plan=pixels.plan, place=place
                )
                place += len(numbers)
                for number, of_image in zip(numbers, captions, strict=True):
                    found[number] = of_image
                if advance is not None:
                    advance(len(numbers))
            if advance is not None and unreadable:
                advance(unreadable)
            yield [(record, of_image) for (record, _), of_image in zip(window, found, strict=True)]


def _batches(window: Sequence[ReadImage], batch_size: int) -> list[list[int]]:
    """Return the numbers of the readable images of a window, batch by batch: those of one shape together."""
    readable = [number for number, (_, content) in enumerate(window) if not isinstance(content, str)]
    readable.sort(key=lambda number: _size(window[number][1]))
    return [readable[first : first + batch_size] for first in range(0, len(readable), batch_size)]


def _size(content: Images | str) -> tuple[int, int, int]:
    """Return numbers that put images that keep their shape by area, and those of one shape together."""
    if not isinstance(content, SizedImages):
        return 0, 0, 0
    width, height = content.sizes[0]
    return width * height, width, height


def _with_prompt(
    captioner: Captioner, template: str | None, record: CaptionedImage, content: Images | str
) -> tuple[CaptionedImage, Images | str]:
    """Return an image and its pixels; in place of them what is wrong with it, or why nothing can be asked of it."""
    try:
        prompt_of(captioner, template, record)
    except UserError as error:
        return record, content if isinstance(content, str) else str(error)
    return record, content
