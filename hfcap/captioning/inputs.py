"""What a person names to be captioned: files, folders, patterns, web addresses, lists of these, or one dataset."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from hfcap.data.image_files import folder_images
from hfcap.data.images import (
    IMAGE_SUFFIXES,
    BytesImage,
    FileImage,
    UnreadableImageError,
    decode_image,
)
from hfcap.data.sources import folder as folder_source
from hfcap.data.sources.coco_json import list_images
from hfcap.data.sources.hub import TABLE_SUFFIXES, is_saved_dataset
from hfcap.data.web.image_stream import ImageStream, dataset_images, listed_images
from hfcap.data.web.web_images import web_image
from hfcap.errors import UserError
from hfcap.files import read_text
from hfcap.progress import error_console
from hfcap.schema import CaptionedImage
from hfcap.text import printable

_ON_HUB = "hf://datasets/"
_LISTED = 10
_LIST_SUFFIX = ".txt"
Kind = Literal["web", "coco", "dataset", "folder", "list", "images"]


@dataclass(frozen=True, slots=True)
class MissingImage:
    """In the place of an image that cannot be had, and why."""

    problem: str

    def read(self) -> bytes:
        """Say what is wrong.

        Raises:
            UnreadableImageError: always.
        """
        raise UnreadableImageError(self.problem)

    def describe(self) -> str:
        """Return what is wrong."""
        return self.problem


@dataclass(frozen=True)
class DatasetChoice:
    """Which images of a dataset are captioned; the names are those of the command's options.

    Attributes:
        split: in the dataset's own spelling; None = all.
        config_name: configuration of a dataset of the Hub.
        image_column: column of images, where there are several.
        images: image folder of a COCO file; None = `images` next to it.
    """

    split: str | None = None
    config_name: str | None = None
    image_column: str | None = None
    images: str | None = None

    def require_only(self, where: str, *allowed: str) -> None:
        """Refuse what would be ignored.

        Raises:
            UserError: an option is given that says nothing about `where`.
        """
        for field in fields(self):
            if getattr(self, field.name) is not None and field.name not in allowed:
                raise UserError(f"{where}: --{field.name.replace('_', '-')} does not apply to it; leave it out")


def images_of(inputs: Sequence[str], choice: DatasetChoice | None = None) -> ImageStream:
    """Return the images of files, folders, patterns and web addresses without repetition, or those of one dataset.

    Raises:
        UserError: an input matches nothing, a dataset is not given alone, or an option of `choice` is not for it.
        WorkError: the Hub cannot be reached.
    """
    choice = choice or DatasetChoice()
    kinds = {text: _kind(text, choice.split) for text in inputs}
    sets = [text for text, kind in kinds.items() if kind in ("coco", "dataset", "folder")]
    if sets and len(kinds) > 1:
        raise UserError(f"{sets[0]}: a dataset is captioned alone; give the other inputs to another command")
    if sets:
        return _dataset(sets[0], kinds[sets[0]], choice)
    choice.require_only(inputs[0])
    records: dict[str, CaptionedImage] = {}
    for text, kind in kinds.items():
        for record in _named_by(text, kind):
            records.setdefault(_key(record), record)
    return listed_images(list(records.values()))


def _named_by(text: str, kind: Kind) -> list[CaptionedImage]:
    if kind == "web":
        return [CaptionedImage(text, text, (), web_image(text))]
    return _listed(Path(text).expanduser()) if kind == "list" else find_images([text])


def is_list(text: str) -> bool:
    """Whether an input is a text file that lists images."""
    return _kind(text, None) == "list"


def _listed(path: Path) -> list[CaptionedImage]:
    """Return the images that a text file names, one a line: web addresses, and files relative to its folder.

    Raises:
        UserError: it is no text, or names none.
    """
    lines = [line.strip() for line in read_text(path, "list of images").split("\n")]
    records = [image_of_line(line, path, number) for number, line in enumerate(lines, start=1) if line]
    if not records:
        raise UserError(f"{path}: names no image; write a file or a web address on each line")
    first = records[:_LISTED]
    if all(isinstance(record.image, FileImage) and not record.image.path.exists() for record in first):
        # Some other text, most likely; a few files that are missing are named when they are captioned.
        raise UserError(
            f"{path}: its first line names {first[0].file_name}, and there is no such file; write a file or a web "
            "address on each line"
        )
    return records


def image_of_line(line: str, path: Path, number: int) -> CaptionedImage:
    """Return the image that a line of a list names: a web address, or a file relative to the list's folder."""
    if "://" not in line:
        name = str(path.parent / line)
        return CaptionedImage(name, name, (), FileImage(path.parent / line))
    try:
        return CaptionedImage(line, line, (), web_image(line))
    except UserError as error:  # of a million addresses some are none
        where = f"{path}: line {number}"
        return CaptionedImage(where, where, (), MissingImage(f"{where}: {error}"))


