"""Comparing score files, run directories and prediction files: intervals, significance, leaderboards."""

from hfcap.comparison.evidence import PictureSource
from hfcap.comparison.leaderboard import compare
from hfcap.comparison.rendering import leaderboard_json, leaderboard_markdown, leaderboard_table
from hfcap.comparison.result import Comparison, Difference
from hfcap.comparison.writing import write_leaderboard

__all__ = [
    "Comparison",
    "Difference",
    "PictureSource",
    "compare",
    "leaderboard_json",
    "leaderboard_markdown",
    "leaderboard_table",
    "write_leaderboard",
]
