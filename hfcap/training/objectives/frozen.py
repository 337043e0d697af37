"""The captioner that training started from, which objectives on captions compare with."""

from __future__ import annotations

import copy

from hfcap.captioners.base import Captioner


def frozen_copy(captioner: Captioner) -> Captioner:
    """Return the captioner as it is now, without dropout and gradients."""
    kept = copy.copy(captioner)
    kept.model = copy.deepcopy(captioner.model).eval().requires_grad_(False)
    return kept
