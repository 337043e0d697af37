"""Contact sheet, numbers and words for people."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.text import Text

from hfcap.data.packing import pack_captions
from hfcap.data.source import load_split
from hfcap.doctor import console_report, labels, pixels, run_checks
from hfcap.doctor.cost import plan_schedule
from hfcap.doctor.findings import Findings
from hfcap.doctor.labels import LabelCounts, ShownCaption
from hfcap.text import gigabytes
from tests.doctor.examined import report_of, tiny_recipe


def test_contact_sheet_shows_images_as_they_are_and_as_training_changes_them(tmp_path: Path) -> None:
    augment = {"brightness": 0.9, "horizontal_flip": 1.0, "flip_captions": "skip", "word_dropout": 0.5}
    recipe = tiny_recipe(tmp_path, "vit_gpt2", augment=augment)
    plain = tiny_recipe(tmp_path, "vit_gpt2", name="plain")
    reports = [report_of(one, healthy=True) for one in (recipe, plain)]
    # Labels are examined on captions as they are: hidden words would look like wrong ones.
    assert reports[0]["labels"] == reports[1]["labels"]
    sheet = Image.open(run_checks.output_folder(recipe) / "contact_sheet.png").convert("RGB")
    cells = [sheet.crop((12 + 236 * n, 12, 12 + 236 * n + 224, 12 + 224)) for n in range(4)]
    original = Image.open(run_checks.output_folder(plain) / "contact_sheet.png").convert("RGB")
    assert cells[0].tobytes() == original.crop((12, 12, 236, 236)).tobytes()
    assert cells[0].tobytes() != cells[1].tobytes() and cells[2].tobytes() != cells[3].tobytes()


def test_contact_sheet() -> None:
    images = torch.zeros(5, 3, 16, 32)
    images[1, 0] = 1  # red
    images[4, 2] = 1  # blue
    png = pixels.contact_sheet(images, ["a", "b", "c " * 100, "d", "e"])
    sheet = Image.open(io.BytesIO(png))
    assert sheet.format == "PNG"
    assert sheet.size == (4 * (224 + 12) + 12, 2 * (224 + 52 + 12) + 12)
    assert sheet.getpixel((12 + 236 + 112, 12 + 112)) == (255, 0, 0)
    assert sheet.getpixel((12 + 112, 12 + 288 + 112)) == (0, 0, 255)
    assert sheet.getpixel((12 + 112, 12 + 30)) == (255, 255, 255)  # wide images keep their shape
    under_third = sheet.crop((12 + 2 * 236, 12 + 226, 12 + 2 * 236 + 224, 12 + 276)).convert("L")
    assert under_third.tobytes() != bytes([255]) * under_third.width * under_third.height  # its caption
    beside = sheet.crop((12 + 2 * 236 + 225, 12 + 226, 12 + 3 * 236, 12 + 276)).convert("L")
    assert beside.getextrema() == (255, 255)  # cut, not run into the next one


def test_contact_sheet_of_a_recipe(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    report = report_of(recipe, healthy=True)
    sheet = Image.open(run_checks.output_folder(recipe) / "contact_sheet.png")
    assert sheet.size == (956, 588)
    first = load_split(recipe.data, "train")[0]
    original = Image.open(io.BytesIO(first.image.read())).convert("RGB").resize((224, 224), Image.Resampling.NEAREST)
    # BLIP's normalisation is undone: colours are those of the image itself.
    shown = torch.tensor(list(sheet.crop((12, 12, 236, 236)).tobytes()), dtype=torch.float32)
    assert (shown - torch.tensor(list(original.tobytes()), dtype=torch.float32)).abs().mean() < 3
    assert report["pixels"]["size"] == [32, 32]


def test_counting_one_caption_by_hand(tmp_path: Path) -> None:
    class Tokens:
        end_token_id = 9

        def start_token_ids(self) -> list[int]:
            return [1, 2]

    packed = pack_captions([[[5, 6], [7]], [[8]]], [1, 2], 9, 0)
    tokens: Any = Tokens()
    assert labels.count_labels(packed, packed.labels, tokens) == LabelCounts(
        positions=14, padding=4, supervised=7, found=3, ended=3
    )
    wrong = packed.labels.clone()
    wrong[0, 0] = 2  # prompt
    wrong[0, 1] = 6  # should be 5
    wrong[0, 2] = -100  # should be 6
    wrong[1, 2] = 0  # the end
    wrong[1, 6] = 0  # padding
    cut = packed.labels.clone()
    cut[0, 3] = -100  # after two words, where captions are cut
    assert labels.count_labels(packed, cut, tokens, 2).ended == 3
    assert labels.count_labels(packed, cut, tokens, 3).ended == 2
    assert labels.count_labels(packed, wrong, tokens) == LabelCounts(
        positions=14, padding=4, supervised=8, found=3, ended=2,
        padding_in_loss=1, prompt_in_loss=1, words_ignored=1, wrong_target=1,
    )  # fmt: skip


def test_schedule_by_hand(tmp_path: Path) -> None:
    train = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "num_train_epochs": 2.5}
    schedule = plan_schedule(tiny_recipe(tmp_path, train=train), [5] * 8, Findings())
    assert (schedule.steps_per_epoch, schedule.updates_per_epoch, schedule.updates) == (3, 2, 5)
    assert schedule.validations == 3
    findings = Findings()
    plan_schedule(tiny_recipe(tmp_path, train={**train, "num_train_epochs": 0.1}), [5] * 8, findings)
    plan_schedule(tiny_recipe(tmp_path, train={"warmup_steps": 2}), [5] * 8, findings)
    assert [problem.key for problem in findings.problems] == ["train.num_train_epochs", "train.warmup_steps"]


def test_strangers_text_does_not_command_the_terminal() -> None:
    """Escape bytes of captions were printed as they are."""
    evil = "\x1b]0;owned\x07\x1b[2Jcat\x9b31m\r\n\u202e"
    for terminal in (True, False):
        console = Console(force_terminal=terminal, color_system="standard" if terminal else None, width=200)
        with console.capture() as captured:
            console_report._print_indented(console, Text(evil))
            caption = ShownCaption(evil, [(evil, True), (evil, False)])
            console_report._print_indented(console, console_report.caption_text(caption, coloured=terminal))
            console_report._section(console, "Data", iter([f"most frequent: {evil!r}", evil]))
        said = re.sub(r"\x1b\[[0-9;]*m", "", captured.get())  # the colours are rich's own
        assert "cat" in said
        assert all(letter.isprintable() or letter == "\n" for letter in said), repr(said)


def test_tokens_in_colour_and_in_brackets() -> None:
    caption = ShownCaption(
        "a.png", [("<start>", False), ("a", True), ("cat", True), ("<end>", True), ("<pad>", False), ("<pad>", False)]
    )
    assert str(console_report.caption_text(caption, coloured=False)) == "[<start>] a cat <end> [<pad> x 2]"
    console = Console(force_terminal=True, color_system="standard", width=80)
    with console.capture() as captured:
        console.print(console_report.caption_text(caption, coloured=True))
    assert captured.get() == "\x1b[90m<start>\x1b[0m \x1b[1;32ma cat <end>\x1b[0m \x1b[90m<pad> x 2\x1b[0m\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "under 1 s"), (61, "61 s"), (125, "2 min"), (9000, "2.5 h"), (260_000, "3.0 days")]
)
def test_durations(seconds: float, text: str) -> None:
    assert console_report.short_duration(seconds) == text


def test_sizes() -> None:
    assert [gigabytes(size) for size in (12_345, 5_250_000, 25_300_000_000)] == ["12.3 kB", "5.25 MB", "25.3 GB"]
