"""Whose captions a judge compares, and the images they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from hfcap.data.images import FileImage
from hfcap.data.source import load_split
from hfcap.errors import UserError
from hfcap.files import no_file
from hfcap.metrics.shared.caption_files import Warn, read_file_names, read_predictions
from hfcap.metrics.shared.images import image_files
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.recipe import recipe_of_run
from hfcap.schema import ImageBytes

_Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Contestants:
    """Captions of the same images by several systems.

    Attributes:
        captions: system -> image id -> caption, in the order of `image_ids`.
        image_ids: of the images that all have captions of, or a sample of them.
        images: image id -> image.
    """

    captions: dict[str, dict[str, str]]
    image_ids: tuple[str, ...]
    images: Mapping[str, ImageBytes]


def read_contestants(
    paths: Sequence[Path],
    *,
    images: Path | None,
    split: str | None,
    n_images: int | None,
    seed: int,
    allow_missing: bool,
    warn: Warn,
) -> Contestants:
    """Read the captions of run directories and prediction files.

    Args:
        images: folder of the images; None = those of the first run's data.
        split: of runs; None = the one that their recipe scores.
        n_images: how many images are drawn at random; None = all. seed: of the draw.
        allow_missing: compare on the images that all systems have captions of.

    Raises:
        UserError: fewer than two systems, one cannot be read, they caption different images, or images are missing.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise UserError("judge: give two or more systems, each once: run directories or prediction files")
    captions: dict[str, dict[str, str]] = {}
    found: Mapping[str, ImageBytes] | None = None
    file_names: dict[str, str] = {}
    for path in paths:
        run = RunDirectory.existing(path) if path.is_dir() else None
        predictions = path
        if run is not None:
            recipe = recipe_of_run(run)
            chosen = split or recipe.score.split
            predictions = run.predictions(chosen)
            if found is None and images is None and chosen in get_args(_Split):
                records = load_split(recipe.data, cast(_Split, chosen), check_images=False)
                found = {record.image_id: record.image for record in records}
        if not predictions.is_file():
            remedy = "" if run is None else f"; caption it first: hfcap run {run.path}"
            raise UserError(f"{no_file(predictions, 'prediction file')}{remedy}")
        name = path.resolve().name if run is not None else path.stem
        captions[str(path) if name in captions else name] = read_predictions(predictions, warn=warn)
        file_names |= read_file_names(predictions)
    ids = _common(captions, allow_missing, warn)
    if n_images is not None and n_images < len(ids):
        drawn = np.random.default_rng(seed).choice(len(ids), size=n_images, replace=False)
        ids = [ids[number] for number in sorted(drawn.tolist())]
    if images is not None:
        found = {key: FileImage(path) for key, path in image_files(images, ids, file_names).items()}
    if found is None:
        raise UserError("judge: prediction files do not say where the images are; give their folder with --images")
    each = {name: {image_id: known[image_id] for image_id in ids} for name, known in captions.items()}
    return Contestants(each, tuple(ids), found)


def _common(captions: Mapping[str, Mapping[str, str]], allow_missing: bool, warn: Warn) -> list[str]:
    everywhere = [key for key in next(iter(captions.values())) if all(key in known for known in captions.values())]
    some = {key for known in captions.values() for key in known}
    if not everywhere:
        raise UserError(
            f"judge: no image has captions of all of {', '.join(captions)}; give captions of the same images"
        )
    missing = sorted(some - set(everywhere))
    if missing and not allow_missing:
        raise UserError(
            f"judge: {len(missing):,} of {len(some):,} images, for example {missing[0]!r}, have no caption of some of "
            f"{', '.join(captions)}; caption them, or compare on the others with --allow-missing"
        )
    if missing:
        warn(f"{len(missing):,} of {len(some):,} images lack captions of some systems and are left out")
    return everywhere
