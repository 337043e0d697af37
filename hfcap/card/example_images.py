"""The images that go to the Hub with a model, and what the model says about exactly these files.

Two are drawn here (no licence to respect); the run's sample images join them where the recipe names a licence. The
captions are hfcap's own decoding in full precision: the card shows them and `verify` compares them.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcap.card.requirements import installed_versions, needed_packages
from hfcap.errors import UserError
from hfcap.files import read_json, write_bytes, write_json
from hfcap.run_directory.paths import RunDirectory
from hfcap.store.image_hashes import file_hashes

if TYPE_CHECKING:
    from hfcap.captioners.base import Captioner
    from hfcap.recipe.blocks import GenerateOptions
    from hfcap.schema import CaptionedImage

FOLDER = "verification"
RECORD = f"{FOLDER}/captions.json"
SAMPLES_FOLDER = "samples"
MAX_SIDE = 512
"""Sample images are made no larger than this many pixels on the longer side."""


def drawn_images() -> dict[str, bytes]:
    """Return small PNG images by name, drawn here: the same bytes everywhere with the same Pillow."""
    from PIL import Image, ImageDraw

    images = {}
    for name, ground, shapes in (
        ("ball", (120, 170, 90), [("ellipse", (70, 60, 150, 140), (200, 30, 30))]),
        (
            "houses",
            (135, 190, 235),
            [("rectangle", (20, 90, 90, 190), (150, 90, 50)), ("rectangle", (120, 60, 200, 190), "white")],
        ),
    ):
        image = Image.new("RGB", (224, 192), ground)
        draw = ImageDraw.Draw(image)
        for kind, box, colour in shapes:
            getattr(draw, kind)(box, fill=colour)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        images[f"{name}.png"] = buffer.getvalue()
    return images


def sample_images(records: Sequence[CaptionedImage]) -> dict[str, bytes]:
    """Return the images of these records by new names, re-encoded: no metadata (place, camera) goes along.

    Names count from 1 in the records' order; the images' own names are strangers' text.
    """
    from hfcap.data.images import decode_image

    images = {}
    for number, record in enumerate(records, start=1):
        image = decode_image(record.image)
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=95, subsampling=0)
        images[f"{number}.jpg"] = buffer.getvalue()
    return images


def record_images(
    run: RunDirectory, captioner: Captioner, options: GenerateOptions, samples: Sequence[CaptionedImage]
) -> None:
    """Write the images to be published and their captions into the run directory.

    Args:
        samples: records whose images may be published; empty where no licence allows it.
    """
    files = {f"{FOLDER}/{name}": content for name, content in drawn_images().items()}
    files |= {f"{SAMPLES_FOLDER}/{name}": content for name, content in sample_images(samples).items()}
    for folder in (FOLDER, SAMPLES_FOLDER):
        shutil.rmtree(run.path / folder, ignore_errors=True)
    for name, content in files.items():
        write_bytes(run.path / name, content)
    captions = {name: _caption(captioner, content, options) for name, content in files.items()}
    versions = installed_versions(needed_packages(run.model))
    record = {"deterministic": not options.do_sample, "captions": captions, "versions": versions}
    write_json(run.path / RECORD, {**record, "weights": weights_of(run.model)})


def weights_of(folder: Path) -> dict[str, str]:
    """Return path inside a model folder -> SHA-256 of its files of weights."""
    files = sorted(folder.rglob("*.safetensors"))
    return {file.relative_to(folder).as_posix(): value for file, value in zip(files, file_hashes(files), strict=True)}


def note_packages(run: RunDirectory, model: Path, also_needed: Iterable[str] = ()) -> None:
    """Note the versions that the proof of publishing will run with, here and now.

    Args:
        model: folder with the weights. also_needed: packages that the proof missed (see requirements.py).
    """
    record = read_json(run.path / RECORD, "recorded captions")
    found = sorted({*read_record(run.path)["also_needed"], *also_needed})
    versions = installed_versions([*needed_packages(model), *found])
    noted = {**record, "versions": versions} | ({"also_needed": found} if found else {})
    if noted != record:
        write_json(run.path / RECORD, noted)


def _caption(captioner: Captioner, content: bytes, options: GenerateOptions) -> str:
    from PIL import Image

    from hfcap.caption_batch import generate_captions

    image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG")).convert("RGB")
    # By the processor itself, to the last bit as strangers' code has it.
    pixels = captioner.image_processor(images=image, return_tensors="pt")["pixel_values"]
    return generate_captions(captioner, pixels, options, place=0)[0][0].text


def read_record(folder: Path) -> dict[str, Any]:
    """Return what was recorded in a run or a repository, with every key.

    The keys: deterministic (bool), captions (path inside `folder` -> caption), versions (package -> version that the
    proof ran with), also_needed (packages that the proof found missing) and weights (file -> SHA-256 of those that
    captioned and were scored; empty in records of earlier versions).

    Raises:
        UserError: nothing was recorded, or a name leads out of the folder (a repository is a stranger's text).
    """
    path = folder / RECORD
    if not path.is_file():
        raise UserError(f"{path}: no recorded captions; publish the run again, or verify another repository")
    record = read_json(path, "recorded captions")
    captions = record.get("captions") if isinstance(record, dict) else None
    if not isinstance(captions, dict) or not all(isinstance(caption, str) for caption in captions.values()):
        raise UserError(f"{path}: must map image names to captions")
    for name in captions:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
        if not inside or not (folder / name).is_file():
            raise UserError(
                f"{path}: {name!r} is no image of this folder; put it back, or delete the file, which is then "
                "made again"
            )
    versions, also_needed = record.get("versions", {}), record.get("also_needed", [])
    if not isinstance(versions, dict) or not isinstance(also_needed, list):
        raise UserError(f"{path}: versions must map packages to versions, and also_needed must be a list")
    if not all(isinstance(text, str) for text in [*versions.values(), *also_needed]):
        raise UserError(f"{path}: names and versions of packages must be texts")
    weights = record.get("weights", {})
    if not isinstance(weights, dict) or not all(isinstance(text, str) for text in weights.values()):
        raise UserError(f"{path}: weights must map files to hashes")
    return {
        "deterministic": bool(record.get("deterministic", True)),
        "captions": captions,
        "versions": versions,
        "also_needed": also_needed,
        "weights": weights,
    }


def copy_images(run: RunDirectory, folder: Path) -> None:
    """Copy the recorded images and their captions into the staging folder."""
    record = read_record(run.path)
    for name in record["captions"]:
        write_bytes(folder / name, (run.path / name).read_bytes())
    write_json(folder / RECORD, {key: value for key, value in record.items() if value not in ([], {})})
