"""Captioning with bfloat16 weights: the captions of plain transformers in bfloat16, by every way of loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hfcap import load_captioner
from hfcap.captioners.adaptation.quantization import Weights, hold_for_captioning
from hfcap.captioners.base import Captioner
from hfcap.cli import app
from hfcap.errors import OptionError
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build, packed, pixel_values, random_captions, random_image

SAME_CODE = ["clip_prefix", "cnn_transformer", "image_text_to_text", "vit_gpt2"]
"""Families whose plain way computes what `generate` does in the same order; in others it rounds otherwise."""


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", SAME_CODE)
def test_captions_are_those_of_the_model_s_own_generate_in_bfloat16(
    family: str, num_beams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Faster ways round in another order, which in 8 bits of mantissa decides between words that are nearly alike.
    monkeypatch.setenv("HFCAP_PLAIN", "1")
    captioner = build(family)
    captioner.save(tmp_path, GenerateOptions())
    images = [random_image(number) for number in range(3)]
    options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": 8}
    ready = load_captioner(tmp_path, dtype="bfloat16", device="cpu")
    found = ready.caption(images, batch_size=2, **options)
    assert {weight.dtype for weight in ready.captioner.model.parameters()} == {torch.bfloat16}

    plain = build(family).model.to(torch.bfloat16)
    pixels = pixel_values(captioner, 3).to(torch.bfloat16)
    config = captioner.generation_config(GenerateOptions(**options))
    texts = []
    with torch.inference_mode():
        for some in (pixels[:2], pixels[2:]):
            sequences = plain.generate(pixel_values=some, generation_config=config)
            texts += [" ".join(text.split()) for text in decoded(captioner, sequences)]
    assert [one.text for one in found] == texts and len(set(texts)) > 1


def test_a_slow_number_type_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build("vit_gpt2").save(tmp_path, GenerateOptions())
    expected = "dtype: this processor computes products in bfloat16 50 times as slowly as in float32"
    for gain, said in ((2.5, False), (0.02, True)):
        monkeypatch.setattr("hfcap.environment.bfloat16_gain", lambda gain=gain: gain)
        load_captioner(tmp_path, dtype="bfloat16", device="cpu")
        assert (expected in caplog.text) is said


@pytest.mark.parametrize("family", [*SAME_CODE, "blip", "image_transformer", "show_attend_tell"])
def test_logits_are_those_of_float32_but_for_rounding(family: str, tmp_path: Path) -> None:
    captioner = build(family)
    captioner.save(tmp_path, GenerateOptions())
    held = load_captioner(tmp_path, dtype="bfloat16", device="cpu")
    found = held.caption([random_image(number) for number in range(3)], num_beams=3, max_new_tokens=4)
    assert all(one.score is not None and one.score < 0 for one in found)
    pixels = pixel_values(captioner, 2)
    rows = packed(captioner, random_captions(captioner, (2, 1)))
    with torch.inference_mode():
        exact = captioner.logits(captioner.encode(pixels), rows)
        rounded = held.captioner.logits(held.captioner.encode(pixels.to(torch.bfloat16)), rows)
    assert rounded.dtype == torch.bfloat16
    words = rows.labels >= 0
    apart = (rounded.float() - exact)[words].square().mean().sqrt() / exact[words].std()
    # A product of bfloat16 numbers is off by 2^-9 of its size, and a few dozen follow one another.
    assert float(apart) < 32 * 2**-9


def decoded(captioner: Captioner, sequences: torch.Tensor) -> list[str]:
    texts: list[str] = captioner.tokenizer.batch_decode(sequences, skip_special_tokens=True)
    return texts


def test_the_command_takes_it_and_says_so_in_shards(tmp_path: Path) -> None:
    build("vit_gpt2").save(tmp_path / "model", GenerateOptions())
    for number in range(2):
        (tmp_path / "photos").mkdir(exist_ok=True)
        random_image(number).save(tmp_path / "photos" / f"{number}.png")
    asked = ["caption", str(tmp_path / "model"), str(tmp_path / "photos"), "--dtype", "bfloat16"]
    for more in (["-o", str(tmp_path / "x.jsonl")], ["-o", str(tmp_path / "shards"), "--to-shards", "parquet"]):
        done = CliRunner().invoke(app, [*asked, *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    made_with = json.loads((tmp_path / "shards" / "captioning.json").read_text(encoding="utf-8"))
    assert made_with["dtype"] == "bfloat16" and made_with["quantization"] is None
    assert len((tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize(
    ("family", "dtype", "said"),
    [
        ("blip", "float16", "dtype: choose bfloat16 or float32, not 'float16'"),
        ("retrieval", "bfloat16", "dtype: Retrieval computes in a type of its own; leave it out"),
    ],
)
def test_wrong_number_types_are_named(family: str, dtype: Any, said: str) -> None:
    with pytest.raises(OptionError) as raised:
        hold_for_captioning(build(family), Weights(dtype))
    assert str(raised.value) == said


def test_few_bits_stay_as_they_are() -> None:
    captioner = build("blip")
    captioner.model.is_quantized = True
    with pytest.raises(OptionError, match="dtype: the model's weights are stored in few bits; leave it out"):
        hold_for_captioning(captioner, Weights("bfloat16"))
