"""The code that the card shows: the shortest that captions an image with plain transformers, and servers' commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hfcap.errors import UserError, shown
from hfcap.files import read_json, read_text
from hfcap.pages.markdown import Safe, code, code_block
from hfcap.recipe.prompt_fields import fields_of, with_stand_ins
from hfcap.schema import IMAGE_BACKEND
from hfcap.text import has_controls


def read_notes(model: Path) -> dict[str, str]:
    """Return what hfcap noted next to the weights; empty for models of others."""
    note = model / "hfcap.json"
    values = read_json(note, "hfcap's note next to the weights") if note.is_file() else {}
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise UserError(f"{note}: must map names to texts")
    return values


def read_prompt(model: Path) -> str:
    """Return the caption prompt that hfcap noted next to the weights; empty where there is none."""
    return read_notes(model).get("prompt", "").strip()


def brings_code(model: Path) -> bool:
    """Whether loading runs modelling code of the repository, or of the base model of an adapter."""
    if read_notes(model).get("brings_code") == "true":
        return True
    settings = "".join(read_text(path, "configuration of the model") for path in sorted(model.glob("*.json")))
    return '"auto_map"' in settings and any(model.glob("*.py"))


OPENING = """image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")"""
"""The image as `data.images.decode_image` has it: upright, and on white where it is transparent."""

_WITHOUT_EFFECT = {
    "min_new_tokens": 0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "do_sample": False,
}


