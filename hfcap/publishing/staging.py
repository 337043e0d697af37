"""The folder `publish/`: exactly the files that go to the Hub, chosen by an allow-list and made free of local paths.

Pickles, optimizer states, checkpoints and logs are not on the list, so they cannot slip through; photographs only with
`publish.samples_license`.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcap.card import training_curve
from hfcap.card.code_files import needed_code
from hfcap.card.example_images import RECORD, copy_images, note_packages, read_record, record_images, weights_of
from hfcap.card.front_matter import eval_results_file
from hfcap.card.machine_paths import is_machine_path, portable
from hfcap.card.render import existing_card, render
from hfcap.card.run_facts import RunFacts, read_card_input
from hfcap.errors import UserError
from hfcap.files import (
    folder_being_written,
    read_json,
    read_json_lines,
    read_json_object,
    write_bytes,
    write_json,
    write_json_lines,
    write_text,
)
from hfcap.pages.markdown import one_line
from hfcap.publishing.published import PICKLES
from hfcap.publishing.secrets import refuse_secrets
from hfcap.publishing.verify_scores import write_manifest
from hfcap.recipe import strict_yaml
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.publish_fields import size_in_bytes
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.recipe import recipe_of_run

FULL_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors",)
CONFIGURATION = ("config.json", "generation_config.json", "hfcap.json")
ADAPTER_CONFIGURATION = ("adapter_config.json", "generation_config.json", "hfcap.json")
PROCESSOR = (
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)
CODE = ("*.py",)
"""Modelling code of custom architectures; it stands next to the weights because the model was saved with it."""

PARTS = ("member_*", "reranker")
"""Folders of models that a captioner is put together from; each is a whole model, copied by the same lists."""

MODEL_PATTERNS = (
    *FULL_WEIGHTS,
    *ADAPTER_WEIGHTS,
    *CONFIGURATION,
    *ADAPTER_CONFIGURATION,
    *PROCESSOR,
    *CODE,
    *(f"{part}/*" for part in PARTS),
)
"""Names that belong to a published model; a stale one on the Hub would be loaded with the new files."""

EVAL_RESULTS = ".eval_results/hfcap.yaml"

_NAME_KEYS = ("_name_or_path", "name_or_path", "base_model_name_or_path", "tokenizer_file", "vocab_file")


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file of the staging folder: its path in the repository and its size in bytes."""

    path: str
    size: int


def stage_files(
    run: RunDirectory,
    model: Path | None = None,
    repo_id: str | None = None,
    verifiable: bool = True,
    trust_remote_code: bool = False,
    also_needed: Iterable[str] = (),
) -> Path:
    """Write run.publish again and return it; an earlier one stays until the new one is complete and checked.

    Args:
        model: folder with the weights, if not run.model (merged LoRA weights).
        repo_id: where it goes, if not to the recipe's publish.repo_id; the card's code names it.
        verifiable: with images and the model's captions of them, which `verify` compares; a run that has none yet
            loads its model and records them.
        trust_remote_code: that loading may run code that came with the model.
        also_needed: packages that the proof found missing on the card.

    Raises:
        UserError: no weights, a pickle in their place, an adapter without a base on the Hub, a secret in a file.
    """
    if verifiable and not (run.path / RECORD).is_file():
        _check_weights(read_card_input(run, repo_id, model))
        _record_drawn_images(run, model, trust_remote_code)
    if verifiable:
        note_packages(run, model or run.model, also_needed)
    known = read_card_input(run, repo_id, model)
    _check_weights(known)
    _require_scored_weights(run)
    with folder_being_written(run.publish) as folder:
        _copy_model(known, folder)
        _write_results(run, known, folder)
        write_text(folder / "recipe.yaml", published_recipe(known.recipe))
        if training_curve.has_curve(known.log):
            write_bytes(folder / training_curve.FILE_NAME, training_curve.draw_curve(known.log))
        if entries := eval_results_file(known):
            write_text(folder / EVAL_RESULTS, entries)
        write_text(folder / "README.md", render(known, existing_card(run)))
        if verifiable:
            copy_images(run, folder)
        refuse_secrets(folder, private_folders=(run.path, known.model))
        write_manifest(folder)
    return run.publish


def _record_drawn_images(run: RunDirectory, model: Path | None, trust_remote_code: bool) -> None:
    from hfcap.captioners.loading import load_captioner

    recipe = recipe_of_run(run)
    captioner = load_captioner(str(model or run.path), trust_remote_code=trust_remote_code)
    record_images(run, captioner, recipe.generate, samples=[])


