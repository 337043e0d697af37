"""Packed captions as one row for each caption, and what a model says about the rows back in the packed places."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from hfcap.schema import PackedCaptions


@dataclass(frozen=True, slots=True)
class CaptionTokens:
    """Captions of a packed batch, each in a row of its own, filled up with zeros at the end.

    Attributes:
        input_ids: (B * K, T) int64; rows of an image stand together, T is the length of the longest caption.
        per_image: K, the most captions that an image has.
        shape: (B, P) of the packed batch.
        places: (N,) int64, which of its B * P places hold a token. rows, columns: (N,), where that token stands here.
    """

    input_ids: torch.Tensor
    per_image: int
    shape: tuple[int, int]
    places: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def packed(self, values: torch.Tensor) -> torch.Tensor:
        """(B * K, T, X) -> (B, P, X), zero where the packed batch holds nothing."""
        batch, length = self.shape
        found = values.new_zeros(batch * length, values.shape[-1])
        found[self.places] = values[self.rows, self.columns]
        return found.view(batch, length, -1)


def as_rows(packed: PackedCaptions) -> CaptionTokens:
    """Take packed captions apart, without waiting for the device that they lie on."""
    index = packed.caption_index
    batch, length = index.shape
    lengths = packed.caption_lengths()
    per_image, longest = max(map(len, lengths)), max([1, *itertools.chain.from_iterable(lengths)])
    # A mask as an index would be counted, for which the host waits; it knows the count, and sorting gives the places.
    places = (index < 0).flatten().int().argsort(dim=0, stable=True)[: sum(map(sum, lengths))]
    first = torch.arange(batch, device=index.device)[:, None] * per_image
    rows, columns = (first + index).flatten()[places], packed.position_ids.flatten()[places]
    ids = index.new_zeros(batch * per_image, longest)
    ids[rows, columns] = packed.input_ids.flatten()[places]
    return CaptionTokens(ids, per_image, (batch, length), places, rows, columns)
