"""Caption packing: the K captions of an image form one decoder row.

Cross-attention keys and values (or a prefix) are then computed once per image instead of once per caption. A mask
keeps captions apart and positions restart, so the loss is that of one row per caption to float rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from hfcap.schema import IGNORED_LABEL, PackedCaptions


@dataclass(frozen=True, slots=True)
class AskedPrompt:
    """What a caption answers, and the tokens that its row begins with."""

    text: str
    start_token_ids: tuple[int, ...]


class CaptionItem(NamedTuple):
    """One image of a batch.

    Attributes:
        image: pixels (3, height, width) or image states (S, D).
        captions: token ids of the captions drawn for this epoch, in random order.
        number: position in the dataset.
        shown: what the decoder reads in place of `captions` (word dropout); None = the captions.
        ended: for each caption whether its end follows; one that was cut has none. None = all have.
        asked: for each caption what it answers; None = the captioner's prompt.
    """

    image: Any
    captions: list[Sequence[int]]
    number: int
    shown: list[list[int]] | None = None
    ended: list[bool] | None = None
    asked: list[AskedPrompt] | None = None


def pack_captions(
    captions_of_images: Sequence[Sequence[Sequence[int]]],
    start_token_ids: Sequence[int],
    end_token_id: int,
    pad_token_id: int,
    ended: Sequence[Sequence[bool]] | None = None,
    shown: Sequence[Sequence[Sequence[int]]] | None = None,
    asked: Sequence[Sequence[AskedPrompt]] | None = None,
) -> PackedCaptions:
    """Pack tokenised captions into one row per image.

    Each caption becomes `start_token_ids + caption`; the label of a position is the next token, the last one's is the
    end token. Prompt tokens inside `start_token_ids` and padding carry no label.

    Args:
        captions_of_images: for each of B images its K (ragged) captions as token ids without special tokens.
        start_token_ids: the start token and the prompt's tokens; at least one.
        end_token_id: supervised once per caption.
        pad_token_id: fills rows up to the longest of the batch.
        ended: for each caption whether the end token follows it; None = always. Samples that were cut at the length
            limit never chose to end.
        shown: what the decoder reads in place of each caption, of the same length (word dropout); None = the captions.
            The labels are those of the captions.
        asked: for each caption the prompt that it answers; None = all answer that of `start_token_ids`.
    """
    assert start_token_ids, "training and generation need a common start token"
    rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
    for row_number, captions in enumerate(captions_of_images):
        inputs: list[int] = []
        positions: list[int] = []
        index: list[int] = []
        labels: list[int] = []
        for number, caption in enumerate(captions):
            read = caption if shown is None else shown[row_number][number]
            assert len(read) == len(caption), "what is shown of a caption must have its length"
            start = start_token_ids if asked is None else asked[row_number][number].start_token_ids
            inputs += [*start, *read]
            positions += range(len(start) + len(read))
            index += [number] * (len(start) + len(read))
            last = end_token_id if ended is None or ended[row_number][number] else IGNORED_LABEL
            labels += [*[IGNORED_LABEL] * (len(start) - 1), *caption, last]
        rows.append((inputs, positions, index, labels))
    length = max(1, *(len(row[0]) for row in rows))
    fills = (pad_token_id, 0, -1, IGNORED_LABEL)
    input_ids, position_ids, caption_index, targets = (
        torch.tensor([row[field] + [fill] * (length - len(row[field])) for row in rows], dtype=torch.int64)
        for field, fill in enumerate(fills)
    )
    prompts = None if asked is None else tuple(tuple(one.text for one in of_image) for of_image in asked)
    return PackedCaptions(input_ids, position_ids, caption_index, targets, prompts)
