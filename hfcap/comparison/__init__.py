"""Comparing score files, run directories and prediction files: intervals, significance, leaderboards."""

from hfcap.comparison.conditions import in_several_languages
from hfcap.comparison.examples import ImageSource
from hfcap.comparison.languages import compare_languages, language_table, named_by_files
from hfcap.comparison.leaderboard import compare, compare_systems
from hfcap.comparison.rendering import leaderboard_json, leaderboard_markdown, leaderboard_table
from hfcap.comparison.result import Comparison, Difference, LanguageComparison
from hfcap.comparison.systems import System, read_system, read_systems
from hfcap.comparison.writing import write_language_table, write_leaderboard

__all__ = [
    "Comparison",
    "Difference",
    "ImageSource",
    "LanguageComparison",
    "System",
    "compare",
    "compare_languages",
    "compare_systems",
    "in_several_languages",
    "language_table",
    "leaderboard_json",
    "leaderboard_markdown",
    "leaderboard_table",
    "named_by_files",
    "read_system",
    "read_systems",
    "write_language_table",
    "write_leaderboard",
]
