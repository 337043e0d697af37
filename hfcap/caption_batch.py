"""Encode and caption: the one place where image inputs become captions, whoever asks.

The caption stage, validation, `hfcap caption`, the Python interface, the demo, the recorded captions of cards and the
doctor's measurement all come here, so that the same options give the same captions everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from accelerate.utils.memory import clear_device_cache

from hfcap.captioners.adaptation.quantization import as_held
from hfcap.captioners.base import Captioner, GeneratedCaption
from hfcap.captioners.quiet import quiet_generate
from hfcap.data.loading import prepared
from hfcap.data.pixels import PixelPlan
from hfcap.errors import library_faults, reason_of
from hfcap.failures.memory import is_full_memory, smaller_batch
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import Images

_SEED_STRIDE = 1_000_003
"""Seeds of one captioning lie between those of two neighbouring seeds."""

_at_once: WeakKeyDictionary[Captioner, int] = WeakKeyDictionary()
"""How many images the memory holds at once, for captioners whose batches were too large for it."""


def generate_captions(
    captioner: Captioner,
    images: Images,
    options: GenerateOptions,
    prompt: str | Sequence[str] | None = None,
    *,
    plan: PixelPlan | None = None,
    encoded: bool = False,
    place: int | None = None,
) -> list[list[GeneratedCaption]]:
    """Caption one batch; for each image `num_return_sequences` captions, best first.

    The model must be in evaluation mode. Where the memory does not hold the batch, it is captioned in smaller ones, and
    so are those that follow.

    Args:
        images: levels (B, 3, height, width) uint8 that `plan` normalises, pixel values, or states of the encoder
            (B, S, D); `SizedImages` where images keep their shape; on any device.
        prompt: text every caption starts with, or one for each image; None = the captioner's own.
        plan: how levels become pixel values; None where nothing is left to do.
        encoded: whether these are states of the encoder.
        place: number of the first image in the whole captioning. Sampling is seeded by it and `options.seed`, so that
            a captioning that goes on after a stop and any number of processes draw the same; None leaves the random
            state as it is.
    """
    found: list[list[GeneratedCaption]] = []
    done = 0
    while done < len(images):
        some = images[done : done + _at_once.get(captioner, len(images))]
        if options.do_sample and place is not None:
            torch.manual_seed(options.seed * _SEED_STRIDE + place + done)
        asked = prompt if isinstance(prompt, str | None) else prompt[done : done + len(some)]
        captions = _captions_in_memory(captioner, some, options, asked, plan, encoded)
        if captions is None:
            clear_device_cache(garbage_collection=True)
            _at_once[captioner] = smaller_batch(len(some))
        else:
            found += captions
            done += len(some)
    return found


def _captions_in_memory(
    captioner: Captioner,
    images: Images,
    options: GenerateOptions,
    prompt: str | Sequence[str] | None,
    plan: PixelPlan | None,
    encoded: bool,
) -> list[list[GeneratedCaption]] | None:
    """Caption images together; None where the memory does not hold as many."""

    def message(error: Exception) -> str:
        name = captioner.base_models[0].id if captioner.base_models else captioner.card_facts.title
        return (
            f"{name}: the model fails on images ({reason_of(error)}); where its files are whole and belong together, "
            "please report this as a fault of hfcap"
        )

    with library_faults(message):
        try:
            inputs = as_held(captioner, prepared(images, plan, captioner.device))
            with torch.inference_mode():
                states = inputs if encoded else captioner.encode(inputs)
            with quiet_generate():
                if isinstance(prompt, str | None):
                    return captioner.caption_states(states, options, prompt)
                return captioner.caption_each(states, options, prompt)
        except RuntimeError as error:
            if len(images) == 1 or not is_full_memory(error):
                raise
    return None
