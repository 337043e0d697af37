"""`hfcap export`: a captioner as files of another runtime, in a folder that is there only if they caption the same."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from hfcap.caption_batch import generate_captions
from hfcap.captioners.adaptation.merging import require_merged
from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import generation_defaults, load_captioner, local_folder
from hfcap.captioners.shared.encoder_decoder import ReadsByCrossAttention
from hfcap.captioners.shared.room import require_room
from hfcap.captioning.inputs import find_images
from hfcap.children import run_program
from hfcap.data.images import decode_image
from hfcap.data.source import load_split
from hfcap.data.sources.scenes import ScenesOptions
from hfcap.errors import UserError, WorkError, library_faults, reason_of, requirement
from hfcap.files import folder_being_written, write_json, write_text
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import IMAGE_BACKEND, CaptionedImage

ExportFormat = Literal["onnx", "openvino", "gguf"]

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
}
"""What each format is written and run with."""

_CHECKED = 9  # caption.py takes 8 at a time: the last one comes alone
_AT_ONCE = 8
_SECONDS = 1800
_NOTES, _PROGRAM = "hfcap_export.json", "caption.py"


def export_captioner(
    location: str,
    output: Path,
    to: ExportFormat,
    images: Sequence[str] = (),
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Write a captioner as encoder, prefill and decode with what is needed around them, and caption with the files.

    Args:
        location: as `load_captioner` takes it; an adapter is merged.
        output: new folder.
        to: gguf is refused with the reason.
        images: files, folders or patterns that the check captions; none = generated scenes.

    Returns how many images got the same caption from the files as from the captioner: all of them.

    Raises:
        UserError: the format or family is not supported, packages are missing, or `output` holds something.
        WorkError: the files give other captions, or do not run; nothing is left.
    """
    _require_format(to)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: is not empty; choose a new folder")
    records = find_images(images) if images else load_split(ScenesOptions(n_test=_CHECKED), "test")
    captioner = load_captioner(location, revision, trust_remote_code)
    _require_layout(captioner, location)
    options = _greedy(local_folder(location, revision))
    require_room(captioner, options)
    expected: list[str] = []
    for first in range(0, len(records), _AT_ONCE):
        some = _pixel_values(captioner, records[first : first + _AT_ONCE])
        expected += [found[0].text for found in generate_captions(captioner, some, options)]
    from hfcap.export.components import write_components  # torch's exporters take seconds to import

    with folder_being_written(output) as folder:
        with library_faults(lambda error: _no_export(location, to, error)):
            cache = write_components(captioner, _pixel_values(captioner, records[:1]), to, folder)
        captioner.save_processor(folder)
        write_text(folder / _PROGRAM, Path(__file__).with_name(_PROGRAM).read_text(encoding="utf-8"))
        notes = _notes(captioner, location, to, cache, options)
        write_json(folder / _NOTES, notes)
        _require_same(expected, _captions_of_files(folder, records), records)
        check = {"images": len(records), "different_captions": len(set(expected)), "same_as_hfcap": True}
        write_json(folder / _NOTES, {**notes, "check": check})
        write_text(folder / "README.md", _readme(captioner, to, len(records)))
    return len(records)


def _pixel_values(captioner: Captioner, records: Sequence[CaptionedImage]) -> torch.Tensor:
    """As transformers' image processor makes them, which the program in the folder has, to the last bit."""
    images = [decode_image(record.image) for record in records]
    values: torch.Tensor = captioner.image_processor(images=images, return_tensors="pt")["pixel_values"]
    return values


def _require_format(to: str) -> None:
    if to == "gguf":
        raise UserError(
            "--to gguf: llama.cpp has no architecture for captioners with cross-attention; give --to onnx or openvino "
            "(vision-language models are converted by llama.cpp itself: convert_hf_to_gguf)"
        )
    if to not in PACKAGES:
        raise UserError(f"--to {to}: no such format; give onnx or openvino")
    missing = [name for name in PACKAGES[to] if importlib.util.find_spec(name) is None]
    if missing:
        wanted = " ".join(f"'{requirement(name)}'" for name in missing)
        raise UserError(f"--to {to}: packages are missing; pip install {wanted}")


