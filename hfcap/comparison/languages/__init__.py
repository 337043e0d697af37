"""Systems scored in several languages: one column per language, tests within each column only."""

from hfcap.comparison.languages.naming import named_by_files
from hfcap.comparison.languages.page import language_page
from hfcap.comparison.languages.rendering import PrintableLanguages, language_json, language_markdown, language_table
from hfcap.comparison.languages.table import compare_languages

__all__ = [
    "PrintableLanguages",
    "compare_languages",
    "language_json",
    "language_markdown",
    "language_page",
    "language_table",
    "named_by_files",
]
