"""Comparing score files, run directories and prediction files: intervals, significance, leaderboards."""

from hfcap.comparison.leaderboard import Comparison, Difference, compare
from hfcap.comparison.rendering import leaderboard_json, leaderboard_markdown, leaderboard_table, write_leaderboard

__all__ = [
    "Comparison",
    "Difference",
    "compare",
    "leaderboard_json",
    "leaderboard_markdown",
    "leaderboard_table",
    "write_leaderboard",
]
