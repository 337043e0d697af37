"""The words of a caption while they are being written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hfcap.captioners.base import Captioner


@contextmanager
def words_told(captioner: Captioner, say: Callable[[str], None]) -> Iterator[None]:
    """Say the caption so far whenever the text model reads a word of it, inside the block; one caption of one image.

    Every family generates in its own way, and not all take transformers' streamer; all read the words that they wrote.
    Nothing is said of a beam search, whose best caption changes until its end.
    """
    words = _word_embedding(captioner)
    if words is None:
        yield
        return
    start: list[int] = []
    written: list[int] = []

    def note(_module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        ids = inputs[0]
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or len(ids) != 1:
            return
        read = ids[0].tolist()
        if not start:
            start.extend(read)
            return
        if len(read) == 1:
            written.extend(read)
        else:  # no cache: the whole text is read again for each word
            written[:] = read[len(start) :]
        text = " ".join(captioner.tokenizer.decode(written, skip_special_tokens=True).split())
        say(text.rstrip("\N{REPLACEMENT CHARACTER}"))  # a letter's first bytes: the next token brings the others

    handle = words.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


def _word_embedding(captioner: Captioner) -> nn.Embedding | None:
    """Return the text model's embedding of words; None where there is none (an index of captions)."""
    if not captioner.trains_by_gradients:
        return None
    found = (module for module in captioner.model.modules() if isinstance(module, nn.Embedding))
    return next((module for module in found if module.num_embeddings >= captioner.tokenizer.vocab_size), None)
