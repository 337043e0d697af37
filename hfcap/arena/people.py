"""What a judge is worth: how often it prefers the caption that people preferred."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hfcap import __version__
from hfcap.arena.duels import Duel, Outcome, decide
from hfcap.arena.kept_answers import kept_answers
from hfcap.arena.questions import PairwiseOptions
from hfcap.arena.ranking import FEW_RESAMPLES, bootstrap_settings
from hfcap.data.images import FileImage
from hfcap.errors import UserError
from hfcap.judgments import AgreementReport, Judgments, MetricAgreement
from hfcap.judgments.kendall import PairAccuracy
from hfcap.judgments.published import KNOWN_SETS
from hfcap.metrics.shared.bootstrap import percentile_intervals, resample_weights
from hfcap.metrics.shared.images import image_files
from hfcap.schema import ImageBytes


def people_agreement(
    judgments: Judgments,
    options: PairwiseOptions,
    *,
    answers: Path | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    confidence_level: float = 0.95,
) -> AgreementReport:
    """Ask a judge about pairs of captions that people compared; ties, and orders that disagree, count as half.

    Args:
        answers: file that keeps the judge's answers; those in it are not asked again.

    Raises:
        UserError: the judgments are ratings, images are missing, or the judge cannot be asked.
        WorkError: the judge cannot be reached.
    """
    if n_resamples < FEW_RESAMPLES:
        raise UserError(f"n_resamples must be at least {FEW_RESAMPLES} for intervals, not {n_resamples}")
    if not judgments.preferences:
        raise UserError(
            "--people: these judgments are ratings of single captions; give preferences, with columns 'better' and "
            "'worse', or measure the metric fleur on them: hfcap judge-metrics DATASET --metrics fleur"
        )
    images = _images(judgments, None if options.images is None else Path(options.images))
    captions = judgments.captions
    duels = [
        Duel(captions[pair.better].image, (captions[pair.better].text, captions[pair.worse].text), ("better", "worse"))
        for pair in judgments.preferences
    ]
    with kept_answers(answers) as kept:
        outcomes, judge = decide(duels, options, images, kept)
    numbers: dict[str, int] = {}
    image_of = np.asarray([numbers.setdefault(duel.image_id, len(numbers)) for duel in duels])
    return AgreementReport(
        title=KNOWN_SETS[judgments.layout].title,
        layout=judgments.layout,
        statistic="accuracy",
        n_images=len(numbers),
        n_captions=len(captions),
        n_judgments=len(judgments),
        is_complete=None,
        metrics=(_accuracy(judgments, outcomes, image_of, n_resamples, seed, confidence_level),),
        signature={"hfcap": __version__, "metrics": {"judge": judge}},
        settings=bootstrap_settings(n_resamples, seed, confidence_level),
        notes=(*judgments.notes, *_unread(outcomes)),
    )


def _accuracy(
    judgments: Judgments,
    outcomes: Sequence[Outcome],
    image_of: NDArray[np.int64],
    n_resamples: int,
    seed: int,
    confidence_level: float,
) -> MetricAgreement:
    """How often the judge is right, of all pairs and of each kind, with intervals over images."""
    points = np.asarray([outcome.points if outcome.is_read else 0.5 for outcome in outcomes])
    accuracy = PairAccuracy(points, 1.0 - points, [pair.group for pair in judgments.preferences])
    blocks = resample_weights(int(image_of.max()) + 1, n_resamples, seed)
    draws = np.stack([accuracy.values(weights[image_of]) for block in blocks for weights in block])
    names = accuracy.NAMES
    columns = {name: draws[:, place] for place, name in enumerate(names)}
    values = dict(zip(names, accuracy.values().tolist(), strict=True))
    return MetricAgreement("judge", values, percentile_intervals(columns, confidence_level), None, {})


def _unread(outcomes: Sequence[Outcome]) -> list[str]:
    count = sum(not outcome.is_read for outcome in outcomes)
    return [f"{count:,} pairs count as ties, because an answer named no better caption"] if count else []


def _images(judgments: Judgments, folder: Path | None) -> dict[str, ImageBytes]:
    names = dict.fromkeys(caption.image for caption in judgments.captions)
    if folder is not None:
        return {name: FileImage(path) for name, path in image_files(folder, tuple(names)).items()}
    found = {caption.image: caption.source for caption in judgments.captions if caption.source is not None}
    if len(found) < len(names):
        raise UserError("--people: these judgments hold no images; give their folder with --images")
    return found
