"""A server that somebody started (vLLM, SGLang, llama.cpp, a service), at the address in HFCAP_SERVED_AT."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import hfcap
from tests.captioners.helpers import write_image

ADDRESS = os.environ.get("HFCAP_SERVED_AT", "")
pytestmark = pytest.mark.skipif(not ADDRESS, reason="HFCAP_SERVED_AT names no server")


def test_captions_cuts_and_counts(tmp_path: Path) -> None:
    images = [write_image(tmp_path / f"{number}.png", number, (320, 200 + 60 * number)) for number in range(3)]
    captioner = hfcap.load_captioner(ADDRESS)
    cut = captioner.caption(images, max_new_tokens=3)
    assert [one.cut for one in cut] == [True] * 3
    for one in cut:
        assert one.usage is not None and one.usage["completion_tokens"] == 3 and one.usage["prompt_tokens"] > 3
    again = captioner.caption(images, max_new_tokens=3)
    assert [one.text for one in again] == [one.text for one in cut]
    sampled = captioner.caption(images, max_new_tokens=8, do_sample=True, temperature=1.5)
    assert len({one.text for one in sampled}) > 1
