"""Readers of what runs and captionings leave: run folders, checkpoints, unfinished output, models, weights."""

from __future__ import annotations

import functools
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import hfcap
from hfcap.captioners.loading import load_captioner
from hfcap.captioning.images import caption_images
from hfcap.captioning.options import decoding_options
from hfcap.card.render import missing_facts, write_card
from hfcap.data.source import load_split
from hfcap.errors import StoppedError, WorkError
from hfcap.publishing.secrets import refuse_secrets
from hfcap.publishing.staging import stage_files
from hfcap.publishing.verify_scores import check_numbers
from hfcap.recipe.blocks import Recipe
from hfcap.run.curves import write_curves
from hfcap.run.stages import make_accelerator
from hfcap.run.status import runs_status
from hfcap.run_directory.paths import RunDirectory
from hfcap.training.assemble import training_run
from hfcap.training.build import build_captioner, make_trainable
from hfcap.training.checkpoint import CHECKSUMS
from hfcap.training.loop import TrainingRun
from hfcap.training.records.log_file import read_log
from tests.data.sample_images import write_jpeg
from tests.fuzz.target import Target
from tests.publishing.run_builder import adapter_run, build_run, save_tiny_model
from tests.training.harness import forget_accelerator, send_signal_at, tiny_recipe, train

_RUN_FILES = (
    "run/*.json",
    "run/*.jsonl",
    "run/*.yaml",
    "run/*.md",
    "run/scores/*",
    "run/predictions/*",
    "run/verification/*.json",
)

logging.getLogger("transformers").setLevel(logging.CRITICAL)
warnings.simplefilter("ignore")
torch.set_num_threads(1)


# ---- finished runs -------------------------------------------------------------------------------------------------


def _make_run(place: Path) -> None:
    build_run(place / "run", publish={"samples_license": "cc-by-4.0"})


def _make_two_runs(place: Path) -> None:
    _make_run(place)
    shutil.copytree(place / "run", place / "other")


def _compare(place: Path, _names: Sequence[str]) -> None:
    comparison = hfcap.compare([place / "run", place / "other"], n_resamples=100, output=place / "page")
    str(comparison)


def _card(place: Path, _names: Sequence[str]) -> None:
    run = RunDirectory(place / "run")
    missing_facts(run)
    write_card(run)


def _status(place: Path, _names: Sequence[str]) -> None:
    runs = runs_status([place / "run"])
    for run in runs:
        list(run.lines())
    write_curves(runs, place / "curves.html")


def _stage(place: Path, _names: Sequence[str]) -> None:
    stage_files(RunDirectory(place / "run"))


def _make_published(place: Path) -> None:
    _make_run(place)
    stage_files(RunDirectory(place / "run"))
    (place / "run" / "publish").rename(place / "published")
    shutil.rmtree(place / "run")


def _check_published(place: Path, _names: Sequence[str]) -> None:
    check_numbers(place / "published", {})


def _make_weights(place: Path) -> None:
    save_file({"a": torch.zeros(3, 2), "b": torch.ones(4)}, place / "model.safetensors", {"format": "pt"})


def _scan(place: Path, _names: Sequence[str]) -> None:
    refuse_secrets(place)


# ---- stopped and finished trainings --------------------------------------------------------------------------------


def _training_recipe(place: Path) -> Recipe:
    return tiny_recipe("vit_gpt2", place, save_steps=1, eval_steps=2, save_total_limit=3, ema_decay=0.9)


def _make_stopped(place: Path, checksums: bool) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        send_signal_at(3, patch)
        train(_training_recipe(place))
    if not checksums:  # as an earlier version left them
        for path in place.rglob(CHECKSUMS):
            path.unlink()


@functools.cache
def _loop(place: Path) -> TrainingRun:
    recipe = _training_recipe(place)
    run = RunDirectory(place / recipe.name)
    forget_accelerator()
    splits: dict[str, Any] = {name: load_split(recipe.data, name) for name in ("train", "validation")}
    trainable = make_trainable(build_captioner(recipe, splits["train"]), recipe)
    return training_run(recipe, run, trainable, splits, make_accelerator(recipe, run))


def _resume(place: Path, _names: Sequence[str]) -> None:
    loop = _loop(place)
    loop._resume()
    read_log(loop.run.log) if loop.run.log.is_file() else None


