"""What a run began with, noted in environment.json, and what is no longer the same when it goes on.

Data: ids, file names, captions and the images' bytes. Base models: the weights and processors that training started
from, the content of local files, the commit of Hub repositories. Versions of packages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hfcap.captioners.asking.asked import prompts_of_captions
from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import is_run_directory
from hfcap.environment import describe_environment
from hfcap.errors import UserError
from hfcap.files import write_json
from hfcap.progress import error_console
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.changes import place_keys
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.records import Environment, checked_record
from hfcap.schema import CaptionedImage
from hfcap.store.image_hashes import file_hashes

_MODEL_FILES = {".safetensors", ".json", ".txt", ".model", ".py", ".jinja", ".gguf"}
_PARTS_OF_DATA = {
    "ids": "image ids",
    "file_names": "file names",
    "captions": "captions",
    "images": "content of images",
    "revision": "commit of the dataset",
}
_PARTS_OF_START = {
    "weights": "the weights that training starts from",
    "tokenizer": "the tokenizer",
    "image_processor": "the image processor",
    "prompts": "what captions answer: prompts of the data, or values of fields",
}


def describe_run(
    recipe: Recipe, captioner: Captioner, splits: Mapping[str, Sequence[CaptionedImage]]
) -> dict[str, Any]:
    """Return the content of environment.json for a captioner as it was built, before any training."""
    described = describe_environment(recipe.train.seed, captioner.base_models, recipe.data, splits)
    start = describe_start(captioner)
    prompts = [prompts_of_captions(captioner, records) for records in splits.values()]
    if any(prompts):
        start["prompts"] = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    return described | {"places": place_contents(recipe), "start": start}


def describe_start(captioner: Captioner) -> dict[str, str]:
    """Return SHA-256 digests of what training starts from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(captioner.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    tokenizer = captioner.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if tokenizer is None:  # that of a server, which also has the weights
        words = captioner.identity()
    else:
        words = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    processor = json.dumps(captioner.image_processor.to_dict(), sort_keys=True, default=str)
    return {
        "weights": digest.hexdigest(),
        "tokenizer": hashlib.sha256(words.encode()).hexdigest(),
        "image_processor": hashlib.sha256(processor.encode()).hexdigest(),
    }


def place_contents(recipe: Recipe) -> dict[str, str]:
    """Return full key -> SHA-256 of what lies there, for every file or model folder that the recipe names.

    Images and captions (`data`) are left out: they have records of their own.
    """
    found = {key: content_of(text) for key, text in place_keys(recipe).items() if not key.startswith("data.")}
    return {key: content for key, content in found.items() if content is not None}


def content_of(text: str) -> str | None:
    """Return the SHA-256 of a file, or of a model folder's files; None where neither is there (a Hub id)."""
    path = Path(text).expanduser()
    if path.is_file():
        return file_hashes([path])[0]
    if not path.is_dir():
        return None
    inside = [path / "model", path / "base_model"] if is_run_directory(str(path)) else [path]
    files = sorted(
        file for folder in inside for file in folder.rglob("*") if file.is_file() and file.suffix in _MODEL_FILES
    )
    digest = hashlib.sha256()
    for file, value in zip(files, file_hashes(files), strict=True):
        digest.update(f"{file.relative_to(path).as_posix()} {value}\n".encode())
    return digest.hexdigest()


def read_environment(run: RunDirectory) -> dict[str, Any]:
    """Return environment.json; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    if not run.environment.is_file():
        return {}
    remedy = (
        "what the run began with cannot be compared: put the file back, or give --accept-changes to go on with data "
        "and base model as they are now"
    )
    try:
        return dict(checked_record(run.environment, "environment of the run", Environment))
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None


def data_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two records of splits (`datasets` in environment.json), one line for each split.

    Splits and facts that only one of the records has are not compared.
    """
    lines = []
    for split in before.keys() & now.keys():
        old, new = before[split], now[split]
        parts = [
            words
            for key, words in _PARTS_OF_DATA.items()
            if None not in (old.get(key), new.get(key)) and old[key] != new[key]
        ]
        if not parts and old.get("fingerprint") != new.get("fingerprint"):
            parts = ["ids, file names or captions"]  # a record of an earlier version
        if parts:
            counts = [f"{facts.get('n_images')} images with {facts.get('n_captions')} captions" for facts in (old, new)]
            lines.append(f"split {split}: {', '.join(parts)} ({counts[0]} then, {counts[1]} now)")
    return sorted(lines)


def start_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs in base models, local files and what training starts from."""
    lines = []
    old_models = {base["id"]: base.get("revision") for base in before.get("base_models", [])}
    for base in now.get("base_models", []):
        old = old_models.get(base["id"])
        if old is not None and base.get("revision") is not None and old != base["revision"]:
            lines.append(f"base model {base['id']}: commit {old} then, {base['revision']} now")
    for name, words in {"places": "content of {}", "start": "{}"}.items():
        old_parts, new_parts = before.get(name) or {}, now.get(name) or {}
        for key in old_parts.keys() & new_parts.keys():
            if old_parts[key] != new_parts[key]:
                lines.append(words.format(_PARTS_OF_START.get(key, key)))
    return sorted(lines)


def version_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return packages of other versions, as `name old -> new`."""
    old, new = before.get("versions") or {}, now.get("versions") or {}
    return [f"{name} {old[name]} -> {new[name]}" for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]


def weight_hashes(run: RunDirectory) -> dict[str, str]:
    """Return path inside the run -> SHA-256 of every file of weights of its model."""
    files = sorted(file for folder in (run.model, run.base_model) for file in folder.rglob("*.safetensors"))
    return {file.relative_to(run.path).as_posix(): value for file, value in zip(files, file_hashes(files), strict=True)}


def changed_weights(run: RunDirectory, noted: Mapping[str, str]) -> list[str]:
    """Return the files of weights that are gone or not what training wrote.

    Args:
        noted: as `weight_hashes` gave them when training ended; empty where an earlier version trained.
    """
    now = weight_hashes(run) if noted else {}
    return sorted(name for name, value in noted.items() if now.get(name) != value)


def refuse_changes(run: RunDirectory, stage: str, lines: Sequence[str], remedy: str, accepted: bool) -> None:
    """Refuse to mix what the run began with and what is there now; accepted changes are said, and noted by the caller.

    Raises:
        UserError: there are changes, and nobody accepted them.
    """
    if not lines:
        return
    found = "".join(f"\n  {line}" for line in lines)
    if not accepted:
        raise UserError(
            f"{run.path}: what this run began with has changed:{found}\nThe stage '{stage}' and those after it would "
            f"mix old and new. {remedy}"
        )
    error_console.print(
        f"warning: {run.path}: what this run began with has changed, and --accept-changes was given:{found}",
        markup=False,
        soft_wrap=True,
    )


def note_changes(run: RunDirectory, stage: str, lines: Sequence[str]) -> None:
    """Keep in environment.json what changed while the run went on."""
    if lines:
        try:
            environment = read_environment(run)
        except UserError:
            environment = {}  # damaged, and accepted as it is
        earlier = environment.get("changes", [])
        earlier = earlier if isinstance(earlier, list) else []
        write_json(run.environment, {**environment, "changes": [*earlier, {"stage": stage, "what": list(lines)}]})


def require_same_words(run: RunDirectory, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse another tokenizer, whatever was accepted: to the weights of a checkpoint its tokens are other words.

    Raises:
        UserError: the tokenizer is not the one that the training began with.
    """
    old, new = ((described.get("start") or {}).get("tokenizer") for described in (before, now))
    if old is not None and old != new:
        raise UserError(
            f"{run.path}: the tokenizer is not the one that this training began with (model.tokenizer makes it from "
            "the training captions), so that the checkpoint's weights stand for other words and nothing can go on "
            f"from them. Put data and base model back as they were, or train again: hfcap train {run.path} --force"
        )