def decoding_settings(model: Path) -> dict[str, bool | int | float]:
    """Return the settings of `generate` that give the captions that were scored, from generation_config.json.

    Raises:
        UserError: one is no number.
    """
    path = model / "generation_config.json"
    values = read_json(path, "decoding defaults of the model") if path.is_file() else {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a JSON object")
    names = ["num_beams", "max_new_tokens", *_WITHOUT_EFFECT]
    if values.get("do_sample"):
        names += ["temperature", "top_k", "top_p"]
    chosen = {name: values.get(name) for name in names}
    for name, value in chosen.items():
        if value is not None and not isinstance(value, (bool, int, float)):
            raise UserError(f"{path}: {name} must be a number, not {shown(value)}")
    return {name: value for name, value in chosen.items() if value is not None and value != _WITHOUT_EFFECT.get(name)}


def decoding_arguments(model: Path) -> str:
    """Return `decoding_settings` as keyword arguments.

    They stand in the call because BLIP's `generate` does not read generation_config.json.
    """
    if read_notes(model).get("decodes") == "false":
        return ""
    return "".join(f", {name}={value!r}" for name, value in decoding_settings(model).items())


def _quoted(text: str) -> str:
    # JSON's escapes are Python's; non-ASCII characters are escaped, so nothing can end the literal or the code block.
    return json.dumps(text)


def _prompt_literal(template: str) -> str:
    """Return Python's expression for a prompt, whose fields are filled with their own names."""
    fields = ", ".join(f"{_quoted(field)}: {_quoted(field)}" for field in fields_of(template))
    return f"{_quoted(template)}.format(**{{{fields}}})" if fields else _quoted(with_stand_ins(template))


def usage_code(
    model_id: str,
    model: Path,
    has_code: bool,
    model_type: str | None,
    base: tuple[str, str | None] | None = None,
    revision: str | None = None,
    decoding: str | None = None,
    only_safetensors: bool = False,
) -> str:
    """Return Python source that prints a caption of photo.jpg.

    Args:
        model_id: Hub id of the repository, or "." for the folder itself.
        model: folder with the weights, for its prompt.
        has_code: the repository brings its own modelling code.
        base: Hub id and revision of the base model where the repository is a PEFT adapter.
        revision: of the repository itself, where it is not the newest of its main branch.
        decoding: further arguments of `generate`, in place of the model's own (`decoding_arguments`).
        only_safetensors: fail rather than fall back to pickles; a card leaves that to transformers.
    """
    if read_notes(model).get("needs_hfcap") == "true":
        load = f"captioner = hfcap.load_captioner({_quoted(model_id)})"
        return "\n".join(["import hfcap", "", load, 'print(captioner.caption("photo.jpg"))'])
    decoding = decoding_arguments(model) if decoding is None else decoding
    trust = ", trust_remote_code=True" if has_code else ""
    weights = ", use_safetensors=True" if only_safetensors else ""
    own = f", revision={_quoted(revision)}" if revision else ""
    as_trained = read_notes(model).get("image_backend") == IMAGE_BACKEND
    image_processor = "AutoImageProcessor, " if as_trained else ""
    lines = [
        "from PIL import Image, ImageOps",
        f"from transformers import {image_processor}AutoModelForImageTextToText, AutoProcessor",
    ]
    if base is None:
        lines += ["", f"model = AutoModelForImageTextToText.from_pretrained({_quoted(model_id)}{own}{trust}{weights})"]
    else:
        base_id, base_revision = base
        pin = f", revision={_quoted(base_revision)}" if base_revision else ""
        lines.insert(0, "from peft import PeftModel")
        lines += [
            "",
            f"base = AutoModelForImageTextToText.from_pretrained({_quoted(base_id)}{pin}{trust}{weights})",
            f"model = PeftModel.from_pretrained(base, {_quoted(model_id)}{own})",
        ]
    lines.append(f"processor = AutoProcessor.from_pretrained({_quoted(model_id)}{own}{trust})")
    if as_trained:
        backend = f', backend="{IMAGE_BACKEND}"'
        lines += [
            "# The pixels of the training: torchvision, where it is installed, rounds differently.",
            f"processor.image_processor = AutoImageProcessor.from_pretrained({_quoted(model_id)}{own}{trust}{backend})",
        ]
    lines += [
        "",
        f"{OPENING}{_resizing(model)}",
        *(_lines_as_noted(model, decoding) or _captioning_lines(read_prompt(model), decoding, model_type)),
    ]
    return "\n".join(lines)


def _resizing(model: Path) -> str:
    size = read_notes(model).get("image_size")
    if size is None:
        return ""
    if not size.isdecimal():
        raise UserError(f"{model / 'hfcap.json'}: image_size must be a whole number, not {shown(size)}")
    return f".resize(({size}, {size}))"


def _lines_as_noted(model: Path, decoding: str) -> list[str]:
    """Return the lines from `image` to the printed caption, for families that note how their processor is called."""
    notes = read_notes(model)
    if notes.get("call") == "chat":
        text = f', {{"type": "text", "text": {_prompt_literal(read_prompt(model))}}}' if read_prompt(model) else ""
        lines = [
            f'messages = [{{"role": "user", "content": [{{"type": "image", "image": image}}{text}]}}]',
            "inputs = processor.apply_chat_template(",
            '    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"',
            ").to(model.dtype)",
        ]
    elif notes.get("call") == "text":
        text = _prompt_literal(notes.get("text", ""))
        lines = [f'inputs = processor(images=image, text={text}, return_tensors="pt").to(model.dtype)']
    else:
        return []
    new = "0" if notes.get("returns") == "caption" else '0, inputs["input_ids"].shape[1] :'
    return [
        *lines,
        f"tokens = model.generate(**inputs{decoding})",
        f"print(processor.decode(tokens[{new}], skip_special_tokens=True).strip())",
    ]


def _captioning_lines(prompt: str, decoding: str, model_type: str | None) -> list[str]:
    """Return the lines from `image` to the printed caption; the prompt is no part of the caption."""
    if not prompt:
        return [
            'inputs = processor(images=image, return_tensors="pt")',
            f"tokens = model.generate(**inputs{decoding})",
            "print(processor.decode(tokens[0], skip_special_tokens=True).strip())",
        ]
    lines = [f"prompt = {_prompt_literal(prompt)}  # every training caption began with it"]
    if model_type == "vision-encoder-decoder":
        lines += [
            'pixels = processor(images=image, return_tensors="pt").pixel_values',
            'start = processor.tokenizer(prompt, return_tensors="pt").input_ids',
            f"tokens = model.generate(pixels, decoder_input_ids=start{decoding})",
        ]
    else:
        lines += [
            'inputs = processor(images=image, text=prompt, return_tensors="pt")',
            f"tokens = model.generate(**inputs{decoding})",
        ]
    return [*lines, "print(processor.decode(tokens[0], skip_special_tokens=True).strip().removeprefix(prompt).strip())"]


_ADDRESS = "http://localhost:8000/v1"
"""Where `transformers serve` and `vllm serve` listen."""


def serving(model_id: str, model: Path, has_code: bool, is_adapter: bool) -> dict[str, Any] | None:
    """Return commands and a sentence for the card; None for models that no server of chat completions takes.

    Args:
        model_id: Hub id of the repository, or "." for the folder itself.
        model: folder with the weights.
        has_code: the repository brings its own modelling code.
    """
    notes = read_notes(model)
    if notes.get("call") != "chat" or has_code:
        return None
    merging = [f"hfcap merge {model_id} -o merged"] if is_adapter else []
    served = "merged" if is_adapter else model_id
    commands = [
        *merging,
        'pip install "transformers[serving]"',
        f"transformers serve {served}  # or: vllm serve {served}",
    ]
    prompt = read_prompt(model)
    asked = f" and the prompt {code(prompt)}" if prompt and not has_controls(prompt) else ""
    text = (
        f"The server answers OpenAI's chat completions at {_ADDRESS}, asked with the image{asked}; `vllm serve` "
        "needs a vLLM that knows this model type."
    )
    if notes.get("image_size"):
        text += (
            f" In training every image was made one square of {notes['image_size']} pixels first; a server does not "
            "do that, so that captions can differ."
        )
    return {"commands": code_block("\n".join(commands), "sh"), "text": Safe(text)}
