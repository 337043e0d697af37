"""Any COCO-format caption file: `images` with id and file_name, `annotations` with image_id and caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hfcap.cells import JoinedLines, captions_of_cell
from hfcap.data.checks import clean_caption, listed
from hfcap.data.image_files import name_inside
from hfcap.data.images import FileImage, resolve_inside
from hfcap.data.kept.keeping import Origin, origin_of_files
from hfcap.data.source import NoSuchSplitError, Source
from hfcap.data.splits import SplitShares, canonical, drawn_splits
from hfcap.data.tables.coco_format import coco_entries, distinct_ids, refuse_orphans
from hfcap.errors import UserError
from hfcap.files import no_folder, read_json
from hfcap.places import LocalPath
from hfcap.recipe.prompt_fields import values_of
from hfcap.schema import CaptionedImage


class CocoJsonOptions(SplitShares):
    """Keys of `data` for source coco_json."""

    source: Literal["coco_json"] = Field("coco_json", description="a file in COCO's caption format")
    captions: LocalPath | dict[str, LocalPath] = Field(
        description="COCO-format file, or a mapping from split name to file; without `split` keys splits are drawn"
    )
    images: LocalPath | dict[str, LocalPath] | None = Field(
        None, description="image folder, or a mapping from split name to folder; default: 'images' next to the file"
    )
    uncaptioned_images: Literal["error", "ignore"] = Field(
        "error", description="what to do with images of the file that have no annotation"
    )


def load(options: CocoJsonOptions, split_name: str) -> list[CaptionedImage]:
    """Return the records of one split, in the order of the file's `images`.

    Raises:
        NoSuchSplitError: no image has this split.
        UserError: the file is not in COCO format, or a caption or image lacks its counterpart.
    """
    path = _captions_path(options, split_name)
    content = read_json(path, "COCO caption file (data.captions)")
    images = coco_entries(path, content, "images", ("id", "file_name"))
    annotations = coco_entries(path, content, "annotations", ("image_id", "caption"))
    captions = _captions_by_image(path, images, annotations)
    if not isinstance(options.captions, dict):
        images = _images_of_split(path, images, split_name, options)
    folder = _image_folder(options, split_name, path)
    records, without = [], []
    for image in images:
        record = _record(path, folder, image, captions.get(str(image["id"]), []))
        if record.captions:
            records.append(record)
        else:
            without.append(record.image_id)
    if without and options.uncaptioned_images == "error":
        raise UserError(
            f"{path}: {len(without):,} images of split {split_name!r} have no caption in 'annotations': ids "
            f"{listed(without)}; add captions, or set data.uncaptioned_images: ignore"
        )
    return records


def origin(options: CocoJsonOptions, split_name: str) -> Origin | None:
    """Return what the records of a split follow from: the file, and the names in the image folder."""
    try:
        path = _captions_path(options, split_name)
        folder = _image_folder(options, split_name, path)
    except UserError:
        return None  # loading says what is wrong
    return origin_of_files([path], folder)


def list_images(path: Path, images: str | None, split_name: str | None) -> list[CaptionedImage]:
    """Return the images of a file without captions: all, or those of one split; it needs no annotations.

    Raises:
        NoSuchSplitError: no image has this split.
        UserError: the file is not in COCO format, an id occurs twice, or the image folder is not there.
    """
    entries = coco_entries(path, read_json(path, "COCO file"), "images", ("id", "file_name"))
    distinct_ids(path, entries)
    options = CocoJsonOptions(captions=str(path), images=images)
    if split_name is not None:
        entries = _images_of_split(path, entries, split_name, options)
    folder = _image_folder(options, "", path)
    return [_record(path, folder, entry, ()) for entry in entries]


def _record(path: Path, folder: Path, image: dict[str, Any], captions: Sequence[str]) -> CaptionedImage:
    image_id = str(image["id"])
    try:
        name = name_inside(folder, image["file_name"], "data.images")
        file = resolve_inside(folder, name)
    except UserError as error:
        raise UserError(f"{path}: image id {image_id}: {error}") from None
    return CaptionedImage(image_id, name, tuple(captions), FileImage(file), columns=values_of(image))


def _captions_path(options: CocoJsonOptions, split_name: str) -> Path:
    if isinstance(options.captions, str):
        return Path(options.captions).expanduser()
    if split_name not in options.captions:
        raise NoSuchSplitError("data.captions", split_name, options.captions)
    return Path(options.captions[split_name]).expanduser()


def _image_folder(options: CocoJsonOptions, split_name: str, captions_path: Path) -> Path:
    if isinstance(options.images, dict):
        if split_name not in options.images:
            raise UserError(f"data.images has no folder for split {split_name!r}: add one, as in data.captions")
        folder = Path(options.images[split_name]).expanduser()
    else:
        folder = captions_path.parent / "images" if options.images is None else Path(options.images).expanduser()
    if not folder.is_dir():
        raise UserError(
            no_folder(folder, "image folder", "give the recipe's key data.images (on the command line --images)")
        )
    return folder


def _captions_by_image(
    path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> dict[str, list[str]]:
    known = set(distinct_ids(path, images))
    captions: dict[str, list[str]] = {}
    orphans, empty = [], []
    joined = JoinedLines()
    for number, annotation in enumerate(annotations):
        image_id = str(annotation["image_id"])
        where = f"annotations[{number}] (image_id {image_id})"
        if image_id not in known:
            orphans.append(where)
            continue
        for caption in captions_of_cell(annotation["caption"], f"{path}: {where}"):
            joined.add(caption)
            if caption.strip():
                captions.setdefault(image_id, []).append(clean_caption(caption))
            else:
                empty.append(where)
    joined.refuse(str(path))
    refuse_orphans(path, orphans)
    if empty:
        raise UserError(f"{path}: {len(empty):,} empty captions: {listed(empty)}; remove or correct them")
    return captions


def _images_of_split(
    path: Path, images: list[dict[str, Any]], split_name: str, options: CocoJsonOptions
) -> list[dict[str, Any]]:
    existing = sorted({str(image["split"]) for image in images if "split" in image})
    if existing:
        chosen = [image for image in images if image.get("split") == split_name]
    else:
        drawn = drawn_splits((str(image["id"]) for image in images), options)
        chosen = [image for image in images if drawn[str(image["id"])] == canonical(split_name)]
        existing = sorted(set(drawn.values()))
    if not chosen:
        raise NoSuchSplitError(str(path), split_name, existing)
    return chosen


REGISTERED = Source(
    options=CocoJsonOptions,
    load=load,
    description="any COCO-format caption file and its folder of images",
    origin=origin,
)