def _require_layout(captioner: Captioner, location: str) -> None:
    require_merged(captioner, location)
    if not isinstance(captioner, ReadsByCrossAttention):
        raise UserError(
            f"{location}: {captioner.card_facts.title} is not exported: only captioners are whose decoder reads the "
            "image through cross-attention (ViT-GPT2, BLIP, image_transformer, cnn_transformer); publish it with hfcap "
            "publish, which needs only transformers to run, or serve a vision-language model (docs/served_models.md)"
        )


def _greedy(folder: Path) -> GenerateOptions:
    """Return greedy search up to the length that the model was saved with."""
    saved = generation_defaults(folder)
    return GenerateOptions(num_beams=1, **{name: saved[name] for name in ("max_new_tokens",) if name in saved})


def _no_export(location: str, to: str, error: Exception) -> str:
    # The exporter says of which part it was, the error before it what.
    reason = reason_of(error.__cause__ if isinstance(error.__cause__, Exception) else error)[:300]
    return f"{location}: transformers' exporter to {to} fails ({reason}); give another --to, or publish it instead"


def _notes(captioner: Captioner, location: str, to: str, cache: str, options: GenerateOptions) -> dict[str, Any]:
    packages = ("hfcap", "transformers", "torch", *PACKAGES[to])
    return {
        "format": to,
        "captioner": captioner.family,
        "model": Path(location).name if Path(location).exists() else location,
        "versions": {name: metadata.version(name) for name in packages},
        "inputs": {
            "encoder": ["pixel_values"],
            "prefill": ["input_ids", "encoder_hidden_states"],
            "decode": ["input_ids", "encoder_hidden_states", cache],
        },
        "cache": cache,
        "start_token_ids": captioner.start_token_ids(),
        "end_token_id": captioner.end_token_id,
        "pad_token_id": captioner.pad_token_id,
        "max_new_tokens": options.max_new_tokens,
        "image_backend": IMAGE_BACKEND,
    }


def _captions_of_files(folder: Path, records: Sequence[CaptionedImage]) -> list[str]:
    """Caption with the program in the folder, in a process of its own: runtimes can take theirs down with them."""
    with tempfile.TemporaryDirectory(prefix="hfcap-export-") as place:
        paths = [str(Path(place) / f"{number}.png") for number in range(len(records))]
        for path, record in zip(paths, records, strict=True):
            image: Image.Image = decode_image(record.image)
            image.save(path)
        try:
            done = run_program([sys.executable, str(folder / _PROGRAM), *paths], timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise WorkError(
                f"export: the files did not caption {len(paths)} images in {_SECONDS} seconds; give fewer --images"
            ) from None
    rows = [line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line]
    found = {row[0]: row[1] for row in rows}
    if done.returncode or set(found) != set(paths):
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
        raise WorkError(
            f"export: the files do not run (exit code {done.returncode}: {said}) and are not kept; give another --to"
        )
    return [found[path] for path in paths]


def _require_same(expected: Sequence[str], found: Sequence[str], records: Sequence[CaptionedImage]) -> None:
    wrong = [number for number, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]]
    if wrong:
        one = wrong[0]
        raise WorkError(
            f"export: {len(wrong)} of {len(expected)} images get another caption from the files, which are not kept: "
            f"{found[one]!r} and not {expected[one]!r} for {records[one].file_name}; give another --to"
        )


def _readme(captioner: Captioner, to: str, count: int) -> str:
    packages = " ".join(["torch", "transformers", "pillow", *PACKAGES[to]])
    return f"""# {captioner.card_facts.title}, exported to {to}

`pip install {packages}`, then

```bash
python caption.py cat.jpg dog.jpg
```

prints each image's caption by greedy search. {_PROGRAM} shows how the three programs work together: encoder, prefill,
decode. `{_NOTES}` has the names of their inputs, the tokens that captions start and end with, and the versions that
wrote them. When they were written, they captioned {count} images as the captioner itself does.
"""
