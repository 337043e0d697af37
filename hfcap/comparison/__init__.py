"""Comparing score files: intervals, significance, leaderboards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hfcap.comparison.leaderboard import Comparison, Difference, compare_systems
from hfcap.comparison.rendering import leaderboard_json, leaderboard_markdown, leaderboard_table, write_leaderboard
from hfcap.metrics.caption_files import Warn, warn_on_terminal

__all__ = [
    "Comparison",
    "Difference",
    "compare",
    "leaderboard_json",
    "leaderboard_markdown",
    "leaderboard_table",
    "write_leaderboard",
]


def compare(
    paths: Sequence[Path],
    output: Path | None = None,
    *,
    split: str | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
    confidence_level: float = 0.95,
    warn: Warn = warn_on_terminal,
) -> Comparison:
    """Compare run directories or score files; `console.print(leaderboard_table(...))` shows the result.

    Args:
        paths: at least one run directory or score file.
        output: folder for leaderboard.md and leaderboard.json; made if needed.
        split: which scores of a run directory; the split its recipe scores by default.
        n_resamples: of the bootstrap and of the permutation test, at least 100.
        seed: of both; recorded.
        confidence_level: of the intervals.
        warn: receives everything that makes the comparison less than equal.

    Raises:
        UserError: a path cannot be read, or the systems were scored on different images or human captions.
    """
    comparison = compare_systems(
        paths, split=split, n_resamples=n_resamples, seed=seed, confidence_level=confidence_level, warn=warn
    )
    if output is not None:
        write_leaderboard(comparison, output)
    return comparison
