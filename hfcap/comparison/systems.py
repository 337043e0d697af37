"""What is known about one system of a comparison: its score file and, for a run directory, its costs and target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.errors import UserError
from hfcap.files import read_text
from hfcap.metrics.base import CaptionMetric
from hfcap.metrics.bleu import Bleu
from hfcap.metrics.shared.bootstrap import Floats
from hfcap.recipe import strict_yaml
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.records import read_summary
from hfcap.schema import ScoreReport
from hfcap.scoring import is_score_file, read_scores
from hfcap.scoring.image_values import ImageValues, Rows, column_of
from hfcap.scoring.verdict import BASELINE_NAMES

ScorePredictions = Callable[[Path], ScoreReport]
"""Scores one prediction file; all are scored against the same human captions."""

COSTS = (
    "parameters",
    "trainable_parameters",
    "train_seconds",
    "peak_memory_bytes",
    "images_per_second",
    "captions_per_second",
)
"""Keys of training_summary.json that a comparison shows."""


@dataclass(frozen=True)
class PublishedRow:
    """Scores that somebody published, besides which a run is shown; never tested against.

    Attributes:
        name: what the numbers are about.
        metrics: raw scale.
        source: where they were published.
        reproduced: a run of the recipe met them.
    """

    name: str
    metrics: dict[str, float]
    source: str
    reproduced: bool


@dataclass(frozen=True)
class System:
    """One row of a leaderboard.

    Attributes:
        name: unique in the comparison.
        path: what the user gave.
        report: the score file.
        costs: training costs the run recorded (keys of COSTS); empty for a plain score file.
        published: the recipe's target, if it names one.
        run: the run directory that the score file belongs to, if any.
        predictions: the captions that were scored, if it is known where they lie.
        baselines: values of the run's baselines on the same images (`score.baselines`), by name.
    """

    name: str
    path: Path
    report: ScoreReport
    costs: dict[str, float] = field(default_factory=dict)
    published: PublishedRow | None = None
    run: RunDirectory | None = None
    predictions: Path | None = None
    baselines: dict[str, dict[str, float | None]] = field(default_factory=dict)

    def statistics(self, metric: CaptionMetric) -> NDArray[np.float64] | None:
        """Return the metric's statistics, (N, S) in the order of sorted image ids; None where the file lacks them."""
        found = self.short_statistics(metric)
        return None if found is None else found.astype(np.float64, copy=False)

    def short_statistics(self, metric: CaptionMetric) -> Floats | None:
        """Return the same statistics in single precision where it holds them exactly, as it does counts."""
        if not self.report.per_image or not metric.summable:
            return None
        if metric.name in self.report.statistics:
            kept = self.report.statistics[metric.name]
            table: Floats = kept.table if isinstance(kept, Rows) else np.asarray(kept, dtype=np.float64)
            metric.check_width(table, str(self.path))
            return table[self._order]
        if not metric.is_mean:
            return None
        rows = np.stack([column_of(self.report.per_image, output) for output in metric.outputs], axis=1)[self._order]
        return None if np.isnan(rows).any() else rows

    @cached_property
    def image_ids(self) -> tuple[str, ...]:
        """Ids of the images whose values are known, sorted."""
        return tuple(sorted(self.report.per_image))

    def values(self, output: str) -> NDArray[np.float64]:
        """Return one value of each of `image_ids`, (N,) float64; NaN where it is undefined."""
        return column_of(self.report.per_image, output)[self._order]

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """Where each of `image_ids` stands in the score file."""
        ids = list(self.report.per_image)
        return np.asarray(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)

    def lengths(self) -> NDArray[np.float64] | None:
        """Return the words of each caption, (N,) in the order of sorted image ids; None where the file lacks them.

        They are those of the metric `length`, else of BLEU, whose brevity penalty needs them.
        """
        words = self.values("length_mean")
        if len(words) and not np.isnan(words).any():
            return words
        of_bleu = self.short_statistics(Bleu())
        return None if of_bleu is None else of_bleu[:, Bleu.words_column].astype(np.float64)


def _score_file(run: RunDirectory, split: str | None, recipe: dict[str, Any]) -> Path:
    chosen = split or (recipe.get("score") or {}).get("split") or "test"
    path = run.scores(str(chosen))
    if not path.is_file():
        there = sorted(found.stem for found in path.parent.glob("*.json"))
        known = f"; it has scores of {', '.join(there)}" if there else f"; run 'hfcap score {run.path}' first"
        raise UserError(f"{run.path}: no scores of split {chosen!r}{known}")
    return path


