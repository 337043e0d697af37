"""Encode and caption: the one place where image inputs become captions, whoever asks.

The caption stage, validation, `hfcap caption`, the Python interface, the demo, the recorded captions of cards and the
doctor's measurement all come here, so that the same options give the same captions everywhere.
"""

from __future__ import annotations

import torch

from hfcap.captioners.base import Captioner, GeneratedCaption
from hfcap.data.loading import prepared
from hfcap.data.pixels import PixelPlan
from hfcap.errors import library_faults, reason_of
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import Images

_SEED_STRIDE = 1_000_003
"""Seeds of one captioning lie between those of two neighbouring seeds."""


def generate_captions(
    captioner: Captioner,
    images: Images,
    options: GenerateOptions,
    prompt: str | None = None,
    *,
    plan: PixelPlan | None = None,
    encoded: bool = False,
    place: int | None = None,
) -> list[list[GeneratedCaption]]:
    """Caption one batch; for each image `num_return_sequences` captions, best first.

    The model must be in evaluation mode.

    Args:
        images: levels (B, 3, height, width) uint8 that `plan` normalises, pixel values, or states of the encoder
            (B, S, D); `SizedImages` where images keep their shape; on any device.
        prompt: text every caption starts with; None = the captioner's own.
        plan: how levels become pixel values; None where nothing is left to do.
        encoded: whether these are states of the encoder.
        place: number of the first image in the whole captioning. Sampling is seeded by it and `options.seed`, so that
            a captioning that goes on after a stop and any number of processes draw the same; None leaves the random
            state as it is.
    """
    if options.do_sample and place is not None:
        torch.manual_seed(options.seed * _SEED_STRIDE + place)
    inputs = prepared(images, plan, captioner.device)

    def message(error: Exception) -> str:
        name = captioner.base_models[0].id if captioner.base_models else captioner.card_facts.title
        return (
            f"{name}: the model fails on images ({reason_of(error)}); where its files are whole and belong together, "
            "please report this as a fault of hfcap"
        )

    with library_faults(message):
        with torch.inference_mode():
            states = inputs if encoded else captioner.encode(inputs)
        return captioner.caption_states(states, options, prompt)
