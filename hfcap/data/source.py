"""What a data source is, and the one way in which everything else gets its images and captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hfcap import registry
from hfcap.data.checks import check_images_decode, check_records, warn_of_repeated_images
from hfcap.data.kept import keeping
from hfcap.data.kept.table import RecordTable
from hfcap.errors import UserError
from hfcap.progress import noted
from hfcap.recipe.blocks import DataOptions
from hfcap.schema import CaptionedImage

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Source:
    """An entry of `hfcap/data/sources`; each file there ends with `REGISTERED = Source(...)`.

    Attributes:
        options: keys of the recipe's `data` block.
        load: (options, the source's own name of a split) -> its records, in an order that never changes. Raises
            NoSuchSplitError for a split that doesn't exist or is empty.
        description: one line for `hfcap list sources`.
        about: what a model card should say of these images and captions (origin, known biases), as Markdown; empty
            where only the user knows.
        revision: (options, the source's own name of a split) -> the commit whose images and captions `load` gives;
            None where there is none or it cannot be found out.
        origin: (options, the source's own name of a split) -> what its records follow from, so that they can be kept
            until that changes; None where they are to be read each time. Raises nothing: `load` says what is wrong.
    """

    options: type[DataOptions]
    load: Callable[[Any, str], list[CaptionedImage]]
    description: str
    about: str = ""
    revision: Callable[[Any, str], str | None] = lambda *_: None
    origin: Callable[[Any, str], keeping.Origin | None] = lambda *_: None


class NoSuchSplitError(UserError):
    """The source has no images under this split name."""

    def __init__(self, where: str, split_name: str, existing: Iterable[str], remedy: str = "") -> None:
        self.existing = tuple(existing)
        names = ", ".join(map(repr, self.existing)) or "none"
        advice = f"; {remedy}" if remedy else ""
        super().__init__(f"{where}: no images in split {split_name!r} (splits that exist: {names}){advice}")


def dataset_revision(options: DataOptions, split: str) -> str | None:
    """Return the commit that a loaded split comes from, None where it has none or it cannot be found out."""
    source: Source = registry.load("sources", options.source).REGISTERED
    return source.revision(options, getattr(options, f"{split}_split"))


def load_split(options: DataOptions, split: Split, check_images: bool = True) -> Sequence[CaptionedImage]:
    """Load one split of the recipe's dataset, checked.

    Many records are kept in the cache folder, and mapped into memory from then on (`RecordTable`).

    Args:
        check_images: also decode every image (remembered, so that the next run doesn't); without it only ids and
            captions are checked.

    Raises:
        UserError: the split is empty, ids or captions are wrong, or more images are unreadable than
            `data.max_unreadable_images`.
    """
    source: Source = registry.load("sources", options.source).REGISTERED
    split_name: str = getattr(options, f"{split}_split")
    where = f"source {options.source!r}, split {split_name!r}"
    records = _kept_or_loaded(source, options, split, split_name, where)
    limit: int | None = getattr(options, f"max_{split}_images")
    records = records[:limit]
    if check_images:
        records = check_images_decode(records, options.max_unreadable_images, where)
        warn_of_repeated_images(records, where)
    if split == "train" or (isinstance(records, RecordTable) and not records.n_asked):
        return records
    return [_first_question(record) for record in records]


def _kept_or_loaded(
    source: Source, options: DataOptions, split: Split, split_name: str, where: str
) -> Sequence[CaptionedImage]:
    """Return all records of a split, ids and captions checked."""
    origin, slot = _origin(source, options, split_name), keeping.Slot(options, split_name)
    if origin is not None and (kept := slot.kept(origin)) is not None:
        return kept
    with noted() as said:
        try:
            records = source.load(options, split_name)
        except NoSuchSplitError as error:
            raise UserError(f"{error}; choose one with the recipe's key data.{split}_split") from None
    if not records:
        raise UserError(f"source {options.source!r}: no images in split {split_name!r}; change data.{split}_split")
    check_records(records, where)
    if origin is None or len(records) < keeping.FEWEST:
        return records
    now = _origin(source, options, split_name)
    if now is None or now.facts != origin.facts:
        return records  # something changed while it was read
    return slot.keep(records, origin, said) or records


def _origin(source: Source, options: DataOptions, split_name: str) -> keeping.Origin | None:
    """Return what records are kept by; None where they follow from the images' bytes, which nobody looks at again."""
    return None if getattr(options, "group_by", None) == "content" else source.origin(options, split_name)


def _first_question(record: CaptionedImage) -> CaptionedImage:
    """Return a scored image with the captions that answer its first prompt: one caption is generated of it."""
    answers = [text for text, asked in zip(record.captions, record.asked, strict=False) if asked == record.asked[0]]
    return replace(record, captions=tuple(answers), asked=(record.asked[0],) * len(answers)) if answers else record
