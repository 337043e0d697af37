"""Checks of a dataset before anything expensive starts: ids, captions, and whether every image can be decoded."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL

from hfcap.data.images import CheckableImage, UnreadableImageError, decode_image, is_checkable
from hfcap.data.kept.known import known_facts
from hfcap.data.kept.table import RecordTable
from hfcap.errors import UserError
from hfcap.progress import error_console, progress_bar
from hfcap.schema import CaptionedImage
from hfcap.sqlite_cache import SqliteCache

_LISTED = 10
_COMPARED = 256
_BATCH = 512
_LOOKED_UP = 16_384
"""Images whose keys are looked up together: those of millions would fill the memory."""
_DRAFT_SIZE = 32
_RULES = f"1, Pillow {PIL.__version__}"
"""Part of each remembered key: other rules or another decoder mean that images are checked again."""


def clean_caption(caption: str) -> str:
    """Trim a caption and make each run of white space, line ends included, one space."""
    return " ".join(caption.split())


def listed(items: Sequence[str]) -> str:
    """Join the first ten items for an error message and say how many more there are."""
    more = f", and {len(items) - _LISTED:,} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


def check_records(records: Sequence[CaptionedImage], where: str) -> None:
    """Check that ids are unique and that every image has captions, none of them empty.

    Ids are looked at as scoring does, without white space around them (`metrics.caption_files.normalised_image_id`).

    Args:
        where: names the dataset and split in the error.

    Raises:
        UserError: lists every kind of problem at once, up to ten ids each.
    """
    counts = Counter(record.image_id.strip() for record in records)
    problems = {
        "image ids that occur more than once": [repr(name) for name, count in counts.items() if name and count > 1],
        "images without an id": [repr(record.file_name) for record in records if not record.image_id.strip()],
        "image ids that are not valid text": [
            repr(record.image_id) for record in records if record.image_id.strip() and not _is_text(record.image_id)
        ],
        "images without captions": [repr(record.image_id) for record in records if not record.captions],
        "images with a caption that is empty or not valid text": [
            repr(record.image_id) for record in records if not all(map(_is_text, record.captions))
        ],
    }
    found = [f"{len(ids):,} {kind}: {listed(ids)}" for kind, ids in problems.items() if ids]
    if found:
        raise UserError(f"{where}: " + "; ".join(found) + ". Correct the captions file")


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    # JSON's escapes can spell halves of characters, which no file could be written with.
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_images_decode(
    records: Sequence[CaptionedImage], max_unreadable_images: int, where: str
) -> Sequence[CaptionedImage]:
    """Decode every image once and return the records whose images are readable.

    What was found readable is remembered in `checked_images.sqlite` of the cache folder, of kept records next to these,
    so that a second run only looks at sizes and times of the files. Rendered images (no `check_key`) are not checked.

    Raises:
        UserError: more than `max_unreadable_images` images are unreadable; up to ten are named with the reason.
    """
    facts = known_facts(records, f"readable {_RULES}", 0)
    unknown: Sequence[int] = range(len(records))
    known = None
    if facts is not None:
        known = facts.read()[0]
        unknown = np.flatnonzero(~known).tolist()
    problems = _problems(records, unknown) if unknown else {}
    if facts is not None and known is not None and unknown:
        known[:] = True
        known[list(problems)] = False
        facts.write(known, np.zeros((len(records), 0), dtype=np.uint8))
    return _without(records, problems, max_unreadable_images, where) if problems else records


def _problems(records: Sequence[CaptionedImage], numbers: Sequence[int]) -> dict[int, str]:
    """Return what is wrong with images, by their numbers, of those that are looked at."""
    problems: dict[int, str] = {}
    with SqliteCache("checked_images", "images are checked each time") as memory, progress_bar() as progress:
        task = progress.add_task("checking images", total=len(numbers))
        for start in range(0, len(numbers), _LOOKED_UP):
            unknown: list[tuple[int, CheckableImage, bytes]] = []
            for index in numbers[start : start + _LOOKED_UP]:
                image = records[index].image
                if is_checkable(image):
                    try:
                        digest = hashlib.sha256(f"{_RULES}\0{image.check_key()}".encode()).digest()[:16]
                    except UnreadableImageError as error:
                        problems[index] = str(error)
                    else:
                        unknown.append((index, image, digest))
            known = memory.known(digest for _, _, digest in unknown)
            new = [entry for entry in unknown if entry[2] not in known]
            looked_at = min(_LOOKED_UP, len(numbers) - start)
            progress.advance(task, looked_at - len(new))
            _decode_all(new, memory, problems, lambda count: progress.advance(task, count))
    return problems


def _without(
    records: Sequence[CaptionedImage], problems: dict[int, str], max_unreadable_images: int, where: str
) -> Sequence[CaptionedImage]:
    """Return the records that have no problem, and warn of the others."""
    reasons = [problems[index] for index in sorted(problems)]
    message = f"{where}: {len(problems):,} of {len(records):,} images are unreadable: " + "; ".join(reasons[:_LISTED])
    if len(reasons) > _LISTED:
        message += f"; and {len(reasons) - _LISTED:,} more"
    if len(problems) > max_unreadable_images:
        raise UserError(
            f"{message}. Replace or remove them, or let that many be skipped with data.max_unreadable_images "
            f"(now {max_unreadable_images})"
        )
    error_console.print(f"warning: {message}. Skipped, as data.max_unreadable_images allows", markup=False)
    if len(problems) == len(records):
        raise UserError(f"{message}. No readable image is left: give others")
    if isinstance(records, RecordTable):
        return records.chosen(index for index in range(len(records)) if index not in problems)
    return [record for index, record in enumerate(records) if index not in problems]


def warn_of_repeated_images(records: Sequence[CaptionedImage], where: str) -> None:
    """Warn of one row per caption: images that follow each other with the same bytes and one caption each.

    Only the first images are read for it; a table that repeats its images does so from the beginning.
    """
    first = [record for record in records[:_COMPARED] if is_checkable(record.image)]
    if len(first) < 2 or any(len(record.captions) > 1 for record in first):
        return
    different = len({hashlib.sha256(record.image.read()).digest() for record in first})
    if 2 * different <= len(first):
        error_console.print(
            f"warning: {where}: the first {len(first)} rows hold {different} different images, one caption each: "
            "each row counts as an image of its own, and one image can be in several splits. Join them: by "
            "data.group_by: content, by data.image_id_column, or by the same file_name in each row",
            markup=False,
            soft_wrap=True,
        )


def _decode_all(
    entries: Sequence[tuple[int, CheckableImage, bytes]],
    memory: SqliteCache,
    problems: dict[int, str],
    looked_at: Callable[[int], None],
) -> None:
    def problem(image: CheckableImage) -> str | None:
        try:
            decode_image(image, draft_size=_DRAFT_SIZE)
        except UnreadableImageError as error:
            return str(error)
        return None

    # Pillow's decoders release the interpreter lock, so threads are enough. Batches, so that a stopped check keeps
    # what it has found so far.
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as executor:
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            readable = []
            for (index, _, digest), found in zip(batch, executor.map(problem, (e[1] for e in batch)), strict=True):
                if found is None:
                    readable.append((digest, b""))
                else:
                    problems[index] = found
            memory.remember(readable)
            looked_at(len(batch))
