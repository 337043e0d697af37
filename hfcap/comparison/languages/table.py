"""Systems in several languages: each language a comparison of its own, corrected together, and means over all.

Numbers of two languages are never compared: words are something else in each (docs/metrics.md, "Other languages").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hfcap.comparison.conditions import differing
from hfcap.comparison.leaderboard import (
    compared_values,
    corrected_differences,
    paired_to_best,
    require_resamples,
)
from hfcap.comparison.result import Comparison, LanguageComparison
from hfcap.comparison.systems import System
from hfcap.errors import UserError
from hfcap.metrics.base import CaptionMetric
from hfcap.metrics.shared.caption_files import Warn, warn_on_terminal
from hfcap.metrics.shared.tokenizer import TOKENIZER_VERSION
from hfcap.scoring.signature import flattened, language_of
from hfcap.scoring.verdict import MAIN_METRICS

_N_NAMED = 4

NAMED_SO = (
    "the score files of a system are named SYSTEM.LANGUAGE.json, or LANGUAGE.json in a folder SYSTEM; in Python give "
    "name -> files"
)
"""How score files say which system they are of."""


def compare_languages(
    systems: Sequence[System],
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
    confidence_level: float = 0.95,
    warn: Warn = warn_on_terminal,
) -> LanguageComparison:
    """Compare systems within each language that they were scored in.

    Tests are those of `compare_systems`, paired over the images of one language; Holm's correction is over all of them.

    Args:
        systems: one for each score file; those of one name are a system in several languages.
        n_resamples: of the bootstrap and of the permutation test, at least 100.
        seed: of both; recorded.
        confidence_level: of the intervals.
        warn: receives everything that makes the comparison less than equal.

    Raises:
        UserError: there is none, a score file does not say its language, a system has two in one language, nothing
            connects the files, or within a language images, human captions or tokenisers differ.
    """
    if not systems:
        raise UserError("nothing to compare: give score files of several languages")
    require_resamples(n_resamples)
    settings = {"n_resamples": n_resamples, "seed": seed, "confidence_level": confidence_level}
    columns, metrics, said = _columns(_groups(systems), settings)
    outputs = tuple(dict.fromkeys(output for column in columns.values() for output in column.outputs))
    means = _means(columns, metrics, said)
    ranking = next(
        (name for name in (*MAIN_METRICS, *outputs) if any(name in column.best for column in columns.values())), None
    )
    for message in said:
        warn(message)
    return LanguageComparison(
        systems=tuple(_ordered(systems, means.get(ranking or "", {}), columns, ranking)),
        languages=tuple(columns),
        columns=columns,
        outputs=outputs,
        ranking=ranking,
        means=means,
        warnings=tuple(said),
        settings=settings,
    )


def _columns(
    groups: dict[str, list[System]], settings: dict[str, Any]
) -> tuple[dict[str, Comparison], list[list[CaptionMetric]], list[str]]:
    """Each language's comparison, corrected together; the comparable metrics of each; warnings, each said once."""
    found: dict[str, tuple[Comparison, list[CaptionMetric]]] = {}
    warnings: dict[str, list[str]] = {}
    for language, members in groups.items():
        found[language] = compared_values(members, settings, lambda message: None)
        for message in found[language][0].warnings:
            warnings.setdefault(message, []).append(language)
    paired = [
        paired_to_best(groups[language], metrics, column.best, settings)
        for language, (column, metrics) in found.items()
    ]
    columns = {
        language: replace(column, differences=differences)
        for (language, (column, _)), differences in zip(found.items(), corrected_differences(paired), strict=True)
    }
    said = [f"{_listed(languages)}: {message}" for message, languages in warnings.items()]
    return columns, [metrics for _, metrics in found.values()], said


def _listed(languages: Sequence[str]) -> str:
    more = f" and {len(languages) - _N_NAMED} more" if len(languages) > _N_NAMED else ""
    return ", ".join(languages[:_N_NAMED]) + more


