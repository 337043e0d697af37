"""Packed captions taken apart by the prompts that they answer, for models that read the prompt before all captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hfcap.schema import IGNORED_LABEL, PackedCaptions


@dataclass(frozen=True, slots=True)
class PromptPart:
    """The captions of a packed batch that answer one prompt, packed for themselves.

    Attributes:
        images: numbers of the B' images that have such captions.
        packed: (B', P') rows of them.
        rows, columns: where the tokens of `packed` stand in the whole batch, in the order of `inside`.
        inside: (B', P') bool, where `packed` holds a token.
    """

    prompt: str
    images: list[int]
    packed: PackedCaptions
    rows: torch.Tensor
    columns: torch.Tensor
    inside: torch.Tensor


def by_prompt(packed: PackedCaptions) -> Iterator[PromptPart]:
    """Yield the captions of each prompt, prompts in the order in which they first come."""
    assert packed.prompts is not None
    answering: dict[str, dict[int, list[int]]] = {}
    for image, prompts in enumerate(packed.prompts):
        for number, prompt in enumerate(prompts):
            answering.setdefault(prompt, {}).setdefault(image, []).append(number)
    lengths = packed.caption_lengths()
    for prompt, captions in answering.items():
        yield _part(packed, lengths, prompt, captions)


def joined(parts: list[tuple[PromptPart, torch.Tensor]], packed: PackedCaptions) -> torch.Tensor:
    """Put what was computed for parts, (B', P', X) each, back to (B, P, X); zero where the batch holds nothing."""
    first = parts[0][1]
    found = first.new_zeros(*packed.input_ids.shape, first.shape[-1])
    for part, values in parts:
        found[part.rows, part.columns] = values[part.inside].to(found.dtype)
    return found


def _part(packed: PackedCaptions, lengths: list[list[int]], prompt: str, captions: dict[int, list[int]]) -> PromptPart:
    places: list[list[int]] = []
    owners: list[list[int]] = []
    for image, numbers in captions.items():
        starts = [sum(lengths[image][:number]) for number in range(len(lengths[image]))]
        spans = [range(starts[number], starts[number] + lengths[image][number]) for number in numbers]
        places.append([place for span in spans for place in span])
        owners.append([new for new, span in enumerate(spans) for _ in span])
    images, longest, device = list(captions), max(map(len, places)), packed.input_ids.device
    index = torch.tensor([row + [0] * (longest - len(row)) for row in places], device=device)
    owner = torch.tensor([row + [-1] * (longest - len(row)) for row in owners], device=device)
    inside = owner >= 0
    rows = torch.tensor(images, device=device)[:, None].expand_as(index)
    own = PackedCaptions(
        packed.input_ids[rows, index],
        packed.position_ids[rows, index].masked_fill(~inside, 0),
        owner,
        packed.labels[rows, index].masked_fill(~inside, IGNORED_LABEL),
    )
    return PromptPart(prompt, images, own, rows[inside], index[inside], inside)
