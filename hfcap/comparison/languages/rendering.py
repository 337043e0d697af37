"""A table of languages as rich tables, Markdown and JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from hfcap.comparison.rendering import (
    as_text,
    difference_cell,
    markdown_table,
    score_cell,
    shown_number,
    system_json,
    upright,
)
from hfcap.comparison.result import LanguageComparison
from hfcap.pages.markdown import code, escape
from hfcap.scoring import signature_line
from hfcap.scoring.score_table import SIGNIFICANT, metric_name
from hfcap.text import counted, printable

MISSING = "missing"
"""Stands where a system has no score file in a language."""


def language_verdict(found: LanguageComparison) -> list[str]:
    """Return in which languages each system is best by the ranking value, and its mean, in sentences."""
    output = found.ranking
    if output is None:
        return []
    best = {language: found.best(language, output) for language in found.languages}
    compared = [language for language, name in best.items() if name is not None]
    sentences = []
    for name in found.systems:
        first = [language for language in compared if best[language] == name]
        if not first:
            continue
        sure = [language for language in first if _is_sure(found, name, language, output)]
        surely = "" if not sure else ", significantly better than every other system there"
        if sure and sure != first:
            surely = f", in {', '.join(sure)} significantly better than every other system there"
        of = f"{len(first)} of {counted(len(compared), 'language')}"
        sentences.append(f"By {metric_name(output)}, {name} is best in {of} ({', '.join(first)}){surely}.")
    if means := found.means.get(output):
        values = ", ".join(f"{name} {shown_number(output, means[name])}" for name in found.systems if name in means)
        sentences.append(f"Plain mean of the {len(found.languages)} columns, not tested: {values}.")
    return sentences


def _is_sure(found: LanguageComparison, name: str, language: str, output: str) -> bool:
    """Whether all other systems with this value are significantly worse in a language."""
    column = found.columns[language]
    tested = column.differences.get(output, {})
    others = [one.name for one in column.systems if one.name != name and one.report.metrics.get(output) is not None]
    return all(one in tested and tested[one].corrected_p_value < SIGNIFICANT for one in others)


def is_worse(found: LanguageComparison, name: str, language: str, output: str) -> bool:
    """Whether a system is significantly worse than the best one in a language."""
    difference = found.columns[language].differences.get(output, {}).get(name)
    return difference is not None and difference.corrected_p_value < SIGNIFICANT


def column_titles(found: LanguageComparison) -> list[tuple[str, str]]:
    """Return (language, how many images) of each column."""
    counts = ((language, found.columns[language].systems[0].report.n_images) for language in found.languages)
    return [(language, counted(number, "image")) for language, number in counts]


def value_rows(found: LanguageComparison, output: str) -> tuple[list[str], list[list[str]], set[tuple[int, int]]]:
    """Return header and rows of one value, a row per system; and (row, column) of the best of each language."""
    means = found.means.get(output, {})
    header = ["system", *(f"{language} ({images})" for language, images in column_titles(found))]
    header += [mean_title(found)] if means else []
    rows = []
    for name in found.systems:
        row = [name, *(_cell(found, name, language, output) for language in found.languages)]
        rows.append(row + ([shown_number(output, means.get(name))] if means else []))
    best = {
        (row, column)
        for row, name in enumerate(found.systems)
        for column, language in enumerate(found.languages, start=1)
        if found.best(language, output) == name
    }
    return header, rows, best


def mean_title(found: LanguageComparison) -> str:
    """Return the heading of the means."""
    return f"plain mean of {counted(len(found.languages), 'column')}"


def _cell(found: LanguageComparison, name: str, language: str, output: str) -> str:
    if found.system(name, language) is None:
        return MISSING
    mark = "*" if is_worse(found, name, language, output) else ""
    return score_cell(found.columns[language], name, output, found.value(name, language, output)) + mark


def difference_rows(found: LanguageComparison, output: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the differences to the best of each language; no rows where nothing was tested."""
    tested = [language for language in found.languages if found.columns[language].differences.get(output)]
    rows = [
        [name, *(difference_to_best(found, name, language, output) for language in tested)] for name in found.systems
    ]
    return ["system", *tested], rows if tested else []


def difference_to_best(found: LanguageComparison, name: str, language: str, output: str) -> str:
    """Return a system's difference to the best one of a language, with interval and p-value."""
    if found.system(name, language) is None:
        return MISSING
    if found.best(language, output) == name:
        return "best"
    return difference_cell(output, found.columns[language].differences[output].get(name))


