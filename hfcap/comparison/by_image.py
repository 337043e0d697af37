"""Image by image: where the best system beats another one, and where it loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hfcap.comparison.result import Comparison
from hfcap.comparison.significance import shown_as_nothing
from hfcap.comparison.systems import System
from hfcap.scoring.image_values import column_of


@dataclass(frozen=True)
class ByImage:
    """Two systems on every image, in one value.

    Attributes:
        leader: the better system of the leaderboard.
        other: the one it is compared with.
        output: the value, per image.
        direction: 1 where higher is better, -1 where lower is.
        plain: the value is shown as it is, not x 100.
        image_ids: (N,) the images for which both systems have the value, sorted.
        values: (N, 2) float64, leader and other, raw scale.
    """

    leader: System
    other: System
    output: str
    direction: float
    plain: bool
    image_ids: tuple[str, ...]
    values: NDArray[np.float64]

    @property
    def differences(self) -> NDArray[np.float64]:
        """Leader minus other, (N,) float64, raw scale."""
        return self.values[:, 0] - self.values[:, 1]

    @cached_property
    def advantages(self) -> NDArray[np.float64]:
        """How much better the leader is, (N,) float64: positive = it wins; 0 where the difference shows as 0.00."""
        ties = shown_as_nothing(self.differences, self.plain)
        return np.where(ties, 0.0, self.direction * self.differences)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images that the leader wins, that nobody wins, and that it loses."""
        advantages = self.advantages
        return {
            "wins": int((advantages > 0).sum()),
            "ties": int((advantages == 0).sum()),
            "losses": int((advantages < 0).sum()),
        }

    def largest(self, count: int) -> tuple[list[int], list[int]]:
        """Return positions of the leader's largest wins and of its largest losses, largest first, ties never."""
        advantages = self.advantages
        # Ids are sorted, so that of equal ones the first in a stable order is the first by id.
        most, least = (np.argsort(sign * advantages, kind="stable")[:count].tolist() for sign in (-1, 1))
        return [one for one in most if advantages[one] > 0], [one for one in least if advantages[one] < 0]


def by_image(comparison: Comparison) -> tuple[ByImage, ...]:
    """Return the best system with per-image values against each other one that has them, in leaderboard order.

    The value is the leaderboard's; where it has no per-image values, the first comparable one that has. Empty where
    fewer than two systems can be compared so.
    """
    ranking = [] if comparison.ranking is None else [comparison.ranking]
    for output in dict.fromkeys([*ranking, *(name for name in comparison.outputs if name in comparison.directions)]):
        having = [system for system in comparison.systems if _has(system, output)]
        if len(having) > 1:
            pairs = [pair_by_image(comparison, having[0], other, output) for other in having[1:]]
            return tuple(pair for pair in pairs if pair.image_ids)
    return ()


def _has(system: System, output: str) -> bool:
    return bool(np.isfinite(column_of(system.report.per_image, output)).any())


def pair_by_image(comparison: Comparison, leader: System, other: System, output: str) -> ByImage:
    """Return two systems on the images for which both have the value."""
    ids = leader.image_ids
    if other.image_ids == ids:
        table = np.stack((leader.values(output), other.values(output)), axis=1)
    else:
        theirs = dict(zip(other.image_ids, other.values(output).tolist(), strict=True))
        second = np.asarray([theirs.get(image_id, np.nan) for image_id in ids], dtype=np.float64)
        table = np.stack((leader.values(output), second), axis=1)
    known = np.isfinite(table).all(axis=1)
    if not known.all():
        ids, table = tuple(ids[number] for number in np.flatnonzero(known).tolist()), table[known]
    plain = output in comparison.plain_outputs
    return ByImage(leader, other, output, comparison.directions[output], plain, ids, table)


def images_to_show(pairs: Sequence[ByImage], count: int) -> list[str]:
    """Return the ids of all images among the `count` largest wins and losses of the pairs, each once."""
    found = [pair.image_ids[position] for pair in pairs for side in pair.largest(count) for position in side]
    return list(dict.fromkeys(found))
