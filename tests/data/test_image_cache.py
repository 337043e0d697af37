"""Image cache: the pixels of `PixelInputs`, decoded once."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessor, EfficientNetImageProcessor, ViTImageProcessor

from hfcap.data import loading
from hfcap.data.images import FileImage
from hfcap.data.loading import PixelInputs, prepared
from hfcap.errors import UserError
from hfcap.schema import CaptionedImage
from hfcap.store.image_cache import cached_pixels
from tests.captioners.helpers import write_image

PROCESSOR = CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})


@pytest.fixture
def records(tmp_path: Path) -> list[CaptionedImage]:
    paths = [write_image(tmp_path / f"{number}.png", seed=number) for number in range(5)]
    return [CaptionedImage(path.stem, path.name, ("x",), FileImage(path)) for path in paths]


def test_same_pixels_without_decoding(
    records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = PixelInputs(records, PROCESSOR)
    expected = [direct[number] for number in range(5)]
    values = direct.pixel_values([0, 3])
    first = cached_pixels(records, PROCESSOR, tmp_path / "cache", num_workers=1)
    monkeypatch.setattr(loading, "decode_image", None)
    again = cached_pixels(records[::-1], PROCESSOR, tmp_path / "cache")
    for cached, order in ((first, range(5)), (pickle.loads(pickle.dumps(again)), range(4, -1, -1))):
        for place, number in enumerate(order):
            assert cached[place].dtype == torch.uint8 and torch.equal(cached[place], expected[number])
    assert torch.equal(prepared(torch.stack([first[0], first[3]]), first.plan, torch.device("cpu")), values)


def test_shared_by_processors_that_differ_in_normalisation_only(records: list[CaptionedImage], tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}
    cached_pixels(records, PROCESSOR, tmp_path / "cache")
    other = cached_pixels(records, CLIPImageProcessor(**sizes, image_mean=[0.1] * 3), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert other.plan != PixelInputs(records, PROCESSOR).plan
    cached_pixels(records, CLIPImageProcessor(**sizes, resample=2), tmp_path / "cache")
    cached_pixels(records, ViTImageProcessor(size={"height": 16, "width": 16}), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_processor_that_does_more_is_refused(records: list[CaptionedImage], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.image_cache: EfficientNetImageProcessor.*image_cache: false"):
        cached_pixels(records, EfficientNetImageProcessor(), tmp_path / "cache")
