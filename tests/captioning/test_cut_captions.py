"""Captions that end at the length limit are counted, marked and said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hfcap.captioners.base import Captioner
from hfcap.captioning import caption_images
from hfcap.captioning.captioner import ImageCaptioner
from hfcap.data.loading import PixelInputs
from hfcap.decoding import DecodingJob, write_predictions
from hfcap.files import read_json_lines
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import CaptionedImage, Prediction
from tests.captioners.helpers import MemoryImage, build, pixel_values, write_image

OPTIONS = GenerateOptions(num_beams=1, max_new_tokens=4)


def ended(captioner: Captioner, options: GenerateOptions, end: int) -> list[bool]:
    """Whether plain generation of four images reaches the end token."""
    with torch.inference_mode():
        states = captioner.encode(pixel_values(captioner, 4))
        start = torch.tensor([captioner.start_token_ids()]).expand(4, -1)
        plain = captioner.plain_generate(states, start, captioner.generation_config(options))
    rows = plain if isinstance(plain, torch.Tensor) else plain.sequences
    return [end in row for row in rows[:, start.shape[1] :].tolist()]


def ending_early(monkeypatch: pytest.MonkeyPatch) -> tuple[Captioner, int]:
    """A captioner whose end token is a word that its first image gets, and the others do not."""
    captioner = build("blip")
    with torch.inference_mode():
        states = captioner.encode(pixel_values(captioner, 4))
        start = torch.tensor([captioner.start_token_ids()]).expand(4, -1)
        plain = captioner.plain_generate(states, start, captioner.generation_config(OPTIONS))
    rows = (plain if isinstance(plain, torch.Tensor) else plain.sequences)[:, start.shape[1] :].tolist()
    end = next(word for word in rows[0] if any(word not in row for row in rows[1:]))

    def changed(options: GenerateOptions) -> Any:
        given = Captioner.generation_config(captioner, options)
        given.eos_token_id = end
        return given

    monkeypatch.setattr(captioner, "generation_config", changed)
    return captioner, end


@pytest.mark.parametrize("num_beams", [1, 2])
def test_marked_where_no_end_was_reached(num_beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner, end = ending_early(monkeypatch)
    options = OPTIONS.model_copy(update={"num_beams": num_beams})
    with torch.inference_mode():
        found = captioner.caption_states(captioner.encode(pixel_values(captioner, 4)), options)
    cut = [captions[0].cut for captions in found]
    assert cut == [not end for end in ended(captioner, options, end)]
    assert num_beams > 1 or (not cut[0] and any(cut))


def test_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    captioner, end = ending_early(monkeypatch)
    expected = [not found for found in ended(captioner, OPTIONS, end)]
    records = [CaptionedImage(str(n), f"{n}.png", ("a dog",), MemoryImage(n)) for n in range(4)]
    job = DecodingJob(records, PixelInputs(records, captioner.image_processor), OPTIONS, 4, 0)
    alone = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True, wait_for_everyone=lambda: None)
    write_predictions(captioner, job, tmp_path / "test.jsonl", alone)
    rows = [row for _, row in read_json_lines(tmp_path / "test.jsonl", "predictions")]
    assert [row.get("cut", False) for row in rows] == expected
    said = f"{sum(expected)} of 4 captions were cut at 4 tokens; raise max_new_tokens"
    assert said in capsys.readouterr().err


def test_nothing_is_said_of_captions_that_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert "cut" not in Prediction("1", "1.png", "a dog").as_row()
    assert Prediction("1", "1.png", "a dog", cut=True).as_row()["cut"] is True
    assert capsys.readouterr().err == ""


def test_the_python_interface_says_so(tmp_path: Path) -> None:
    build("blip").save(tmp_path, OPTIONS)
    caption = ImageCaptioner(tmp_path).caption(MemoryImage(0).read(), max_new_tokens=3, num_beams=1)
    assert caption.cut and len(caption.text.split()) <= 3


def test_the_command_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("blip").save(tmp_path / "model", OPTIONS)
    images = [str(write_image(tmp_path / f"{number}.png", number)) for number in range(4)]
    rows = caption_images(str(tmp_path / "model"), images, tmp_path / "captions.jsonl")
    n_cut = sum(row.cut for row in rows)
    assert n_cut > 0
    assert f"{n_cut} of 4 captions were cut at 4 tokens; raise max_new_tokens" in capsys.readouterr().err
