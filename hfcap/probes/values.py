"""What answers to yes-no questions are worth: accuracy, precision, recall, F1 and the share of yes, with intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from hfcap.metrics.shared.bootstrap import Columns, percentile_intervals, resampled_sums
from hfcap.probes.questions import KINDS, Question
from hfcap.scoring.score_table import shown_score

VALUES = ("accuracy", "precision", "recall", "f1", "yes_ratio")
"""Yes is the positive answer, as in POPE."""

_NO = frozenset({"no", "not", "none", "isn't", "aren't", "don't", "doesn't", "cannot", "can't", "without"})


@dataclass(frozen=True)
class ProbeReport:
    """What a captioner answered.

    Attributes:
        values: kind -> value of VALUES; None where undefined.
        intervals: likewise, (lower, upper) of the bootstrap over images.
        n_images: how many were asked about. n_questions: kind -> how many.
        unanswered: questions without an answer, which count as wrong and as neither yes nor no.
        signature: conditions of the values.
    """

    values: dict[str, dict[str, float | None]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    n_images: int
    n_questions: dict[str, int]
    unanswered: int
    signature: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the content of probe.json."""
        return {"schema_version": 1, **vars(self)}


def says_yes(answer: str) -> bool | None:
    """Return what the first sentence of an answer says, None where it says nothing.

    As in POPE's evaluation, an answer with "no" or "not" is a no and every other one a yes ("There is a dog.").
    """
    first = re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0]
    words = re.findall(r"[a-z]+(?:'[a-z]+)?", first.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return None if not words else not any(word in _NO for word in words)


def probe_values(
    questions: Sequence[Question],
    answers: Mapping[str, str],
    signature: Mapping[str, Any],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    confidence_level: float = 0.95,
) -> ProbeReport:
    """Return the values of the answers; the questions of an image are resampled together.

    Args:
        answers: key of a question -> text; questions without one (of images that cannot be read) are left out.
    """
    asked = [question for question in questions if question.key in answers]
    said = {question.key: says_yes(answers[question.key]) for question in asked}
    image_ids = list(dict.fromkeys(question.image_id for question in asked))
    place = {image_id: number for number, image_id in enumerate(image_ids)}
    kinds = [kind for kind in KINDS if any(kind in question.kinds for question in asked)]
    values: dict[str, dict[str, float | None]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    for kind in kinds:
        rows = np.zeros((len(image_ids), 5))
        for question in (question for question in asked if kind in question.kinds):
            yes = said[question.key]
            right = yes is not None and yes == question.present
            rows[place[question.image_id]] += (right, bool(yes), bool(yes) and right, question.present, 1)
        found = _values(rows.sum(axis=0))
        values[kind] = {name: None if np.isnan(found[n]) else float(found[n]) for n, name in enumerate(VALUES)}
        drawn = _values(resampled_sums(Columns([rows]), n_resamples, seed))
        columns = {name: drawn[:, number] for number, name in enumerate(VALUES)}
        intervals[kind] = percentile_intervals(columns, confidence_level)
    counts = {kind: sum(kind in question.kinds for question in asked) for kind in kinds}
    bootstrap = {"confidence_level": confidence_level, "n_resamples": n_resamples, "seed": seed}
    unanswered = sum(yes is None for yes in said.values())
    return ProbeReport(values, intervals, len(image_ids), counts, unanswered, {**signature, "bootstrap": bootstrap})


def _values(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Accuracy, precision, recall, F1 and share of yes from sums of (right, yes, right yes, there, all), (..., 5)."""
    right, yes, right_yes, there, total = np.moveaxis(sums, -1, 0)
    pairs = ((right, total), (right_yes, yes), (right_yes, there), (2 * right_yes, yes + there), (yes, total))
    shares = [np.divide(a, b, out=np.full_like(b, np.nan), where=b > 0) for a, b in pairs]
    return np.stack(shares, axis=-1)


def probe_table(report: ProbeReport) -> Table:
    """Return values x 100 with intervals, one row per kind of question."""
    table = Table(
        "objects that are not there", "questions", *VALUES, title=f"Questions about {report.n_images:,} images"
    )
    for kind, values in report.values.items():
        cells = []
        for name in VALUES:
            text = shown_score(name, values[name])
            if (interval := report.intervals[kind].get(name)) is not None and values[name] is not None:
                text += f" ({'-'.join(shown_score(name, bound) for bound in interval)})"
            cells.append(text)
        table.add_row(kind, f"{report.n_questions[kind]:,}", *cells)
    return table