def _groups(systems: Sequence[System]) -> dict[str, list[System]]:
    """Language -> its systems, languages in alphabetical order.

    Raises:
        UserError: see `compare_languages`.
    """
    found: dict[str, list[System]] = {}
    for system in systems:
        language = _language(system, systems)
        there = found.setdefault(language, [])
        if (twice := next((one for one in there if one.name == system.name), None)) is not None:
            raise UserError(
                f"{twice.path} and {system.path}: {system.name!r} has two score files in {language}; give one for each "
                f"system and language ({NAMED_SO})"
            )
        there.append(system)
    names = {system.name for system in systems}
    if len(found) > 1 and len(names) == len(systems) and all(len(members) == 1 for members in found.values()):
        first, other = systems[:2]
        raise UserError(
            f"{first.path} ({_language(first, systems)}) and {other.path} ({_language(other, systems)}): values of two "
            f"languages are not comparable, and no system is in two of them; give one system several files: {NAMED_SO}"
        )
    _check_captions(found)
    for language, members in found.items():
        _check_tokenizers(language, members)
    return dict(sorted(found.items()))


def _language(system: System, systems: Sequence[System]) -> str:
    """The language of a score file; of one that does not say it, that of another one with the same human captions."""
    signature = system.report.signature
    captions = signature.get("references_sha256")
    same = [one.report.signature for one in systems if one.report.signature.get("references_sha256") == captions]
    for known in (signature, *same):
        if (language := language_of(known)) is not None:
            return language
    raise UserError(
        f"{system.path}: the score file of an earlier hfcap does not say its language (tokeniser "
        f"{signature.get('tokenizer')}); score again with --language"
    )


def _check_captions(groups: dict[str, list[System]]) -> None:
    """Refuse captions that were scored as two languages: one of them is wrong."""
    seen: dict[str, tuple[str, System]] = {}
    for language, members in groups.items():
        for system in members:
            if (captions := system.report.signature.get("references_sha256")) is None:
                continue
            other, first = seen.setdefault(captions, (language, system))
            if other != language:
                raise UserError(
                    f"{first.path} ({other}) and {system.path} ({language}) were scored against the same human "
                    "captions in different languages; score them again with the --language of these captions"
                )


def _check_tokenizers(language: str, systems: Sequence[System]) -> None:
    """Refuse values on different words within a language."""
    first = systems[0]
    names = [str(system.report.signature.get("tokenizer", "unknown")) for system in systems]
    for system, name in zip(systems, names, strict=True):
        if name != names[0]:
            raise UserError(
                f"{first.path} and {system.path}: captions in {language} were split into words by different tokenisers "
                f"({names[0]} and {name}), so that their values are not comparable; score both again with the same "
                f"versions: hfcap score ... --language {language}"
            )
        if language != "en" and name == TOKENIZER_VERSION:
            raise UserError(
                f"{system.path}: captions in {language} were split into words as English ones; score them again: "
                f"hfcap score ... --language {language}"
            )


def _means(
    columns: dict[str, Comparison], metrics: Sequence[Sequence[CaptionMetric]], warnings: list[str]
) -> dict[str, dict[str, float]]:
    """Output -> name -> mean over all languages; appends a warning for each metric that differs between them."""
    everywhere = set.intersection(*({metric.name for metric in column} for column in metrics))
    means: dict[str, dict[str, float]] = {}
    for metric in [metric for metric in metrics[0] if metric.name in everywhere]:
        if conditions := _between_languages(columns, metric.name):
            warnings.append(f"{metric.name} has no mean: it was computed under other conditions: {conditions}")
            continue
        for output in metric.outputs if metric.higher_is_better is not None else ():
            values = [
                {one.name: value for one in column.systems if (value := one.report.metrics.get(output)) is not None}
                for column in columns.values()
            ]
            names = [name for name in values[0] if all(name in column for column in values)]
            if names:
                means[output] = {name: float(np.mean([column[name] for column in values])) for name in names}
    return means


def _between_languages(columns: dict[str, Comparison], metric: str) -> str:
    """Say which parameters of a metric differ between languages; "" where none does. Tokenisers always do."""
    first = []
    for language, column in columns.items():
        having = next(one for one in column.systems if metric in one.report.signature.get("metrics", {}))
        first.append(replace(having, name=language))
    conditions: list[dict[str, Any]] = [dict(flattened(one.report.signature["metrics"][metric] or {})) for one in first]
    return differing(first, conditions)


def _ordered(
    systems: Sequence[System], means: dict[str, float], columns: dict[str, Comparison], ranking: str | None
) -> list[str]:
    """Names by their mean, best first; those without one after them, as they were given."""
    names = list(dict.fromkeys(system.name for system in systems))
    direction = next((column.directions[ranking] for column in columns.values() if ranking in column.directions), 1.0)
    return sorted(names, key=lambda name: -direction * means[name] if name in means else np.inf)
