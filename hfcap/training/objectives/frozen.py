"""The captioner that training started from, and evaluation mode for a while: what objectives on captions share."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

from torch import nn

from hfcap.captioners.base import Captioner


def frozen_copy(captioner: Captioner) -> Captioner:
    """Return the captioner as it is now, without dropout and gradients."""
    kept = copy.copy(captioner)
    kept.model = copy.deepcopy(captioner.model).eval().requires_grad_(False)
    return kept


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep evaluation mode for the length of the block; afterwards every module is as it was (frozen parts differ)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