def _train_on(place: Path, _names: Sequence[str]) -> None:
    try:
        train(_training_recipe(place))
    except WorkError as error:
        if "the summed loss is nan" not in str(error):
            raise
        # Weights of 1e38 are numbers, which nothing but training with them finds wrong.


def _finished(place: Path) -> dict[str, Any]:
    values = _training_recipe(place).model_dump(mode="json")
    return values | {"score": {"n_resamples": 10, "metrics": ["cider"], "baselines": ["most_frequent_caption"]}}


def _make_finished(place: Path) -> None:
    forget_accelerator()
    hfcap.train(_finished(place), until="card")


def _run_again(place: Path, _names: Sequence[str]) -> None:
    forget_accelerator()
    hfcap.train(place / "tiny", until="card")


# ---- captioning ----------------------------------------------------------------------------------------------------


def _make_unfinished(place: Path) -> None:
    save_tiny_model(place / "model", "blip", decoding_options({"max_new_tokens": 3, "num_beams": 1}))
    for letter in "abcd":
        write_jpeg(place / "images" / f"{letter}.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hfcap.captioning.partial_output.PartialOutput.remove", lambda _self: None)
        _caption(place, ())
    (part,) = place.glob("out.jsonl.part-*")
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:3]))
    (place / "out.jsonl").unlink()


def _caption(place: Path, _names: Sequence[str]) -> None:
    model = _captioner(place / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hfcap.captioning.images.ready_captioner", lambda *_: model)
        caption_images(str(place / "model"), [str(place / "images")], place / "out.jsonl", batch_size=1)


@functools.cache
def _captioner(folder: Path) -> Any:
    return load_captioner(str(folder))


def _make_model(place: Path, family: str) -> None:
    save_tiny_model(place / "model", family, decoding_options({"max_new_tokens": 3, "num_beams": 1}))


def _make_adapter(place: Path) -> None:
    run = build_run(place / "run", model={})
    save_tiny_model(place / "base", "blip", decoding_options({"max_new_tokens": 3, "num_beams": 1}))
    adapter_run(run, {"id": "base", "revision": None, "role": "captioner"}, str(place / "base"))
    run.model.rename(place / "model")
    shutil.rmtree(run.path)


def _load(place: Path, _names: Sequence[str]) -> None:
    captioner = hfcap.load_captioner(place / "model")
    captioner.caption(write_jpeg(place / "one.jpg"))


_MODEL_FILES = ("model/*.json", "model/*.txt", "model/*.safetensors")

TARGETS = (
    Target("compare", _make_two_runs, _compare, _RUN_FILES, writes=True, share=0.1, seconds_share=2),
    Target("card", _make_run, _card, _RUN_FILES, writes=True, share=0.3),
    Target("status", _make_run, _status, _RUN_FILES, writes=True, share=0.3),
    Target("staging", _make_run, _stage, (*_RUN_FILES, "run/model/*"), writes=True, share=0.1),
    Target(
        "published files",
        _make_published,
        _check_published,
        ("published/*.json*", "published/*.md", "published/*.yaml"),
        share=0.5,
    ),
    Target("secrets scan", _make_weights, _scan, share=1.0),
    Target(
        "checkpoints",
        functools.partial(_make_stopped, checksums=False),
        _resume,
        writes=True,
        share=0.5,
        seconds_share=2,
    ),
    Target(
        "checkpoints with checksums", functools.partial(_make_stopped, checksums=True), _resume, writes=True, share=0.2
    ),
    Target("training goes on", functools.partial(_make_stopped, checksums=False), _train_on, writes=True, share=0.02),
    Target(
        "run again",
        _make_finished,
        _run_again,
        ("tiny/*.json*", "tiny/*.yaml", "tiny/[ps]*/*", "tiny/model/*"),
        writes=True,
        share=0.02,
    ),
    Target("unfinished captions", _make_unfinished, _caption, ("out.jsonl.part-*",), writes=True, share=0.3),
    *(
        Target(f"model: {family}", functools.partial(_make_model, family=family), _load, _MODEL_FILES, share=0.1)
        for family in ("blip", "vit_gpt2", "clip_prefix", "image_text_to_text", "show_attend_tell", "retrieval")
    ),
    Target("model: adapter", _make_adapter, _load, (*_MODEL_FILES, "base/*.json"), share=0.1),
)
"""Readers that need torch."""