def staged_files(folder: Path) -> list[StagedFile]:
    """Return the files of a staging folder, sorted by path."""
    return [
        StagedFile(path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def published_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with local paths replaced by path/to/<name>."""
    return strict_yaml.dump(portable(recipe.model_dump(mode="json")))


def _check_weights(known: RunFacts) -> None:
    folder = known.model
    if known.must_merge:
        raise UserError(
            f"{folder.parent}: the adapter belongs to a base model that was put together in this run, which nobody "
            "else has; merge it first (hfcap merge) and publish the merged weights"
        )
    if not folder.is_dir():
        raise UserError(f"{folder}: no trained model; run 'hfcap train' first")
    note = folder / "hfcap.json"
    if note.is_file() and (reason := read_json_object(note, "hfcap's note next to the weights").get("unpublishable")):
        raise UserError(f"{folder}: cannot be published: {reason}; train from another base")
    names = [path.name for path in folder.iterdir()]
    wanted = ADAPTER_WEIGHTS if known.is_adapter else FULL_WEIGHTS
    if not any(fnmatch.fnmatch(name, pattern) for name in names for pattern in wanted):
        pickles = [name for name in names if Path(name).suffix.lower() in PICKLES]
        hint = f" ({pickles[0]} is a pickle, which hfcap never publishes)" if pickles else ""
        raise UserError(f"{folder}: no {wanted[0]}{hint}; save the model with safetensors")
    if known.is_adapter and not known.base_models:
        raise UserError(
            f"{folder}: an adapter needs a base model on the Hub, and this run's was a local copy or put together "
            "here; give its Hub id in the recipe (publish.base_model), or publish the merged weights (--merged, or "
            "publish.merged in the recipe)"
        )


def _require_scored_weights(run: RunDirectory) -> None:
    """Refuse weights that are not those whose captions were scored: the card would tell of another model."""
    if not (run.path / RECORD).is_file():
        return
    scored, now = read_record(run.path)["weights"], weights_of(run.model)
    if changed := [name for name, value in scored.items() if now.get(name) != value]:
        raise UserError(
            f"{run.model / changed[0]}: is not the file that captioned and was scored; put it back, or caption and "
            f"score what is there now: hfcap caption {run.path} --force --accept-changes, then hfcap run {run.path}"
        )


def _copy_model(known: RunFacts, folder: Path) -> None:
    patterns = (
        (*ADAPTER_WEIGHTS, *ADAPTER_CONFIGURATION, *PROCESSOR)
        if known.is_adapter
        else (*FULL_WEIGHTS, *CONFIGURATION, *PROCESSOR)
    )
    _copy_files(known.model, folder, (*patterns, *CODE), known)
    for part in sorted(known.model.iterdir()):
        if part.is_dir() and any(fnmatch.fnmatch(part.name, pattern) for pattern in PARTS):
            (folder / part.name).mkdir()
            _copy_files(part, folder / part.name, (*FULL_WEIGHTS, *CONFIGURATION, *PROCESSOR, *CODE), known)


def _copy_files(source_folder: Path, folder: Path, patterns: tuple[str, ...], known: RunFacts) -> None:
    named = (*CONFIGURATION, *PROCESSOR)
    shard_size = size_in_bytes(known.recipe.publish.max_shard_size)
    code = needed_code(source_folder, [name for name in named if name.endswith("config.json")])
    for source in sorted(source_folder.iterdir()):
        if not any(fnmatch.fnmatch(source.name, pattern) for pattern in patterns) or not source.is_file():
            continue
        if source.suffix == ".py" and source.name not in code:
            continue
        if not re.fullmatch(r"[\w.-]+", source.name, re.ASCII):
            raise UserError(f"{source_folder}: {source.name!r} is no name for a published file; rename or delete it")
        if source.is_symlink() and not source.resolve().is_relative_to(known.model.resolve()):
            raise UserError(f"{source}: a link to a file outside the model folder; put the file itself there")
        target = folder / source.name
        if source.suffix == ".json" and source.name not in ("tokenizer.json", "vocab.json"):
            content = read_json(source, "file of the model")
            # As transformers writes it: some configurations hold infinite bounds.
            write_text(
                target, json.dumps(_published_config(content, source, known), indent=2, ensure_ascii=False) + "\n"
            )
        elif source.name == "model.safetensors" and source.stat().st_size > shard_size:
            _write_shards(source, folder, shard_size)
        else:
            shutil.copyfile(source, target)


def _published_config(content: Any, source: Path, known: RunFacts) -> Any:
    """Replace names that point to folders of this machine by Hub ids, or drop them."""
    if isinstance(content, list):
        return [_published_config(item, source, known) for item in content]
    if not isinstance(content, dict):
        return content
    changed = {}
    for key, value in content.items():
        if key in _NAME_KEYS and isinstance(value, str):
            if source.name == "adapter_config.json" and key == "base_model_name_or_path":
                changed[key] = known.base_models[0]["id"]
            elif not _is_local(value):
                changed[key] = value
        else:
            changed[key] = _published_config(value, source, known)
    if source.name == "adapter_config.json" and "base_model_name_or_path" in content:
        changed["revision"] = known.base_models[0]["revision"]
    return changed


def _is_local(value: str) -> bool:
    return is_machine_path(value) or value.count("/") > 1 or "\\" in value or Path(value).is_dir()


def _write_shards(source: Path, folder: Path, max_shard_size: int) -> None:
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import load_file

    save_torch_state_dict(
        load_file(source),
        folder,
        max_shard_size=max_shard_size,
        metadata={"format": "pt"},
        safe_serialization=True,
    )


def _write_results(run: RunDirectory, known: RunFacts, folder: Path) -> None:
    for name in (known.split, *(f"{known.split}.{baseline}" for baseline in known.baselines)):
        if run.scores(name).is_file():
            scores = read_json_object(run.scores(name), "scores")
            signature = portable(scores.get("signature", {}))
            target = folder / "scores" / f"{name}.json"
            if signature == scores.get("signature", {}):
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(run.scores(name), target)
            else:
                write_json(target, {**scores, "signature": signature})
        if run.predictions(name).is_file():
            rows = [row for _, row in read_json_lines(run.predictions(name), "predictions", finite=True)]
            for row in rows:
                row["file_name"] = portable(one_line(str(row.get("file_name", ""))))
            write_json_lines(folder / "predictions" / f"{name}.jsonl", rows)
