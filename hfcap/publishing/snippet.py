"""The code that the card shows: the shortest that captions a picture with plain transformers, without hfcap."""

from __future__ import annotations

import json
from pathlib import Path

from hfcap.errors import UserError
from hfcap.files import read_json


def read_prompt(model: Path) -> str:
    """Return the caption prompt that hfcap noted beside the weights; empty where there is none."""
    note = model / "hfcap.json"
    prompt = read_json(note, "hfcap's note beside the weights").get("prompt", "") if note.is_file() else ""
    if not isinstance(prompt, str):
        raise UserError(f"{note}: prompt must be text")
    return prompt.strip()


def _quoted(text: str) -> str:
    # JSON's escapes are Python's; non-ASCII characters are escaped, so nothing can end the literal or the code block.
    return json.dumps(text)


def usage_code(
    model_id: str, model: Path, has_code: bool, model_type: str | None, base: tuple[str, str | None] | None = None
) -> str:
    """Return Python source that prints a caption of photo.jpg.

    Args:
        model_id: Hub id of the repository, or "." for the folder itself.
        model: folder with the weights, for its prompt.
        has_code: the repository brings its own modelling code.
        base: Hub id and revision of the base model where the repository is a PEFT adapter.
    """
    trust = ", trust_remote_code=True" if has_code else ""
    lines = ["from PIL import Image", "from transformers import AutoModelForImageTextToText, AutoProcessor"]
    if base is None:
        lines += ["", f"model = AutoModelForImageTextToText.from_pretrained({_quoted(model_id)}{trust})"]
    else:
        base_id, revision = base
        pin = f", revision={_quoted(revision)}" if revision else ""
        lines.insert(0, "from peft import PeftModel")
        lines += [
            "",
            f"base = AutoModelForImageTextToText.from_pretrained({_quoted(base_id)}{pin}{trust})",
            f"model = PeftModel.from_pretrained(base, {_quoted(model_id)})",
        ]
    lines += [
        f"processor = AutoProcessor.from_pretrained({_quoted(model_id)}{trust})",
        "",
        'image = Image.open("photo.jpg").convert("RGB")',
    ]
    prompt = read_prompt(model)
    if not prompt:
        return "\n".join(
            [
                *lines,
                'inputs = processor(images=image, return_tensors="pt")',
                "tokens = model.generate(**inputs)",
                "print(processor.decode(tokens[0], skip_special_tokens=True).strip())",
            ]
        )
    lines += [f"prompt = {_quoted(prompt)}  # every training caption began with it"]
    if model_type == "vision-encoder-decoder":
        lines += [
            'pixels = processor(images=image, return_tensors="pt").pixel_values',
            'start = processor.tokenizer(prompt, return_tensors="pt").input_ids',
            "tokens = model.generate(pixels, decoder_input_ids=start)",
        ]
    else:
        lines += [
            'inputs = processor(images=image, text=prompt, return_tensors="pt")',
            "tokens = model.generate(**inputs)",
        ]
    lines += ["print(processor.decode(tokens[0], skip_special_tokens=True).strip().removeprefix(prompt).strip())"]
    return "\n".join(lines)
