"""What single images can be shown with: captions, human captions, images; each only if it belongs to the scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from hfcap.comparison.result import Comparison
from hfcap.comparison.systems import System
from hfcap.data.images import FileImage
from hfcap.data.source import load_split
from hfcap.errors import UserError
from hfcap.metrics.shared.caption_files import read_file_names, read_predictions, read_references
from hfcap.metrics.shared.caption_table import caption_table
from hfcap.metrics.shared.images import image_files
from hfcap.metrics.suite import CaptionSuite
from hfcap.run_directory.recipe import recipe_of_run
from hfcap.schema import ImageBytes
from hfcap.scoring.signature import data_signature, language_of

_Split = Literal["train", "validation", "test"]
_SAME = 1e-9
_NOT_KNOWN = "compare run directories or prediction files instead of score files"
_NOT_SCORED = "they are not those that were scored"


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where the images of a comparison are looked for.

    Attributes:
        folder: a folder of images named as in the prediction or reference files, or by image id; None = the data
            of a run that is compared.
    """

    folder: Path | None = None


@dataclass(frozen=True)
class Evidence:
    """What is known about some images.

    Attributes:
        captions: system name -> image id -> caption; systems whose captions are not known are left out.
        references: image id -> human captions; empty where they are not known.
        file_names: image id -> file name of the image, as far as somebody says so.
        images: image id -> image; empty unless images were asked for.
        notes: what could not be shown, and why.
    """

    captions: dict[str, dict[str, str]] = field(default_factory=dict)
    references: dict[str, tuple[str, ...]] = field(default_factory=dict)
    file_names: dict[str, str] = field(default_factory=dict)
    images: dict[str, ImageBytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _say_nothing(message: str) -> None:
    """Warnings about files that were read before, when they were scored."""


def gather_evidence(
    comparison: Comparison,
    image_ids: Sequence[str],
    *,
    references: Path | None = None,
    images: ImageSource | None = None,
    shown: Sequence[str] | None = None,
) -> Evidence:
    """Find captions, human captions and images of some images of a comparison.

    Human captions are taken if they have the hash that the score files name. Captions are taken if ROUGE-L, computed
    from them again, is the one in the score file (where it has one): predictions may have been made again since.

    Args:
        references: file of human captions; without it those of the compared run directories.
        images: where the images are; None = show none.
        shown: the ids of those whose images are shown; None = all.

    Raises:
        UserError: a file that is there is malformed, or images were asked for and cannot be found.
    """
    if not image_ids:
        return Evidence()
    notes: list[str] = []
    human, reference_path = _references(comparison, references)
    described = {image_id: human[image_id] for image_id in image_ids if image_id in human}
    if not human:
        notes.append("The human captions are not shown: give the file that was scored against with --references.")
    captions: dict[str, dict[str, str]] = {}
    unshown: dict[str, list[str]] = {}
    for system in (system for system in comparison.systems if system.report.per_image):
        found = _captions(system, image_ids)
        if not found:
            unshown.setdefault(_NOT_KNOWN, []).append(system.name)
        elif not _belong(system, found, described):
            unshown.setdefault(_NOT_SCORED, []).append(system.name)
        else:
            captions[system.name] = found
    notes += [f"The captions of {', '.join(names)} are not shown: {reason}." for reason, names in unshown.items()]
    files = [system.predictions for system in comparison.systems if system.name in captions]
    names = _file_names([path for path in (reference_path, *files) if path is not None])
    file_names = {image_id: names[image_id] for image_id in image_ids if image_id in names}
    pictured = image_ids if shown is None else shown
    found_images = {} if images is None else _images(comparison, pictured, images, file_names)
    return Evidence(captions, described, file_names, found_images, tuple(notes))


def _references(comparison: Comparison, given: Path | None) -> tuple[Mapping[str, tuple[str, ...]], Path | None]:
    """Human captions with the hash that was scored against, and their file."""
    scored = next(system.report for system in comparison.systems if system.report.per_image)
    wanted = scored.signature.get("references_sha256")
    runs = [(system.run, system.report.split) for system in comparison.systems if system.run is not None]
    paths = [path for run, split in runs if (path := run.references(split)).is_file()]
    for path in dict.fromkeys([*([] if given is None else [given]), *paths]):
        known = read_references(path, language=language_of(scored.signature) or "en", warn=_say_nothing)
        human = caption_table((image_id, known[image_id]) for image_id in scored.per_image if image_id in known)
        if len(human) == len(scored.per_image) and data_signature(human, "", 0)["references_sha256"] == wanted:
            return human, path
    return {}, None


def _captions(system: System, image_ids: Sequence[str]) -> dict[str, str]:
    """Captions of the images; empty where a scored one has none."""
    if system.predictions is None or not system.predictions.is_file():
        return {}
    known = read_predictions(system.predictions, warn=_say_nothing)
    wanted = [image_id for image_id in image_ids if image_id in system.report.per_image]
    return {image_id: known[image_id] for image_id in wanted} if all(key in known for key in wanted) else {}


def _belong(system: System, captions: Mapping[str, str], human: Mapping[str, Sequence[str]]) -> bool:
    """Whether the captions are those of the score file, as far as ROUGE-L can tell."""
    recorded = {
        image_id: value
        for image_id in captions
        if image_id in human and (value := system.report.per_image[image_id].get("rouge_l")) is not None
    }
    suite = CaptionSuite(("rouge_l",))
    if not recorded or system.report.signature.get("tokenizer") != suite.signature()["tokenizer"]:
        return True
    result = suite.compute({key: captions[key] for key in recorded}, {key: human[key] for key in recorded})
    values = dict(zip(result.image_ids, result.per_image()["rouge_l"].tolist(), strict=True))
    return all(abs(values[image_id] - value) < _SAME for image_id, value in recorded.items())


def _file_names(paths: Iterable[Path]) -> dict[str, str]:
    names: dict[str, str] = {}
    for path in paths:
        names |= read_file_names(path)
    return names


def _images(
    comparison: Comparison, image_ids: Sequence[str], source: ImageSource, file_names: Mapping[str, str]
) -> dict[str, ImageBytes]:
    if source.folder is not None:
        files = image_files(source.folder, image_ids, file_names)
        return {image_id: FileImage(path) for image_id, path in files.items()}
    problems: list[str] = []
    for system in comparison.systems:
        if system.run is None or system.report.split not in get_args(_Split):
            continue
        try:
            data = recipe_of_run(system.run).data
            records = load_split(data, cast(_Split, system.report.split), check_images=False)
        except UserError as error:
            problems.append(str(error))
            continue
        found = {record.image_id: record.image for record in records}
        if all(image_id in found for image_id in image_ids):
            return {image_id: found[image_id] for image_id in image_ids}
        problems.append(f"{system.run.path}: the data of its recipe is no longer what was scored")
    reason = f" ({problems[0]})" if problems else ": no run directory is compared that says where they are"
    raise UserError(f"the images cannot be found{reason}; give their folder with --images")
