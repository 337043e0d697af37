"""What a comparison found, in sentences: who is first, by how much, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Sequence

from hfcap.comparison.result import Comparison
from hfcap.comparison.systems import System
from hfcap.scoring.score_table import SIGNIFICANT, metric_name, shown_score
from hfcap.scoring.verdict import baseline_problem, main_score


def shown_p(value: float) -> str:
    """Return a p-value as text."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def verdict(comparison: Comparison) -> list[str]:
    """Return what the ranking value says, in sentences; of one system its main score."""
    output = comparison.ranking
    leader = comparison.systems[0]
    if output is None or len(comparison.systems) < 2:
        score = main_score(leader.report)
        return [] if score is None else [f"{leader.name}: {score}."]
    value = shown_score(output, leader.report.metrics.get(output))
    interval = comparison.intervals[leader.name].get(output)
    level = f"{comparison.settings['confidence_level']:.0%}"
    bounds = "" if interval is None else " to ".join(shown_score(output, bound) for bound in interval)
    sentences = [
        f"By {metric_name(output)}, {leader.name} is first: {value}{f' ({level} interval {bounds})' if bounds else ''}."
    ]
    tested = comparison.differences.get(output, {})
    groups: dict[str, list[str]] = {}
    for system in comparison.systems[1:]:
        found = tested.get(system.name)
        if found is None:
            groups.setdefault("Not tested against", []).append(system.name)
            continue
        ahead = shown_score(output, abs(found.paired.difference), digits=2)
        significant = found.corrected_p_value < SIGNIFICANT
        words = "Significantly better than" if significant else "No significant difference to"
        groups.setdefault(words, []).append(f"{system.name} (by {ahead}, {shown_p(found.corrected_p_value)})")
    sentences += [f"{words} {', '.join(names)}." for words, names in groups.items()]
    return sentences + _without_length(comparison, output)


def _without_length(comparison: Comparison, output: str) -> list[str]:
    """Say what is left of each lead where captions are equally long."""
    leader, sentences = comparison.systems[0].name, []
    for name, found in comparison.at_equal_length.get(output, {}).items():
        direction = comparison.directions[output]
        left = shown_score(output, abs(found.difference), digits=2)
        how = (
            "no significant difference is left"
            if not found.is_sure
            else (
                f"{leader} is better by {left}" if direction * found.difference < 0 else f"{name} is better by {left}"
            )
        )
        sentences.append(
            f"Captions of {leader} have {found.words_of_best:.1f} words, those of {name} {found.words:.1f}; "
            f"at equal length {how}."
        )
    return sentences


def beaten_by_baselines(systems: Sequence[System]) -> list[str]:
    """Return a sentence for each system that is no better than a baseline of its run that ignores the image."""
    found = ((system.name, baseline_problem(system.report.metrics, system.baselines)) for system in systems)
    return [f"{name} scores {problem}" for name, problem in found if problem is not None]
