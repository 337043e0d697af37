"""What is known of single images as rows of numbers: a million take no Python objects until one is asked for.

Shapes: N images, O values of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.shared.bootstrap import Floats
from hfcap.metrics.suite import number_or_none

Values = Mapping[str, Mapping[str, float | None]]


class ImageValues(Mapping[str, dict[str, float | None]]):
    """Image id -> name -> value of that image alone, None where undefined.

    Attributes:
        image_ids: N ids. names: O names.
        table: (N, O) float64, NaN where undefined.
    """

    def __init__(self, image_ids: Sequence[str], names: Sequence[str], table: NDArray[np.float64]) -> None:
        assert table.shape == (len(image_ids), len(names))
        self.image_ids = tuple(image_ids)
        self.names = tuple(names)
        self.table = np.where(np.isfinite(table), table, np.nan)

    def __getitem__(self, image_id: str) -> dict[str, float | None]:
        row = self.table[self._positions[image_id]].tolist()
        return {name: number_or_none(value) for name, value in zip(self.names, row, strict=True)}

    def __iter__(self) -> Iterator[str]:
        return iter(self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {image_id: position for position, image_id in enumerate(self.image_ids)}


class Rows(Sequence[list[float]]):
    """Rows of numbers that compare as lists of lists do; numpy takes them as an array.

    Attributes:
        table: (N, S) float64, or float32 where that is exact.
    """

    def __init__(self, table: Floats) -> None:
        self.table = table

    @overload
    def __getitem__(self, place: int) -> list[float]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[float]]: ...
    def __getitem__(self, place: int | slice) -> list[float] | list[list[float]]:
        found: list[float] | list[list[float]] = self.table[place].tolist()
        return found

    def __len__(self) -> int:
        return len(self.table)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.table, dtype=dtype, copy=copy)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Rows):
            return np.array_equal(self.table, other.table)
        return isinstance(other, list) and self.table.tolist() == other

    __hash__ = None  # type: ignore[assignment]  # as lists have none


def column_of(values: Values, name: str) -> NDArray[np.float64]:
    """Return one value of all images in their order, (N,) float64; NaN where an image has none."""
    if isinstance(values, ImageValues):
        if name not in values.names:
            return np.full(len(values), np.nan)
        return values.table[:, values.names.index(name)]
    found = (row.get(name) for row in values.values())
    return np.fromiter((np.nan if value is None else value for value in found), dtype=np.float64, count=len(values))
