"""Captioners ranked by a judge: every pair on every image in both orders, Bradley-Terry strengths with intervals.

Shapes: N images, K systems, R resamples of the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap import __version__
from hfcap.arena.bradley_terry import EXTRA_TIES, bradley_terry, elo
from hfcap.arena.contestants import Contestants
from hfcap.arena.duels import Duel, Outcome, decide
from hfcap.arena.kept_answers import kept_answers
from hfcap.arena.questions import PairwiseOptions
from hfcap.errors import UserError
from hfcap.metrics.judging.agreement import measured, read_agreement
from hfcap.metrics.shared.bootstrap import Columns, percentile_intervals, resampled_sums

Floats = NDArray[np.float64]
FEW_RESAMPLES = 100
MEASURE = "hfcap judge --people JUDGMENTS -o FOLDER, and give its agreement.json with --agreement"


@dataclass(frozen=True)
class RankedSystem:
    """One system.

    Attributes:
        name: of the system.
        rating: Bradley-Terry strength on Elo's scale, mean 1000. interval: bootstrap over images.
        to_best: difference to the first one's rating, with its interval; None for the first one itself.
        wins, ties, losses: against all others, of the duels whose answers could be read.
    """

    name: str
    rating: float
    interval: tuple[float, float]
    to_best: tuple[float, tuple[float, float]] | None
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Pair:
    """How two systems did against each other: duels that `first` won, ties, that `second` won, not read."""

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    unread: int


@dataclass(frozen=True)
class Ranking:
    """What a judge thinks of captioners.

    Attributes:
        systems: best first. pairs: of all systems.
        n_images: images that were looked at. n_duels: pairs of different captions that the judge was asked about.
        orders_agree: share of duels in which the judge said the same in both orders; None of none.
        first_preferred: share of answers for the caption shown first, among answers for either; one half = no bias.
        n_unread: duels in which an answer said nothing; they do not count.
        agreement: with people, in words.
        signature: the judge and what it was asked. settings: of the bootstrap, and how ties count.
    """

    systems: tuple[RankedSystem, ...]
    pairs: tuple[Pair, ...]
    n_images: int
    n_duels: int
    orders_agree: float | None
    first_preferred: float | None
    n_unread: int
    agreement: str
    signature: dict[str, Any]
    settings: dict[str, Any]


def rank_systems(
    contestants: Contestants,
    options: PairwiseOptions,
    *,
    answers: Path | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    confidence_level: float = 0.95,
) -> Ranking:
    """Ask a judge which of two captions is better, for each pair of systems and image, and rank the systems.

    A duel is won where the judge prefers the same caption in both orders; all else is a tie, which counts as half a
    win for each. One more tie is added to each pair, so that strengths are finite. Intervals are percentiles of the
    bootstrap over images: all duels of an image are drawn together.

    Args:
        answers: file that keeps the judge's answers; those in it are not asked again.

    Raises:
        UserError: the judge cannot be asked, or an image is missing. WorkError: it cannot be reached.
    """
    if n_resamples < FEW_RESAMPLES:
        raise UserError(f"n_resamples must be at least {FEW_RESAMPLES} for intervals, not {n_resamples}")
    if options.agreement is not None:
        read_agreement(Path(options.agreement))
    names = list(contestants.captions)
    pairs = list(combinations(range(len(names)), 2))
    with kept_answers(answers) as kept:
        outcomes, judge = decide(_duels(contestants, names, pairs), options, contestants.images, kept)
    rows = [outcomes[start : start + len(pairs)] for start in range(0, len(outcomes), len(pairs))]
    ratings, draws = _ratings(win_counts(rows, pairs, len(names)), n_resamples, seed)
    path = None if options.agreement is None else Path(options.agreement)
    agree, first = _consistency(outcomes)
    asked = [outcome for outcome in outcomes if outcome.asked]
    counted = _counted(names, pairs, rows)
    return Ranking(
        systems=_ranked(names, ratings, draws, counted, confidence_level),
        pairs=counted,
        n_images=len(rows),
        n_duels=len(asked),
        orders_agree=agree,
        first_preferred=first,
        n_unread=sum(not outcome.is_read for outcome in asked),
        agreement=measured(path, "judge", judge, ("judge",), MEASURE)["judge"],
        signature={"hfcap": __version__, "metrics": {"judge": judge}},
        settings=bootstrap_settings(n_resamples, seed, confidence_level)
        | {"ties": "half a win for each", "extra_ties_per_pair": EXTRA_TIES},
    )


def bootstrap_settings(n_resamples: int, seed: int, confidence_level: float) -> dict[str, Any]:
    """Return what intervals depend on."""
    return {"n_resamples": n_resamples, "seed": seed, "confidence_level": confidence_level}


def _duels(contestants: Contestants, names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[Duel]:
    """Every pair of systems on every image, image after image."""
    captions = contestants.captions
    return [
        Duel(image_id, (captions[names[a]][image_id], captions[names[b]][image_id]), (names[a], names[b]))
        for image_id in contestants.image_ids
        for a, b in pairs
    ]


def win_counts(rows: Sequence[Sequence[Outcome]], pairs: Sequence[tuple[int, int]], n_systems: int) -> Floats:
    """Return how often each system was preferred to each other on each image, (N, K, K); a tie is half for both."""
    wins = np.zeros((len(rows), n_systems, n_systems))
    for number, row in enumerate(rows):
        for (a, b), outcome in zip(pairs, row, strict=True):
            if outcome.is_read:
                wins[number, a, b] = outcome.points
                wins[number, b, a] = 1.0 - outcome.points
    return wins


def _ratings(wins: Floats, n_resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Ratings of all images, (K,), and of resamples of the images, (R, K)."""
    n_images, k, _ = wins.shape
    drawn = resampled_sums(Columns([wins.reshape(n_images, k * k)]), n_resamples, seed).reshape(-1, k, k)
    return elo(bradley_terry(wins.sum(axis=0))), elo(bradley_terry(drawn))


