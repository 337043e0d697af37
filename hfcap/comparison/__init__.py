"""Comparing score files, run directories and prediction files: intervals, significance, leaderboards."""

from hfcap.comparison.examples import ImageSource
from hfcap.comparison.leaderboard import compare, compare_systems
from hfcap.comparison.rendering import leaderboard_json, leaderboard_markdown, leaderboard_table
from hfcap.comparison.result import Comparison, Difference
from hfcap.comparison.systems import System, read_system, read_systems
from hfcap.comparison.writing import write_leaderboard

__all__ = [
    "Comparison",
    "Difference",
    "ImageSource",
    "System",
    "compare",
    "compare_systems",
    "leaderboard_json",
    "leaderboard_markdown",
    "leaderboard_table",
    "read_system",
    "read_systems",
    "write_leaderboard",
]