def language_explanation(found: LanguageComparison) -> str:
    """Return what the numbers of the tables are."""
    settings = found.settings
    parts = [
        f"Values x 100 (counts and lengths as they are) with {settings['confidence_level']:.0%} bootstrap intervals. "
        "Each column is a language with words of its own: compare systems within a column, never two columns."
    ]
    if any(any(column.differences.values()) for column in found.columns.values()):
        parts.append(
            "* = worse than the best system of that language (paired permutation test over its images, p below "
            f"{SIGNIFICANT} after Holm's correction over all languages, values and systems; "
            f"{settings['n_resamples']:,} resamples, seed {settings['seed']})."
        )
    if found.means:
        parts.append(
            "The mean is the plain mean of the columns, of systems with a value in all of them; it is not tested and "
            "its size says nothing about any language."
        )
    if any(found.system(name, language) is None for name in found.systems for language in found.languages):
        parts.append(f"{MISSING} = no score file of this system in this language.")
    if any(set(column.outputs) < set(found.outputs) for column in found.columns.values()):
        parts.append("- = not computed in this language.")
    return " ".join(parts)


def condition_rows(found: LanguageComparison) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of what each language was scored under."""
    rows = []
    for language, images in column_titles(found):
        systems = found.columns[language].systems
        signature = systems[0].report.signature
        low, high = signature.get("references_per_image", [0, 0])
        human = str(low) if low == high else f"{low} to {high}"
        splits = ", ".join(dict.fromkeys(one.report.split for one in systems))
        words = str(signature.get("tokenizer", "unknown"))
        rows.append([language, images, human, splits, words, str(len(systems))])
    return ["language", "images", "human captions per image", "split", "tokeniser", "systems"], rows


def signatures(found: LanguageComparison) -> list[tuple[str, str, str]]:
    """Return (language, system, signature) of every score file."""
    return [
        (language, system.name, signature_line(system.report.signature))
        for language, column in found.columns.items()
        for system in column.systems
    ]


def language_table(found: LanguageComparison, with_warnings: bool = True) -> RenderableType:
    """Return the tables for a terminal: a row per language, because terminals have more rows than columns."""
    parts: list[RenderableType] = [Text(printable(sentence), style="bold") for sentence in language_verdict(found)]
    parts += [
        Text(printable(f"warning: {message}"), style="bold yellow") for message in found.warnings if with_warnings
    ]
    for output in found.main_first:
        header, rows, best = value_rows(found, output)
        parts.append(upright(header, rows, Text(printable(metric_name(output))), best))
    parts.append(Text(language_explanation(found), style="dim"))
    return Group(*parts)


class PrintableLanguages(LanguageComparison):
    """A comparison whose text is its tables, as `hfcap compare` prints them; for those who call it from Python."""

    def __str__(self) -> str:
        """Return the tables without colours, up to 160 characters wide."""
        return as_text(language_table(self))


def language_markdown(found: LanguageComparison) -> str:
    """Return the tables as Markdown, a row per system; names and messages of files are escaped."""
    parts = ["# Leaderboard by language", escape(" ".join(language_verdict(found)))]
    parts += [f"> **Warning:** {escape(message)}" for message in found.warnings]
    for output in found.main_first:
        parts += [f"## {escape(metric_name(output))}", markdown_table(*value_rows(found, output))]
        header, rows = difference_rows(found, output)
        if rows:
            parts += ["Differences to the best of each language:", markdown_table(header, rows)]
    parts += [escape(language_explanation(found)), "## Languages", markdown_table(*condition_rows(found))]
    lines = [
        f"- {escape(f'{language}, {name}')}: {code(line, in_table=False)}" for language, name, line in signatures(found)
    ]
    return "\n\n".join([*filter(None, parts), "## Signatures", "\n".join(lines)]) + "\n"


def language_json(found: LanguageComparison) -> dict[str, Any]:
    """Return the tables as JSON values on the raw scale."""
    return {
        "schema_version": 1,
        "settings": found.settings,
        "verdict": language_verdict(found),
        "systems": list(found.systems),
        "outputs": list(found.outputs),
        "ranking": found.ranking,
        "means": found.means,
        "languages": [
            {
                "language": language,
                "n_images": column.systems[0].report.n_images,
                "tokenizer": column.systems[0].report.signature.get("tokenizer"),
                "best": {
                    output: name for output in found.outputs if (name := found.best(language, output)) is not None
                },
                "systems": [system_json(column, system) for system in column.systems],
            }
            for language, column in found.columns.items()
        ],
        "warnings": list(found.warnings),
    }
