"""Prompts of different lengths in one batch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hfcap.generation.padded_prompts import of_like_length, padded


@given(st.lists(st.integers(1, 400), max_size=40))
def test_batches_hold_every_prompt_once_and_little_padding(lengths: list[int]) -> None:
    batches = of_like_length(lengths)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        of_batch = [lengths[place] for place in batch]
        assert max(of_batch) * len(of_batch) <= 1.5 * sum(of_batch)
    assert len(batches) <= len(set(lengths)), "those of one length stay together"


def test_a_long_prompt_does_not_make_others_long() -> None:
    assert of_like_length([60, 4000, 64, 61]) == [[0, 3, 2], [1]]


def test_rows_end_together() -> None:
    ids, mask, extras = padded(
        [torch.tensor([1, 2, 3]), torch.tensor([4])],
        [
            {"grid": torch.tensor([[1, 2]]), "kinds": torch.tensor([[7, 7, 0]])},
            {"grid": torch.tensor([[3, 4], [5, 6]]), "kinds": torch.tensor([[7]])},
        ],
        token=9,
    )
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert extras["grid"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert extras["kinds"].tolist() == [[7, 7, 0], [0, 0, 7]]