def _consistency(outcomes: Sequence[Outcome]) -> tuple[float | None, float | None]:
    """Share of read duels whose orders agree, and of answers for the caption that was shown first."""
    read = [outcome for outcome in outcomes if outcome.asked and outcome.is_read]
    either = [verdict for outcome in read for verdict in outcome.verdicts if verdict != "tie"]
    agree = sum(outcome.agree for outcome in read) / len(read) if read else None
    return agree, sum(verdict == "first" for verdict in either) / len(either) if either else None


def _counted(
    names: Sequence[str], pairs: Sequence[tuple[int, int]], rows: Sequence[Sequence[Outcome]]
) -> tuple[Pair, ...]:
    found = []
    for number, (a, b) in enumerate(pairs):
        outcomes = [row[number] for row in rows]
        points = [outcome.points for outcome in outcomes if outcome.is_read]
        won, tied, lost = (points.count(value) for value in (1.0, 0.5, 0.0))
        found.append(Pair(names[a], names[b], won, tied, lost, len(outcomes) - len(points)))
    return tuple(found)


def _ranked(
    names: Sequence[str], ratings: Floats, draws: Floats, pairs: Sequence[Pair], confidence_level: float
) -> tuple[RankedSystem, ...]:
    order = sorted(range(len(names)), key=lambda number: (-ratings[number], number))
    best = order[0]

    def interval(column: Floats) -> tuple[float, float]:
        return percentile_intervals({"": column}, confidence_level)[""]

    found = []
    for number in order:
        difference = (float(ratings[number] - ratings[best]), interval(draws[:, number] - draws[:, best]))
        wins, ties, losses = _record(names[number], pairs)
        found.append(
            RankedSystem(
                names[number],
                float(ratings[number]),
                interval(draws[:, number]),
                None if number == best else difference,
                wins,
                ties,
                losses,
            )
        )
    return tuple(found)


def _record(name: str, pairs: Sequence[Pair]) -> tuple[int, int, int]:
    mine = [pair for pair in pairs if name in (pair.first, pair.second)]
    wins = sum(pair.wins if pair.first == name else pair.losses for pair in mine)
    losses = sum(pair.losses if pair.first == name else pair.wins for pair in mine)
    return wins, sum(pair.ties for pair in mine), losses


def sentences(ranking: Ranking) -> list[str]:
    """Return what must be known to read the ranking."""
    lines = [f"Agreement of the judge with people {ranking.agreement}."]
    if ranking.orders_agree is not None:
        lines.append(
            f"The judge said the same in both orders of {ranking.orders_agree:.0%} of {ranking.n_duels:,} pairs of "
            "captions; where it did not, the pair is a tie."
        )
    if ranking.first_preferred is not None:
        lines.append(f"Of its choices {ranking.first_preferred:.0%} are for the caption shown first (50% = no bias).")
    if ranking.n_unread:
        lines.append(f"{ranking.n_unread:,} pairs do not count, because an answer named no better caption.")
    lines.append(
        "Ties count as half a win; one tie is added to each pair of systems. Intervals: bootstrap over images."
    )
    return lines


def facts(ranking: Ranking) -> Mapping[str, Any]:
    """Return the numbers as JSON values."""
    return {
        "schema_version": 1,
        "n_images": ranking.n_images,
        "n_duels": ranking.n_duels,
        "systems": [
            {
                "name": one.name,
                "rating": one.rating,
                "interval": list(one.interval),
                "to_best": None if one.to_best is None else [one.to_best[0], *one.to_best[1]],
                "wins": one.wins,
                "ties": one.ties,
                "losses": one.losses,
            }
            for one in ranking.systems
        ],
        "pairs": [
            {
                "first": pair.first,
                "second": pair.second,
                "first_wins": pair.wins,
                "ties": pair.ties,
                "second_wins": pair.losses,
                "unread": pair.unread,
            }
            for pair in ranking.pairs
        ],
        "orders_agree": ranking.orders_agree,
        "first_preferred": ranking.first_preferred,
        "n_unread": ranking.n_unread,
        "agreement_with_people": ranking.agreement,
        "signature": ranking.signature,
        "settings": ranking.settings,
    }
