"""Packing: nothing lost, nothing supervised that must not be, no more padding than needed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfcap.captioners.shared.masks import packed_attention_mask, prefix_attention_mask
from hfcap.data.packing import pack_captions
from hfcap.schema import IGNORED_LABEL

START, PROMPT, END, PAD = 1, [7, 8], 2, 0
TOKENS = st.integers(10, 99)
CAPTIONS = st.lists(st.lists(st.lists(TOKENS, max_size=6), max_size=4), min_size=1, max_size=4)
STARTS = st.sampled_from([[START], [START, *PROMPT]])


@given(CAPTIONS, STARTS)
def test_captions_come_back(captions: list[list[list[int]]], start: list[int]) -> None:
    packed = pack_captions(captions, start, END, PAD)
    for row, of_image in enumerate(captions):
        for number, caption in enumerate(of_image):
            mine = packed.caption_index[row] == number
            assert packed.input_ids[row][mine].tolist() == [*start, *caption]
            assert packed.position_ids[row][mine].tolist() == list(range(len(start) + len(caption)))
            labels = packed.labels[row][mine].tolist()
            assert labels == [IGNORED_LABEL] * (len(start) - 1) + [*caption, END]
        filling = packed.caption_index[row] == -1
        assert filling.sum() == packed.input_ids.shape[1] - sum(len(start) + len(caption) for caption in of_image)
        assert bool((packed.input_ids[row][filling] == PAD).all())
        assert bool((packed.labels[row][filling] == IGNORED_LABEL).all())


def test_by_hand_with_a_prompt_a_caption_cut_short_and_hidden_words() -> None:
    packed = pack_captions(
        [[[10, 11], [12]], [[13]]],
        [START, 7],
        END,
        PAD,
        ended=[[True, False], [True]],
        shown=[[[10, 99], [12]], [[98]]],
    )
    none = IGNORED_LABEL
    assert packed.input_ids.tolist() == [[START, 7, 10, 99, START, 7, 12], [START, 7, 98, PAD, PAD, PAD, PAD]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 0, 0, 0, 0]]
    assert packed.caption_index.tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, -1, -1, -1, -1]]
    # What is learnt are the words themselves; one that was cut short never chose to end.
    assert packed.labels.tolist() == [[none, 10, 11, END, none, 12, none], [none, 13, END, none, none, none, none]]


def test_what_cannot_be_packed_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="common start token"):
        pack_captions([[[5]]], [], END, PAD)
    with pytest.raises(AssertionError, match="must have its length"):
        pack_captions([[[5, 6]]], [START], END, PAD, shown=[[[5]]])


@given(CAPTIONS, STARTS)
def test_supervised_tokens_are_counted_exactly(captions: list[list[list[int]]], start: list[int]) -> None:
    packed = pack_captions(captions, start, END, PAD)
    n_captions = sum(map(len, captions))
    n_words = sum(len(caption) for of_image in captions for caption in of_image)
    assert int((packed.labels != IGNORED_LABEL).sum()) == n_words + n_captions
    assert int((packed.labels == END).sum()) == n_captions
    assert not set(PROMPT) & set(packed.labels.flatten().tolist())
    assert START not in packed.labels and PAD not in packed.labels


@given(CAPTIONS, STARTS)
def test_rows_are_as_short_as_can_be(captions: list[list[list[int]]], start: list[int]) -> None:
    packed = pack_captions(captions, start, END, PAD)
    longest = max(sum(len(start) + len(caption) for caption in of_image) for of_image in captions)
    shapes = {tuple(t.shape) for t in (packed.input_ids, packed.position_ids, packed.caption_index, packed.labels)}
    assert shapes == {(len(captions), max(1, longest))}
    assert packed.input_ids.dtype == packed.labels.dtype == torch.int64


@given(CAPTIONS)
def test_end_token_that_also_pads_is_still_supervised_once(captions: list[list[list[int]]]) -> None:
    """GPT-2 pads with its end token: a mask over every such token would train captions that never stop."""
    packed = pack_captions(captions, [END], END, END)
    assert int((packed.labels == END).sum()) == sum(map(len, captions))


@given(CAPTIONS, STARTS)
def test_mask_shows_earlier_words_of_the_same_caption_only(captions: list[list[list[int]]], start: list[int]) -> None:
    index = pack_captions(captions, start, END, PAD).caption_index
    visible = packed_attention_mask(index, torch.float32)[:, 0] == 0
    length = index.shape[1]
    for row in range(index.shape[0]):
        for query in range(length):
            expected = [key <= query and bool(index[row, key] == index[row, query]) for key in range(length)]
            assert visible[row, query].tolist() == expected
    assert bool(visible.any(-1).all())  # a fully masked row gives NaN


@given(CAPTIONS, st.integers(1, 3))
def test_prefix_mask_shows_the_prefix_to_every_caption(captions: list[list[list[int]]], n_prefix: int) -> None:
    index = pack_captions(captions, [START], END, PAD).caption_index
    visible = prefix_attention_mask(index, n_prefix, torch.float32)[:, 0] == 0
    own = packed_attention_mask(index, torch.float32)[:, 0] == 0
    assert torch.equal(visible[:, n_prefix:, n_prefix:], own)
    assert bool(visible[:, n_prefix:, :n_prefix].all())
    assert not visible[:, :n_prefix, n_prefix:].any()
    causal = torch.ones(n_prefix, n_prefix, dtype=torch.bool).tril()
    assert all(torch.equal(square, causal) for square in visible[:, :n_prefix, :n_prefix])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocked_positions_get_no_attention_in_any_precision(dtype: torch.dtype) -> None:
    mask = packed_attention_mask(torch.tensor([[0, 0, 1, -1]]), dtype)
    assert mask.dtype == dtype
    weights = (torch.randn(1, 1, 4, 4).to(dtype) + mask).float().softmax(-1)
    assert bool(torch.isfinite(weights).all())
    assert float(weights[0, 0, 2, :2].sum()) == 0
