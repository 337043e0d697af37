"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.training.harness import recipe_values


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code and the two streams."""

    code: int
    out: str
    err: str


Hfcap = Callable[..., Outcome]


def write_recipe(folder: Path, family: str = "vit_gpt2", method: str = "full", **blocks: Any) -> Path:
    """A recipe file whose runs go into `folder`/runs; a block given as mapping is merged into the default one."""
    values = recipe_values(family, folder / "runs", method, max_steps=2)
    for name, block in blocks.items():
        merge = isinstance(block, dict) and isinstance(values.get(name), dict) and name != "data"
        values[name] = {**values[name], **block} if merge else block
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def assert_refused(outcome: Outcome, *fragments: str) -> None:
    """Exit code 2, nothing on standard output, one message on standard error that holds all fragments."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, outcome.err
    # Warnings of what was read before are no part of the message.
    said = [line for line in outcome.err.splitlines() if line.strip() and not line.startswith("warning: ")]
    assert said[0].startswith("error: "), outcome.err
    for fragment in fragments:
        assert fragment in outcome.err, outcome.err


def assert_nothing_half_written(folder: Path) -> None:
    """No temporary files, no model, no checkpoints, no predictions."""
    names = {path.name for path in folder.rglob("*")}
    assert not [name for name in names if name.startswith(".")], names
    assert names.isdisjoint({"model", "checkpoints", "predictions", "scores", "publish", "environment.json"}), names
