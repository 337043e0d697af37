"""How far a run is: its stages, the training's step and remaining time, last values, samples and scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from hfcap.errors import UserError
from hfcap.recipe.blocks import Recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.recipe import recipe_of_run
from hfcap.schema import ScoreReport
from hfcap.scoring.report_files import read_scores
from hfcap.scoring.score_table import metric_name, shown_score
from hfcap.training.records.log_file import read_log

STAGES = ("train", "caption", "score", "card", "publish")


@dataclass(frozen=True)
class RunStatus:
    """What the files of a run say.

    Attributes:
        works: whether a command is working on the run now.
        next_stage: the first that is not done; None where all are.
        total: updates of the whole training; None where nobody knows yet.
        seconds_left: of training, without validations; None where nobody knows, 0 where it is done.
        rows: of log.jsonl.
        validation: the last row of a validation; empty before the first.
        samples: its captions of the same images each time.
    """

    path: Path
    works: bool
    next_stage: str | None
    step: int = 0
    total: int | None = None
    seconds_left: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)
    validation: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)
    scores: ScoreReport | None = field(default=None, repr=False)

    def lines(self) -> Iterator[str]:
        """Yield the status as lines for a person."""
        yield f"{self.path}: {self.summary}"
        if self.rows:
            yield self.progress
        if self.validation:
            yield f"validation at step {self.validation['step']}: {values_of_validation(self.validation)}"
        yield from (f"  {sample['image_id']}: {sample['caption']}" for sample in self.samples)
        if self.scores is not None:
            named = (f"{metric_name(name)} {shown_score(name, value)}" for name, value in self.scores.metrics.items())
            yield f"scores of {self.scores.split}: {', '.join(named)}"

    @property
    def summary(self) -> str:
        """What is going on, in a few words."""
        if self.next_stage is None:
            return "every stage is done"
        return f"{'working on' if self.works else 'stopped before the end of'} stage {self.next_stage!r}"

    @property
    def progress(self) -> str:
        """Step, loss, speed and remaining time."""
        last: dict[str, Any] = next((row for row in reversed(self.rows) if "loss" in row), {})
        parts = [f"step {self.step:,}{f' of {self.total:,}' if self.total else ''}"]
        parts += [f"epoch {last['epoch']:.2f}"] if number_in(last, "epoch") else []
        parts += [f"loss {last['loss']:.3f}"] if number_in(last, "loss") else []
        parts += [f"{last['images_per_second']:.1f} images/s"] if number_in(last, "images_per_second") else []
        if self.seconds_left:
            parts.append(f"about {timedelta(seconds=round(self.seconds_left))} left, validations not counted")
        return ", ".join(parts)


def number_in(row: dict[str, Any], key: str) -> bool:
    """Whether a row of the log has a finite number under a key; a log may come from anybody."""
    value = row.get(key)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def values_of_validation(row: dict[str, Any]) -> str:
    """Return the values of a validation as the training says them."""
    names = [key for key in row if key.startswith("validation_") and number_in(row, key)]
    return ", ".join(f"{name.removeprefix('validation_')} {row[name]:.4f}" for name in names)


def run_status(path: Path) -> RunStatus:
    """Read how far a run is; nothing is written, and a command that works on it is not disturbed.

    Raises:
        UserError: this is no run directory, or a file in it is damaged.
    """
    run = RunDirectory.existing(path)
    recipe = recipe_of_run(run)
    rows = read_log(run.log) if run.log.is_file() else []
    validations = [row for row in rows if any(key.startswith("validation_") for key in row)]
    last = validations[-1] if validations else {}
    step, total = max((row["step"] for row in rows), default=0), _total_steps(recipe, rows)
    trained = run.summary.is_file()
    scores = run.scores(recipe.score.split)
    done = {
        "train": trained,
        "caption": run.predictions(recipe.score.split).is_file(),
        "score": scores.is_file(),
        "card": run.card.is_file(),
        "publish": run.publish.is_dir(),
    }
    return RunStatus(
        path,
        works=_is_held(run),
        next_stage=next((stage for stage in STAGES if not done[stage]), None),
        step=step,
        total=total,
        seconds_left=0.0 if trained else _seconds_left(rows, step, total),
        rows=rows,
        validation=last,
        samples=samples_of(last),
        scores=read_scores(scores) if done["score"] else None,
    )


def samples_of(row: dict[str, Any]) -> list[dict[str, str]]:
    """Return the sample captions of a row of the log: image_id and caption each."""
    listed = row.get("samples")
    found = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    keys = ("image_id", "caption")
    return [{key: one[key] for key in keys} for one in found if all(isinstance(one.get(key), str) for key in keys)]


def _total_steps(recipe: Recipe, rows: list[dict[str, Any]]) -> int | None:
    if recipe.train.max_steps is not None:
        return recipe.train.max_steps
    counted = [row for row in rows if number_in(row, "epoch") and row["epoch"] > 0]
    if not counted or recipe.train.num_train_epochs is None:
        return None
    return round(counted[-1]["step"] / counted[-1]["epoch"] * recipe.train.num_train_epochs)


def _seconds_left(rows: list[dict[str, Any]], step: int, total: int | None) -> float | None:
    timed = [row for row in rows if number_in(row, "train_seconds") and row["step"] > 0]
    if not timed or total is None:
        return None
    return max(0, total - step) * float(timed[-1]["train_seconds"]) / timed[-1]["step"]


def _is_held(run: RunDirectory) -> bool:
    """Whether another process holds the lock of a run; a killed one left the file and holds nothing."""
    from filelock import FileLock, Timeout

    if not run.lock.exists():
        return False
    lock = FileLock(run.lock)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except (NotImplementedError, PermissionError):
        return False


def runs_status(paths: list[Path]) -> list[RunStatus]:
    """Read several runs.

    Raises:
        UserError: one is named twice, or `run_status` raises.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"{paths[0]}, ...: a run is named twice; name each run once")
    return [run_status(path) for path in paths]