def _key(record: CaptionedImage) -> str:
    # Two names that are not UTF-8 may look the same.
    return os.fsdecode(record.image.path) if isinstance(record.image, FileImage) else record.image_id


def _kind(text: str, split: str | None) -> Kind:
    path = Path(text).expanduser()
    if text.startswith(_ON_HUB):
        return "dataset"
    if "://" in text:
        return "web"
    if path.is_dir():
        if is_saved_dataset(path):
            return "dataset"
        # A folder of images is the images; only without any its tables are looked into.
        if _first(path, IMAGE_SUFFIXES) is None and _first(path, TABLE_SUFFIXES) is not None:
            return "dataset"
        return "images" if split is None else "folder"
    if path.is_file():
        suffix = path.suffix.lower()
        kinds: dict[str, Kind] = {".json": "coco", _LIST_SUFFIX: "list", **dict.fromkeys(TABLE_SUFFIXES, "dataset")}
        return kinds.get(suffix, "images")
    return "dataset" if _may_be_on_hub(text, path) else "images"


def _first(folder: Path, suffixes: Iterable[str]) -> Path | None:
    return next((path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file()), None)


def _may_be_on_hub(text: str, path: Path) -> bool:
    """Whether a name of nothing here is that of a dataset; inside a folder that is there it is a mistyped path."""
    looks_so = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) is not None
    is_file = path.suffix.lower() in {*IMAGE_SUFFIXES, *TABLE_SUFFIXES, ".json", _LIST_SUFFIX}
    return looks_so and not is_file and not path.parent.exists()


def _dataset(text: str, kind: Kind, choice: DatasetChoice) -> ImageStream:
    if kind == "coco":
        choice.require_only(text, "split", "images")
        return listed_images(list_images(Path(text).expanduser(), choice.images, choice.split))
    if kind == "folder":
        choice.require_only(text, "split")
        options = folder_source.FolderOptions(root=str(Path(text).expanduser()), uncaptioned_images="ignore")
        return listed_images([replace(one, captions=()) for one in folder_source.load(options, choice.split or "")])
    choice.require_only(text, "split", "config_name", "image_column")
    return dataset_images(
        text.removeprefix(_ON_HUB),
        split=choice.split,
        config_name=choice.config_name,
        image_column=choice.image_column,
    )


def find_images(inputs: Sequence[str]) -> list[CaptionedImage]:
    """Collect the images of files, folders (with their subfolders) and glob patterns, without repetition.

    Raises:
        UserError: an input matches nothing.
    """
    paths: dict[Path, str] = {}
    for text in inputs:
        if "://" in text:
            raise UserError(f"{text}: is a web address; save the images and give files, folders or patterns")
        found = list(_expand(text))
        if not found:
            endings = " ".join(sorted(IMAGE_SUFFIXES))
            folder = Path(text).expanduser()
            left_out = folder_images(folder).left_out() if folder.is_dir() else ""
            raise UserError(
                f"{text}: no image there{f' ({left_out})' if left_out else ''}; give image files, folders with "
                f"{endings} files, or a pattern"
            )
        # Names that are not UTF-8 could be neither printed nor written.
        paths |= {path: os.fsencode(path).decode("utf-8", "replace") for path in found}
    return [CaptionedImage(name, name, (), FileImage(path)) for path, name in paths.items()]


def _expand(text: str) -> Iterable[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        images = folder_images(path)
        if (left_out := images.left_out()) and images.found:
            error_console.print(
                f"{printable(text)}: {printable(left_out)}", style="yellow", markup=False, soft_wrap=True
            )
        return images.found
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    # pathlib's own patterns cannot start at an absolute path or '..'.
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207
    return sorted(Path(match) for match in matches if Path(match).is_file())


def require_one_readable(records: list[CaptionedImage]) -> None:
    """Look for the first image that can be decoded; what was fetched is kept in the record, to be fetched only once.

    Raises:
        UserError: there is none; up to ten are named with the reason.
    """
    problems: list[str] = []
    for number, record in enumerate(records):
        try:
            image = BytesImage(record.image.read(), record.image.describe())
            decode_image(image, draft_size=1)
        except UnreadableImageError as error:
            problems.append(printable(str(error)))
        else:
            if not isinstance(record.image, FileImage):
                records[number] = replace(record, image=image)
            return
    raise UserError(nothing_readable(problems))


def nothing_readable(problems: Sequence[str]) -> str:
    """Return the message for images of which none can be read."""
    if len(problems) == 1:
        return problems[0]
    return "no image can be read:\n" + "\n".join(problems[:_LISTED]) + "\ngive other images"


def one_image(text: str) -> CaptionedImage:
    """Return the only image that a file name, folder, pattern or web address stands for, read.

    Raises:
        UserError: there is none, or there are several, or it cannot be read.
    """
    records = images_of([text]).listed or []
    if len(records) != 1:
        raise UserError(f"{text}: matches {len(records)} images; give one")
    require_one_readable(records)
    return records[0]
