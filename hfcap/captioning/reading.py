"""Reading images ahead of the captioner: fetched, decoded and resized by threads, given out in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from hfcap.data.images import UnreadableImageError, decode_image
from hfcap.data.loading import PixelInputs
from hfcap.schema import CaptionedImage, Images, SizedImages
from hfcap.text import printable

THREADS = 4
"""Pillow decodes and resizes without Python's lock; a server is asked for no more images than this at a time."""

_ENTRIES_PER_PLACE = 8
"""A batch ends after so many times its size at the latest, so that a stretch of unreadable images is kept, too."""

_MOST_BYTES = 512 * 1024**2
"""Pixels of one image cut into tiles can be 50 MB."""

ReadImage = tuple[CaptionedImage, "Images | str"]
"""An image's record, and its pixels as `PixelInputs` gives them, or what is wrong with it."""


def read_images(records: Iterable[CaptionedImage], pixels: PixelInputs, ahead: int) -> Generator[ReadImage, None, None]:
    """Yield every record with its pixels, or with the reason why it has none; up to `ahead` are read in advance."""

    def read(record: CaptionedImage) -> Images | str:
        try:
            image = decode_image(record.image)
        except UnreadableImageError as error:
            return printable(str(error))
        try:
            return pixels.processed(image)
        except ValueError as error:
            # Image processors refuse shapes, such as Qwen's strips longer than 200 times their width.
            return printable(f"{record.image.describe()}: not for this captioner ({error})")

    pool = ThreadPoolExecutor(THREADS)
    waiting: deque[tuple[CaptionedImage, Future[Images | str]]] = deque()
    try:
        for record in records:
            waiting.append((record, pool.submit(read, record)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def batched(images: Iterable[ReadImage], batch_size: int, batches: int = 1) -> Iterator[list[ReadImage]]:
    """Yield lists of images, `batches` times `batch_size` readable ones in each, unreadable ones between.

    A list has fewer batches where the pixels of images that keep their shape reach half a gigabyte. The last one has
    fewer images, and so has one that reaches eight times as many entries.
    """
    together: list[ReadImage] = []
    readable = n_bytes = 0
    for image in images:
        together.append(image)
        if not isinstance(image[1], str):
            readable += 1
            n_bytes += _bytes_of(image[1])
        most = readable == batches * batch_size or len(together) == _ENTRIES_PER_PLACE * batches * batch_size
        if most or (n_bytes >= _MOST_BYTES and readable % batch_size == 0):
            yield together
            together, readable, n_bytes = [], 0, 0
    if together:
        yield together


def _bytes_of(content: Images) -> int:
    return sum(value.nbytes for value in content.values) if isinstance(content, SizedImages) else 0
