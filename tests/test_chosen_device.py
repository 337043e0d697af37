"""`search` and `explain` compute on the machine's accelerator: here one that holds no numbers.

Whatever stays on the CPU meets what does not, which torch refuses.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPModel

from hfcap.captioners.base import Captioner
from hfcap.cli.captions import search
from hfcap.explain import explain_image
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.clip_folder import write_clip
from tests.captioners.helpers import build, write_image

META = torch.device("meta")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices of all that modules are given; what comes back from the accelerator is ones."""
    devices: list[torch.device] = []
    call, copy = nn.Module.__call__, torch.Tensor.cpu

    def noted(module: nn.Module, *given: Any, **named: Any) -> Any:
        devices.extend(value.device for value in (*given, *named.values()) if isinstance(value, torch.Tensor))
        return call(module, *given, **named)

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        return torch.ones(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else copy(tensor)

    monkeypatch.setattr(nn.Module, "__call__", noted)
    monkeypatch.setattr(torch.Tensor, "cpu", copied)
    for place in ("hfcap.environment", "hfcap.captioning.captioner"):
        monkeypatch.setattr(f"{place}.default_device", lambda: META)
    return devices


def test_search_encodes_images_and_text_there(
    seen: list[torch.device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    texts: list[torch.device] = []

    def encoded(model: CLIPModel, **given: torch.Tensor) -> torch.Tensor:
        """In place of transformers' own, which reads the mask of the text."""
        texts.extend(value.device for value in (*given.values(), model.text_projection.weight))
        return torch.empty(1, 12, device=META)

    monkeypatch.setattr(CLIPModel, "get_text_features", encoded)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # there is none without numbers
    clip = write_clip(tmp_path / "clip")
    write_image(tmp_path / "images" / "one.png")
    search("two dogs", str(tmp_path / "images"), model=clip, output=tmp_path / "hits.csv")
    assert set(texts) == {META} and len(texts) == 3 and set(seen) == {META}
    assert (tmp_path / "hits.csv").read_text().count("\n") == 2


def test_explain_captions_and_draws_there(
    seen: list[torch.device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = build("show_attend_tell")
    captioner.save(tmp_path / "model", GenerateOptions(num_beams=1))
    image = write_image(tmp_path / "image.png")
    words = captioner.tokenizer("a dog", add_special_tokens=False)["input_ids"]
    asked: list[torch.device] = []

    def said(_: Captioner, states: torch.Tensor, ids: torch.Tensor, __: Any) -> torch.Tensor:
        asked.extend((states.device, ids.device))
        return torch.tensor([[captioner.start_token_id, *words, captioner.end_token_id]])

    monkeypatch.setattr(Captioner, "generate", said)
    found = explain_image(str(tmp_path / "model"), str(image), tmp_path / "maps.png")
    assert asked == [META, META]
    assert set(seen[seen.index(META) :]) == {META}, "what loading tries out before stays on the CPU"
    assert found.caption == "a dog" and (tmp_path / "maps.png").is_file()