def _published(recipe: dict[str, Any], path: Path) -> PublishedRow | None:
    expect = recipe.get("expect")
    if not isinstance(expect, dict):
        return None
    metrics = {
        str(name): float(value)
        for name, value in (expect.get("metrics") or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    name = f"{recipe.get('name', path.name)} (published)"
    return PublishedRow(name, metrics, str(expect.get("source", "")), expect.get("reproduced") is True)


def _costs(run: RunDirectory) -> dict[str, float]:
    if not run.summary.is_file():
        return {}
    summary = read_summary(run.summary)
    return {key: float(summary[key]) for key in COSTS if summary.get(key) is not None}


def read_system(path: Path, split: str | None = None, score: ScorePredictions | None = None) -> System:
    """Read one system.

    Args:
        path: a run directory (its scores of `split`, else of the split its recipe scores), a score file, or a
            prediction file that `score` turns into a report.

    Raises:
        UserError: none of them, or a file in it is missing or malformed.
    """
    if not path.is_dir():
        return _system_of_file(path, score)
    run = RunDirectory.existing(path)
    try:
        recipe = strict_yaml.parse(read_text(run.recipe, "recipe")).value
    except strict_yaml.YamlProblem as error:
        raise UserError(f"{run.recipe}: {error}") from None
    if not isinstance(recipe, dict):
        raise UserError(f"{run.recipe}: expected keys and values")
    scores = _score_file(run, split, recipe)
    return System(
        path.resolve().name,
        path,
        _whole_scores(scores),
        _costs(run),
        _published(recipe, path),
        run,
        run.predictions(scores.stem),
        _baselines(run, scores.stem),
    )


def _whole_scores(path: Path) -> ScoreReport:
    """Read a score file; of a part of its images, which recorded cards keep, nothing can be tested."""
    report = read_scores(path)
    return report if len(report.per_image) == report.n_images else replace(report, per_image={})


def _baselines(run: RunDirectory, split: str) -> dict[str, dict[str, float | None]]:
    files = {name: run.scores(f"{split}.{name}") for name in BASELINE_NAMES}
    return {name: read_scores(path).metrics for name, path in files.items() if path.is_file()}


def _system_of_file(path: Path, score: ScorePredictions | None) -> System:
    if not path.exists():
        kinds = "a score file or " + ("a prediction file" if score else "(with --references) a prediction file")
        raise UserError(f"{path}: no such file or folder; give a run directory, {kinds}")
    if path.is_file() and not is_score_file(path):
        if score is None:
            raise UserError(
                f"{path}: no score file; to compare prediction files, give their human captions (--references FILE)"
            )
        return System(path.stem, path, score(path), predictions=path)
    run = RunDirectory(path.absolute().parent.parent)
    if path.absolute() == run.scores(path.stem) and run.recipe.is_file():
        return System(path.stem, path, _whole_scores(path), run=run, predictions=run.predictions(path.stem))
    return System(path.stem, path, _whole_scores(path))


def _share_ids(systems: Sequence[System]) -> None:
    """Let the last system hold the ids of its images as the very objects of the one before, if they are the same."""
    last = [system.report.per_image for system in systems[-2:]]
    if len(last) == 2 and isinstance(last[0], ImageValues) and isinstance(last[1], ImageValues):
        last[1].image_ids = last[0].image_ids if last[0].image_ids == last[1].image_ids else last[1].image_ids


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir() or RunDirectory(path).recipe.is_file():
        return [path]
    return [file for file in sorted(path.glob("*.json")) if file.is_file() and is_score_file(file)] or [path]


def read_systems(
    paths: Sequence[Path], split: str | None = None, score: ScorePredictions | None = None
) -> list[System]:
    """Read all systems and give those of equal names their folders in front.

    A folder of score files that is no run directory stands for these files.

    Raises:
        UserError: a path cannot be read or scored, or is given twice.
    """
    paths = [file for path in paths for file in _files_of(path)]
    resolved = [path.resolve() for path in paths]
    for position, path in enumerate(resolved):
        if path in resolved[:position]:
            raise UserError(f"{paths[position]}: given twice; give each run or score file once")
    systems: list[System] = []
    for path in paths:
        systems.append(read_system(path, split, score))
        _share_ids(systems)
    names = [system.name for system in systems]
    # runs/a/scores/test.json and runs/b/scores/test.json are told apart by the whole path.
    return [replace(system, name=str(system.path)) if names.count(system.name) > 1 else system for system in systems]
