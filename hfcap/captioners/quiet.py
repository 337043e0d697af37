"""Loading without the libraries' bars and notes: in a command for good, in a function for as long as it takes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging

from hfcap.failures.hub import give_up_soon


def quiet_loading() -> None:
    """Silence transformers' weight-loading chatter in this process, and waits for a Hub that is out of reach."""
    give_up_soon()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@contextmanager
def quiet_libraries(hub_bars: bool = False) -> Iterator[None]:
    """Silence transformers' notes and bars inside the block, and leave everything as it was.

    Args:
        hub_bars: downloads from the Hub keep theirs.
    """
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_quiet = are_progress_bars_disabled()
    quiet_loading()
    if not hub_bars and not hub_quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if not hub_bars and not hub_quiet:
            enable_progress_bars()


@contextmanager
def quiet_generate() -> Iterator[None]:
    """Leave out what `generate` warns of inside the block although it is what captions need."""
    with warnings.catch_warnings():
        # Words of a prompt may come again in the caption.
        warnings.filterwarnings(
            "ignore", message="Passing `(repetition_penalty|no_repeat_ngram_size)` with `inputs_embeds`"
        )
        yield


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Leave out what PEFT warns of inside the block and nobody needs to act on."""
    with warnings.catch_warnings():
        # One option stands for all layers; PEFT sets it right for those that keep their weight otherwise.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied after merging")
        # Shared weights are taken apart before an adapter is merged (adaptation/merging.py).
        warnings.filterwarnings("ignore", message="Model (with|has) `tie_word_embeddings=True`")
        # Its advice saves memory that the whole model takes anyhow.
        warnings.filterwarnings("ignore", message="lora with eva initialization used with low_cpu_mem_usage")
        yield
