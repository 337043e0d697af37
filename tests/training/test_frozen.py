"""The captioner that training started from stays what it was, whatever training does to the weights."""

from __future__ import annotations

import pytest
import torch

from hfcap.captioners.base import Captioner
from hfcap.training.objectives.frozen import frozen_copy
from tests.captioners.helpers import build, packed, pixel_values, random_captions
from tests.captioners.itt_models import itt
from tests.training.harness import FAMILIES


def logits(captioner: Captioner) -> torch.Tensor:
    captions = packed(captioner, random_captions(captioner, (2, 1)))
    with torch.no_grad():
        return captioner.logits(captioner.encode(pixel_values(captioner, 2)), captions)


@pytest.mark.parametrize("name", [*FAMILIES, "llava", "idefics3", "florence2"])
def test_it_computes_with_its_own_weights(name: str) -> None:
    """That of image_text_to_text asked the model in training: DPO and SCST's divergence compared it with itself."""
    captioner = build(name) if name in FAMILIES else itt(name)
    captioner.model.eval()
    before = logits(captioner)
    start = frozen_copy(captioner)
    with torch.no_grad():
        for weight in captioner.model.parameters():
            weight.mul_(1.5)
    assert (logits(captioner) - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(start), before, rtol=0, atol=0)
