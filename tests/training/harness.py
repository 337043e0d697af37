"""Tiny real trainings: a recipe, its run directory, and the files that training leaves there."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from hfcap import registry
from hfcap.captioners.base import Captioner
from hfcap.data.source import load_split
from hfcap.files import read_json, read_json_lines
from hfcap.recipe.blocks import Recipe, TrainOptions
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.run.stages import make_accelerator
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import CaptionedImage
from hfcap.training.checkpoint import checkpoint_path, checkpoint_steps
from hfcap.training.optimization import parameter_groups
from hfcap.training.records.log import TrainingLog
from hfcap.training.train import train_stage

METHODS = ("full", "lora")
REPOSITORY = Path(__file__).parents[2]


def _family(captioner: str) -> Any:
    return registry.load("captioners", captioner).REGISTERED


FAMILIES = tuple(name for name in registry.names("captioners") if _family(name).trains_by_gradients)
"""All families that train by gradients, as the registry knows them."""
SOME_FAMILIES = ("blip", "clip_prefix", "vit_gpt2")
"""Cross-attention of its own, a prefix, a joined decoder: for slow tests of the loop rather than of a family."""

_VISION = ("vision_config", "encoder_config")
_DROPOUTS = {
    "n_embd": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "hidden_size": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "decoder_layers": ("dropout",),
}
"""A key by which GPT-2's, BERT's and our own architectures are known -> how they call their dropouts."""


def tiny_model(captioner: str, dropout: float = 0.1) -> dict[str, Any]:
    """The family's tiny captioner with this dropout in its text half."""
    family = _family(captioner)
    model: dict[str, Any] = family.tiny()
    blocks = [model]
    while blocks:
        block = blocks.pop()
        blocks += [inner for key, inner in block.items() if isinstance(inner, dict) and key not in _VISION]
        if block is not model:
            known = [names for sign, names in _DROPOUTS.items() if sign in block]
            block.update({name: dropout for names in known for name in names})
    return model | {key: dropout for key in family.options_class.model_fields if "dropout" in key}


def recipe_values(
    captioner: str,
    output_dir: Path,
    method: str = "full",
    dropout: float = 0.1,
    data: Mapping[str, Any] | None = None,
    **train: Any,
) -> dict[str, Any]:
    """A recipe as a mapping; keywords go into its `train` block."""
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": dropout, "init_lora_weights": "gaussian"}
    duration = {} if "num_train_epochs" in train else {"max_steps": 4}
    return {
        "name": "tiny",
        "output_dir": str(output_dir),
        "captioner": captioner,
        "model": tiny_model(captioner, dropout),
        "data": {"source": "scenes", "n_train": 7, "n_validation": 4, "n_test": 5, "image_size": 32, **(data or {})},
        "lora": lora if method == "lora" else None,
        "train": {
            **duration,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "dataloader_num_workers": 0,
            "sample_captions": 0,
            **train,
        },
        "generate": {"num_beams": 2, "max_new_tokens": 6},
        "score": {"n_resamples": 10, "baselines": ["most_frequent_caption", "blank_images"]},
        "publish": {"license": "apache-2.0"},
    }


def tiny_recipe(captioner: str, output_dir: Path, method: str = "full", **options: Any) -> Recipe:
    """The same as a checked Recipe."""
    return recipe_from_mapping(recipe_values(captioner, output_dir, method, **options), "harness")


def ragged(records: Sequence[CaptionedImage]) -> list[CaptionedImage]:
    """The records with one to five captions each."""
    return [replace(record, captions=record.captions[: 1 + number % 5]) for number, record in enumerate(records)]


def forget_accelerator() -> None:
    """Let the next Accelerator of this process have other settings."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@dataclass
class Result:
    """What a training left in its run directory."""

    run: RunDirectory

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for _, row in read_json_lines(self.run.log, "log")]

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows if "loss" in row]

    @property
    def summary(self) -> Any:
        return read_json(self.run.summary, "summary")

    @property
    def steps(self) -> list[int]:
        return checkpoint_steps(self.run.checkpoints)

    def checkpoint(self, step: int) -> Path:
        return checkpoint_path(self.run.checkpoints, step)

    def state(self, step: int) -> Any:
        return read_json(self.checkpoint(step) / "state.json", "state")

    def weights(self, step: int, name: str = "model") -> dict[str, torch.Tensor]:
        return load_file(self.checkpoint(step) / f"{name}.safetensors")

    def model_weights(self) -> dict[str, torch.Tensor]:
        (path,) = self.run.model.glob("*.safetensors")
        return load_file(path)


def train(recipe: Recipe, splits: Mapping[str, Sequence[CaptionedImage]] | None = None) -> Result:
    """Train (or continue) in this process."""
    forget_accelerator()
    run = RunDirectory(Path(recipe.output_dir) / recipe.name)
    if splits is None:
        splits = {"train": load_split(recipe.data, "train"), "validation": load_split(recipe.data, "validation")}
    train_stage(recipe, run, splits, make_accelerator(recipe, run))
    return Result(run)


def send_signal_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Send this process a signal when the log row of an update is written."""
    write = TrainingLog.write

    def write_and_signal(self: TrainingLog, row: dict[str, Any]) -> None:
        write(self, row)
        if row["step"] == step and "loss" in row:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainingLog, "write", write_and_signal)


def assert_same_tensors(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """Same names, every bit the same."""
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def plain_descent(captioner: Captioner, options: TrainOptions) -> torch.optim.Optimizer:
    """Gradient descent in the place of `build_optimizer`, for comparisons of two ways to the same gradient.

    AdamW divides a gradient by its own size: where it is nothing but rounding, so is the whole update, and weights
    then tell processors apart.
    """
    return torch.optim.SGD(parameter_groups(captioner, options), lr=options.learning_rate)


def assert_same_path(ours: Result, theirs: Result, step: int, earlier: int, name: str = "model") -> None:
    """Two trainings by `plain_descent` end at the same weights.

    They may differ by a thousandth of the longest way since the earlier checkpoint: gradients are float32 sums of a
    few hundred terms, each off by 2 ** -24. A caption that weighs too much shows in the first or second digit.
    """
    way = largest_difference(theirs.weights(step, name), theirs.weights(earlier, name))
    assert way > 1e-4
    assert largest_difference(ours.weights(step, name), theirs.weights(step, name)) < 1e-3 * way


def largest_difference(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference of any entry of tensors with the same names."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def launch(python: str, script: str, *arguments: object) -> None:
    """Run a script in two processes that talk over loopback, as `accelerate launch` or torchrun starts them."""
    command = [python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY)}
    # As in an accelerate configuration that says so: the recipe's number alone must count.
    environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
    done = subprocess.run(
        [*command, script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
