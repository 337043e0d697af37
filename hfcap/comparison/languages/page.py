"""The table of languages as one HTML file: verdict, a table for each value, differences, conditions."""

from __future__ import annotations

from typing import Any

from hfcap.comparison.languages.rendering import (
    MISSING,
    column_titles,
    condition_rows,
    difference_rows,
    is_worse,
    language_explanation,
    language_verdict,
    mean_title,
    signatures,
)
from hfcap.comparison.page import heading, shown_interval
from hfcap.comparison.rendering import shown_number
from hfcap.comparison.result import LanguageComparison
from hfcap.pages import render_page
from hfcap.text import counted


def language_page(found: LanguageComparison) -> str:
    """Return the page."""
    header, rows = condition_rows(found)
    return render_page(
        "comparison/languages/languages.html.jinja",
        "comparison/leaderboard.js",
        title="Captioners compared by language" if len(found.systems) > 1 else "Scores of one captioner by language",
        facts=f"{counted(len(found.systems), 'system')}, {counted(len(found.languages), 'language')}",
        verdict=language_verdict(found),
        warnings=found.warnings,
        columns=column_titles(found),
        tables=[_table(found, output) for output in found.main_first],
        explanation=language_explanation(found),
        conditions={"header": header, "rows": rows},
        signatures=signatures(found),
    )


def _table(found: LanguageComparison, output: str) -> dict[str, Any]:
    means = found.means.get(output, {})
    header, differences = difference_rows(found, output)
    column = next(one for one in found.columns.values() if output in one.outputs)
    return {
        "output": heading(column, output),
        "mean_title": mean_title(found) if means else "",
        "rows": [
            {
                "name": name,
                "cells": [_cell(found, name, language, output) for language in found.languages],
                "mean": shown_number(output, means.get(name)),
            }
            for name in found.systems
        ],
        "differences": {"header": header, "rows": differences} if differences else None,
    }


def _cell(found: LanguageComparison, name: str, language: str, output: str) -> dict[str, Any]:
    if found.system(name, language) is None:
        return {"value": MISSING, "interval": "", "kind": "absent"}
    column, value = found.columns[language], found.value(name, language, output)
    bounds = None if value is None else column.intervals[name].get(output)
    worse, best = is_worse(found, name, language, output), found.best(language, output) == name
    return {
        "value": shown_number(output, value) + ("*" if worse else ""),
        "interval": shown_interval(output, bounds),
        "kind": "best" if best else "significant" if worse else "absent" if value is None else "",
    }
