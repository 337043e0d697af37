"""Packed captions as one row for each caption, and what a model says about the rows back in the packed places."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hfcap.schema import PackedCaptions


@dataclass(frozen=True, slots=True)
class CaptionTokens:
    """Captions of a packed batch, each in a row of its own, filled up with zeros at the end.

    Attributes:
        input_ids: (B * K, T) int64; rows of an image stand together, T is the length of the longest caption.
        per_image: K, the most captions that an image has.
        inside: (B, P) bool, where the packed batch holds a token. rows, columns: where that token stands here.
    """

    input_ids: torch.Tensor
    per_image: int
    inside: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def packed(self, values: torch.Tensor) -> torch.Tensor:
        """(B * K, T, X) -> (B, P, X), zero where the packed batch holds nothing."""
        found = values.new_zeros(*self.inside.shape, values.shape[-1])
        found[self.inside] = values[self.rows, self.columns]
        return found


def as_rows(packed: PackedCaptions) -> CaptionTokens:
    """Take packed captions apart."""
    index, positions = packed.caption_index, packed.position_ids
    inside = index >= 0
    per_image, longest = int(index.max()) + 1, int(positions.max()) + 1
    first = torch.arange(len(index), device=index.device)[:, None] * per_image
    rows, columns = (first + index)[inside], positions[inside]
    ids = index.new_zeros(len(index) * per_image, longest)
    ids[rows, columns] = packed.input_ids[inside]
    return CaptionTokens(ids, per_image, inside, rows, columns)
