"""What is searched: a folder of images, a COCO file, a dataset, or the data of a run; all splits together."""

from __future__ import annotations

from collections.abc import Iterable
from glob import has_magic
from pathlib import Path
from typing import Any

from hfcap import registry
from hfcap.captioning import find_images
from hfcap.data.images import IMAGE_SUFFIXES, FileImage
from hfcap.data.source import NoSuchSplitError, Source
from hfcap.data.tables.finding import layouts_of
from hfcap.errors import UserError
from hfcap.recipe.blocks import DataOptions
from hfcap.recipe.loading import load_recipe
from hfcap.recipe.shipped import recipe_path
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.recipe import recipe_of_run, run_directory_at
from hfcap.schema import CaptionedImage

_NO_SPLIT = "no_split_has_this_name"
"""Asked for, it makes a source say which splits there are."""


def load_collection(target: str, split: str | None = None, images: str | None = None) -> list[CaptionedImage]:
    """Return the images of `target` with the captions they have, none twice.

    Args:
        target: run directory, recipe file, COCO JSON file, folder of images (captions in any layout, or none), file of
            images or pattern, or Hub id of a dataset.
        split: only this split, in the dataset's own spelling; None = all.
        images: image folder of a COCO file; None = `images` next to it.

    Raises:
        UserError: nothing is there, or what is there cannot be read.
    """
    path = Path(target).expanduser()
    if path.is_dir() and not RunDirectory(path).recipe.is_file():
        if layouts_of(path):
            return _folder(path, split)
        if split is not None:
            raise UserError(
                f"{target}: --split: a folder without metadata or other captions has no splits; leave it out"
            )
        return find_images([target])
    if path.is_dir() or path.suffix.lower() in (".yaml", ".yml"):
        run = run_directory_at(path) if path.exists() else None
        data = (load_recipe(recipe_path(str(path))) if run is None else recipe_of_run(run)).data
        names = [data.train_split, data.validation_split, data.test_split]
        return _distinct(_load(data, dict.fromkeys(names) if split is None else [split]))
    if path.suffix.lower() == ".json" and path.is_file():
        # A file under a split name of its own is taken whole, whether its images are labelled or not.
        captions, wanted = (str(path), split) if split is not None else ({"all": str(path)}, "all")
        return _whole("coco_json", wanted, captions=captions, images=images, uncaptioned_images="ignore")
    if not path.exists() and target.count("/") == 1 and not target.startswith((".", "/", "~")):
        return _whole("hub", split, dataset=target)
    if not path.exists() and not has_magic(target):
        raise UserError(f"{target}: no such folder, file, recipe or run directory (a Hub dataset is namespace/name)")
    if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(
            f"{target}: neither an image, nor a COCO .json file, nor a recipe; give a folder or one of these"
        )
    return find_images([target])


def _folder(folder: Path, split: str | None) -> list[CaptionedImage]:
    captioned = _whole("folder", split, root=str(folder), uncaptioned_images="ignore")
    if split is not None:
        return captioned
    # Images that the metadata does not mention can still be found by what they show.
    known = {record.image.path.resolve() for record in captioned if isinstance(record.image, FileImage)}
    others = find_images([str(folder)])
    return captioned + [
        record for record in others if isinstance(record.image, FileImage) and record.image.path.resolve() not in known
    ]


def _whole(source_name: str, split: str | None, **keys: Any) -> list[CaptionedImage]:
    source: Source = registry.load("sources", source_name).REGISTERED
    options = source.options(**keys)
    if split is not None:
        return _load(options, [split])
    try:
        return source.load(options, _NO_SPLIT)
    except NoSuchSplitError as error:
        if not error.existing:
            raise
        return _distinct(_load(options, error.existing))


def _load(options: DataOptions, names: Iterable[str]) -> list[CaptionedImage]:
    source: Source = registry.load("sources", options.source).REGISTERED
    records: list[CaptionedImage] = []
    missing: NoSuchSplitError | None = None
    for name in names:
        try:
            records += source.load(options, name)
        except NoSuchSplitError as error:
            missing = error
    if not records:
        raise missing or UserError(f"source {options.source!r}: no images")
    return records


def _distinct(records: Iterable[CaptionedImage]) -> list[CaptionedImage]:
    return list({record.image.describe(): record for record in records}.values())
