"""The doctor: silent about healthy captioners of every family, loud about each fault that was planted."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from hfcap import cli, registry
from hfcap.captioners import blip
from hfcap.data import loading
from hfcap.data.images import FileImage
from hfcap.data.kept import kept_stores
from hfcap.data.packing import pack_captions
from hfcap.data.source import load_split
from hfcap.doctor import dataset, display, examination, labels, pixels
from hfcap.doctor.cost import gigabytes, plan_schedule
from hfcap.doctor.examination import examine
from hfcap.doctor.findings import Findings
from hfcap.doctor.labels import LabelCounts, ShownCaption
from hfcap.errors import UserError
from hfcap.recipe import Recipe
from hfcap.recipe_loading import dump_recipe, recipe_from_mapping
from hfcap.schema import CaptionedImage, PackedCaptions
from hfcap.stages import Run
from hfcap.training.objectives import CrossEntropy
from tests.training.harness import FAMILIES, SOME_FAMILIES


def tiny_recipe(folder: Path, family: str = "blip", **blocks: Any) -> Recipe:
    """A recipe on eight scenes; blocks given are merged into it."""
    values: dict[str, Any] = {
        "name": "tiny",
        "output_dir": str(folder / "runs"),
        "captioner": family,
        "model": registry.load("captioners", family).REGISTERED.tiny(),
        "data": {"source": "scenes", "n_train": 8, "n_validation": 4, "n_test": 4, "image_size": 32},
        "train": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "dataloader_num_workers": 0},
        "generate": {"num_beams": 2, "max_new_tokens": 40},
    }
    if family == "blip":
        # transformers starts BLIP's vision model from 1e-10, at which no picture changes anything.
        values["model"]["from_config"]["vision_config"]["initializer_range"] = 0.02
    for name, block in blocks.items():
        values[name] = {**values[name], **block} if isinstance(values.get(name), dict) else block
    return recipe_from_mapping(values, "test")


def report_of(recipe: Recipe, healthy: bool, steps: int = 0) -> dict[str, Any]:
    """Examine, check the verdict, and return doctor.json."""
    assert examine(recipe, steps=steps) is healthy
    report: dict[str, Any] = json.loads((examination.output_folder(recipe) / "doctor.json").read_text("utf-8"))
    assert report["healthy"] is healthy
    return report


def problems_of(report: dict[str, Any], level: str) -> list[str]:
    return [f"{one['key']}: {one['message']}" for one in report["problems"] if one["level"] == level]


def the_error(report: dict[str, Any], *words: str) -> str:
    """The first error that contains all words."""
    errors = problems_of(report, "error")
    found = [error for error in errors if all(word in error for word in words)]
    assert found, errors
    return found[0]


# ---- healthy captioners ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_captioner(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(tmp_path, family, model={"prompt": "a picture of"})
    report = report_of(recipe, healthy=True, steps=2)
    assert report["problems"] == []
    for counts in (report["labels"]["counted"], report["labels"]["measured"]):
        assert counts["captions"] == counts["found"] == counts["ended"] > 0
        wrong = ("padding_taught", "prompt_taught", "words_ignored", "wrong_target", "wrong_start")
        assert [counts[name] for name in wrong] == [0] * 5
    assert report["labels"]["counted"]["captions"] == 40
    assert report["labels"]["loss"] == pytest.approx(report["labels"]["uniform"], abs=1)
    agreement = report["agreement"]
    starts = {agreement[f"start_in_{place}"] for place in ("training", "generation", "transformers")}
    assert starts == {"<start>"}
    assert agreement["prediction_difference"] < 1e-4
    assert agreement["leak"] < 1e-4 < agreement["picture_effect"]
    printed = capsys.readouterr().out
    assert "[<start>apictureof]" in printed.replace(" ", "")
    assert "Nothing wrong." in printed
    assert not (tmp_path / "runs" / "tiny").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_taught_tokens_spell_the_captions(family: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, family, model={"prompt": "a picture of"})
    report = report_of(recipe, healthy=True)
    captions = {record.file_name: record.captions for record in load_split(recipe.data, "train")}
    shown: dict[str, list[str]] = {}
    for one in report["labels"]["shown"]:
        shown.setdefault(one["file_name"], []).append("".join(text for text, taught in one["tokens"] if taught))
        ignored = [text for text, taught in one["tokens"] if not taught and text != "<pad>"]
        assert "".join(ignored) == "<start>apictureof"
    assert len(shown) >= 2
    for name, texts in shown.items():
        assert sorted(texts) == sorted(caption.lower().replace(" ", "") + "<end>" for caption in captions[name])


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_lora(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(tmp_path, family, lora={"r": 2}, train={"freeze": ["vision"]})
    report = report_of(recipe, healthy=True, steps=1)
    assert [problem.split(":")[0] for problem in problems_of(report, "warning")] == ["lora"]
    # Two layers each. GPT-2's cross-attention is new in vit_gpt2: trained in full, so not adapted.
    gpt2 = {"c_attn": 2, "c_proj": 4, "c_fc": 2}
    lora = report["weights"]["lora"]
    assert lora["adapted"] == ({"query": 4, "key": 4, "value": 4, "dense": 8} if family == "blip" else gpt2)
    in_full = sorted({name.rsplit(".", 1)[-1] for name in lora["in_full"]})
    expected = {"blip": [], "clip_prefix": ["mapper"], "vit_gpt2": ["crossattention", "ln_cross_attn"]}
    assert in_full == expected[family]
    assert report["weights"]["parts"]["vision"]["trained"] == 0
    printed = capsys.readouterr().out
    assert f"LoRA adapts {sum(lora['adapted'].values())} layers" in printed


def test_feature_store_is_estimated_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    tiny = registry.load("captioners", "clip_prefix").REGISTERED.tiny()
    recipe = tiny_recipe(tmp_path, "clip_prefix", model=tiny, train={"freeze": ["vision"]})
    disk = report_of(recipe, healthy=True, steps=1)["cost"]["disk"]
    store = disk["feature_store"]
    assert store["bytes"] == (8 + 4 + 4) * 32 * 2  # one pooled vector of width 32 in half precision each
    assert store["folder"].startswith(str(tmp_path / "cache" / "features")) and disk["image_cache"] is None
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []
    Run(recipe).execute("train")
    # Training keeps the pictures of train and validation; only those of the test are still lacking.
    store = report_of(recipe, healthy=True, steps=1)["cost"]["disk"]["feature_store"]
    assert (store["pictures"], store["bytes"]) == (4, 4 * 32 * 2)


def test_image_cache_is_estimated_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    recipe = tiny_recipe(tmp_path, data={"image_cache": True, "image_cache_folder": str(tmp_path / "kept")})
    before = report_of(recipe, healthy=True, steps=1)["cost"]["disk"]
    assert before["feature_store"] is None and not (tmp_path / "kept").exists()
    Run(recipe).execute("train")
    after = report_of(recipe, healthy=True, steps=1)["cost"]["disk"]["image_cache"]
    [kept] = kept_stores(tmp_path / "kept")
    assert str(kept.folder) == before["image_cache"]["folder"] == after["folder"]
    assert before["image_cache"]["pictures"] == kept.n_pictures + after["pictures"] and after["pictures"] == 4
    written = sum(path.stat().st_size for path in kept.folder.glob("*.safetensors"))
    # Names and checksums come on top.
    assert 0 < written - (before["image_cache"]["bytes"] - after["bytes"]) < 0.1 * written


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 0))
    recipe = tiny_recipe(tmp_path, data={"image_cache": True, "image_cache_folder": str(tmp_path / "kept")})
    report = report_of(recipe, healthy=False, steps=1)
    run, cache = problems_of(report, "error")
    assert run.startswith("output_dir: ") and "and data.image_cache_folder on the same disk 49.2 kB" in run
    assert cache.startswith("data.image_cache_folder: 16 pictures") and "0 kB are free" in cache


def test_costs_agree_with_a_real_run(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "vit_gpt2", train={"ema_decay": 0.9})
    before = report_of(recipe, healthy=True, steps=1)
    run = Run(recipe)
    run.execute("train")
    files = {path: path.stat().st_mtime_ns for path in run.directory.path.rglob("*")}
    again = report_of(recipe, healthy=True, steps=1)
    assert {path: path.stat().st_mtime_ns for path in run.directory.path.rglob("*")} == files
    checkpoint = next(run.directory.checkpoints.glob("step-*"))
    written = sum(path.stat().st_size for path in checkpoint.glob("[!r]*.safetensors"))
    assert before["cost"]["disk"]["checkpoint"] == pytest.approx(written, rel=0.3)
    assert before["cost"]["disk"]["checkpoint"] < written  # names and shapes come on top
    summary = json.loads(run.directory.summary.read_text("utf-8"))
    assert before["cost"]["schedule"]["updates"] == summary["steps"] == 2
    trained = summary["trainable_parameters"]
    memory = before["cost"]["memory"]
    assert (memory["gradients"], memory["optimizer"], memory["average"]) == (4 * trained, 8 * trained, 4 * trained)
    assert again["labels"] == before["labels"]


def test_activations_grow_with_the_batch(tmp_path: Path) -> None:
    sizes = {}
    for batch in (2, 8):
        recipe = tiny_recipe(tmp_path, train={"per_device_train_batch_size": batch})
        sizes[batch] = report_of(recipe, healthy=True, steps=1)["cost"]["memory"]["activations"]
    assert 3 < sizes[8] / sizes[2] < 5


# ---- planted faults -------------------------------------------------------------------------------------------------


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let the family blip be another class for one test."""
    yield lambda broken: monkeypatch.setattr(blip, "REGISTERED", broken)


def test_padding_in_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(captions: Any, start: Sequence[int], end: int, pad: int, **shown: Any) -> PackedCaptions:
        packed = pack_captions(captions, start, end, pad, **shown)
        return replace(packed, labels=packed.labels.masked_fill(packed.caption_index < 0, pad))

    monkeypatch.setattr(loading, "pack_captions", pack)
    report = report_of(tiny_recipe(tmp_path), healthy=False)
    the_error(report, "padding positions are in the loss", "seen in the batches")
    the_error(report, "padding positions are in the loss", "seen in the loss")
    counts = report["labels"]["counted"]
    assert counts["padding_taught"] == counts["padding"] > 0


def test_end_token_not_taught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(captions: Any, start: Sequence[int], end: int, pad: int, **shown: Any) -> PackedCaptions:
        packed = pack_captions(captions, start, end, pad, **shown)
        return replace(packed, labels=packed.labels.masked_fill(packed.labels == end, -100))

    monkeypatch.setattr(loading, "pack_captions", pack)
    report = report_of(tiny_recipe(tmp_path), healthy=False)
    assert the_error(report, "never learns to stop").startswith("captioner: 40 captions")


def test_labels_not_shifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(captions: Any, start: Sequence[int], end: int, pad: int, **shown: Any) -> PackedCaptions:
        packed = pack_captions(captions, start, end, pad, **shown)
        return replace(packed, labels=packed.input_ids.masked_fill(packed.caption_index < 0, -100))

    monkeypatch.setattr(loading, "pack_captions", pack)
    the_error(report_of(tiny_recipe(tmp_path), healthy=False), "taught another token than the next one")


def test_an_objective_that_counts_ignored_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels are right here; only the gradient shows what the loss makes of them."""

    class CountsEverything(CrossEntropy):
        def forward(self, batch: loading.CaptionBatch) -> torch.Tensor:
            packed = replace(batch.packed, labels=batch.packed.labels.clamp(min=0))
            return super().forward(replace(batch, packed=packed))

    monkeypatch.setattr(labels, "CrossEntropy", CountsEverything)
    report = report_of(tiny_recipe(tmp_path, model={"prompt": "a picture of"}), healthy=False)
    the_error(report, "prompt positions are in the loss (seen in the loss)")
    assert not [error for error in problems_of(report, "error") if "seen in the batches" in error]


def test_another_start_token_in_generation(plant: Any, tmp_path: Path) -> None:
    class StartsAtEnd(blip.Blip):
        """Trains from [SEP], as transformers' BLIP examples do; plain `generate` starts from [DEC]."""

        @property
        def start_token_id(self) -> int:
            return self.end_token_id

    plant(StartsAtEnd)
    report = report_of(tiny_recipe(tmp_path), healthy=False)
    the_error(report, "training starts from '<end>'", "plain transformers", "from '<start>'")


def test_generate_that_forces_its_own_start(plant: Any, tmp_path: Path) -> None:
    class ForcesPad(blip.Blip):
        def generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: Any) -> Any:
            return super().generate(image_states, torch.full_like(input_ids, self.pad_token_id), config)

    plant(ForcesPad)
    report = report_of(tiny_recipe(tmp_path), healthy=False)
    the_error(report, "training starts from '<start>'", "generation from '<pad>'")
    the_error(report, "training and generation predict differently")


def test_positions_that_differ_in_generation(plant: Any, tmp_path: Path) -> None:
    class CountsFromOne(blip.Blip):
        def logits(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
            return super().logits(image_states, replace(packed, position_ids=packed.position_ids + 1))

    plant(CountsFromOne)
    report = report_of(tiny_recipe(tmp_path), healthy=False)
    assert len(problems_of(report, "error")) == 1
    the_error(report, "training and generation predict differently")


def test_captions_that_see_one_another(plant: Any, tmp_path: Path) -> None:
    class OneLongCaption(blip.Blip):
        def logits(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
            return super().logits(image_states, replace(packed, caption_index=packed.caption_index.clamp(max=0)))

    plant(OneLongCaption)
    the_error(report_of(tiny_recipe(tmp_path), healthy=False), "depend on later words or on other captions")


def test_a_captioner_that_does_not_look(plant: Any, tmp_path: Path) -> None:
    class Blind(blip.Blip):
        def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return super().encode(pixel_values) * 0

    plant(Blind)
    warnings = problems_of(report_of(tiny_recipe(tmp_path), healthy=True), "warning")
    assert [warning for warning in warnings if "does not look" in warning]


def test_a_vision_model_that_starts_from_nothing(tmp_path: Path) -> None:
    model = registry.load("captioners", "blip").REGISTERED.tiny()
    model["from_config"]["vision_config"]["initializer_range"] = 1e-10
    report = report_of(tiny_recipe(tmp_path, model=model), healthy=True)
    assert [(one["key"], "initializer_range" in one["remedy"]) for one in report["problems"]] == [("model", True)]


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("rescale_factor", 1 / 255 / 255, "rescaled twice"),
        ("do_rescale", False, "not rescaled"),
        ("image_std", [float("nan")] * 3, "not numbers"),
    ],
)
def test_wrong_pixels(plant: Any, tmp_path: Path, attribute: str, value: Any, words: str) -> None:
    class WrongPixels(blip.Blip):
        @property
        def image_processor(self) -> Any:
            processor = super().image_processor
            setattr(processor, attribute, value)
            return processor

    plant(WrongPixels)
    report = report_of(tiny_recipe(tmp_path), healthy=False)
    the_error(report, "image processor", words)


def test_captions_longer_than_the_model(tmp_path: Path) -> None:
    tiny = registry.load("captioners", "vit_gpt2").REGISTERED.tiny()
    tiny["decoder_config"]["n_positions"] = 20
    recipe = tiny_recipe(tmp_path, "vit_gpt2", model=tiny, data={"max_caption_tokens": 8})
    report = report_of(recipe, healthy=False)
    the_error(report, "generate.max_new_tokens", "does not fit")
    assert any("are cut at 8 tokens" in warning for warning in problems_of(report, "warning"))


def test_fp16_without_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = report_of(tiny_recipe(tmp_path, train={"mixed_precision": "fp16"}), healthy=False, steps=1)
    the_error(report, "train.mixed_precision", "fp16 needs a GPU")
    assert report["measured"]["batches"] == 1


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "memory_of", lambda device: 1_000_000)
    report = report_of(tiny_recipe(tmp_path), healthy=False, steps=1)
    the_error(report, "train.per_device_train_batch_size", "this machine has 1 MB")
    assert report["measured"] is None


def test_random_weights_that_stay_frozen(tmp_path: Path) -> None:
    report = report_of(tiny_recipe(tmp_path, train={"freeze": ["vision"]}), healthy=True)
    assert problems_of(report, "warning") == [
        "train.freeze: vision: random weights are frozen and never learn anything"
    ]


# ---- data -----------------------------------------------------------------------------------------------------------


def record(folder: Path, name: str, colour: str, *captions: str, image_id: str = "") -> CaptionedImage:
    path = folder / name
    Image.new("RGB", (40, 30), colour).save(path)
    return CaptionedImage(image_id or name, name, captions, FileImage(path))


def test_pictures_in_two_splits(tmp_path: Path) -> None:
    train = [record(tmp_path, "a.png", "red", "a red wall"), record(tmp_path, "b.png", "blue", "the sea", "the  Sea")]
    other = tmp_path / "other"
    other.mkdir()
    validation = [
        record(other, "copy.png", "red", "a wall"),
        record(other, "new.png", "green", "grass", image_id="b.png"),
        record(other, "b.png", "black", "night", image_id="c"),
        record(other, "fine.png", "white", "a white wall"),
    ]
    findings = Findings()
    facts = dataset.examine_data({"train": train, "validation": validation}, findings)
    shared = facts.shared_with_train["validation"]
    assert (shared.same_id, shared.same_file_name, shared.same_bytes) == (1, 1, 1)
    assert facts.most_frequent[0] == ("the sea", 2)
    assert facts.splits["train"].captions_per_picture == {1: 1, 2: 1}
    assert facts.splits["validation"].one_word_captions == 2
    assert [problem.key for problem in findings.problems] == ["data.validation_split"]
    assert "1 by id, 1 by file name, 1 by content" in findings.problems[0].message


def test_scored_pictures_that_chose_the_checkpoint(tmp_path: Path) -> None:
    train, held_out = record(tmp_path, "a.png", "red", "a red wall"), record(tmp_path, "b.png", "blue", "the sea")
    findings = Findings()
    dataset.examine_data({"train": [train], "validation": [held_out], "test": [held_out]}, findings)
    assert [(problem.level, problem.key) for problem in findings.problems] == [("warning", "data.test_split")]
    assert "1 of 1 scored pictures are validation pictures too" in findings.problems[0].message


def test_placeholder_captions(tmp_path: Path) -> None:
    train = [record(tmp_path, f"{n}.png", "red", "photo" if n % 2 else f"a red wall, take {n}") for n in range(20)]
    findings = Findings()
    dataset.examine_data({"train": train}, findings)
    assert [problem.message for problem in findings.problems] == [
        "10 of 20 training captions are 'photo'; the captioner will learn to say just that",
        "10 of 20 training captions are a single word",
    ]


def test_markers_read_as_special_tokens(plant: Any, tmp_path: Path) -> None:
    class ReadsMarkers(blip.Blip):
        def caption_token_ids(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
            ids: list[list[int]] = self.tokenizer(list(captions), add_special_tokens=False)["input_ids"]
            return ids

    plant(ReadsMarkers)
    root = tmp_path / "pictures"
    for split in ("train", "validation", "test"):
        (root / split).mkdir(parents=True)
        rows = [record(root / split, f"{n}.png", "red", f"a red wall{' <end> or' * (n == 3)}") for n in range(4)]
        lines = [json.dumps({"file_name": row.file_name, "caption": row.captions[0]}) for row in rows]
        (root / split / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = registry.load("sources", "folder").REGISTERED.options
    recipe = tiny_recipe(tmp_path).model_copy(update={"data": options(source="folder", root=str(root))})
    report = report_of(recipe, healthy=False)
    the_error(report, "data.source: 1 captions contain the start, end or pad token")
    shared = report["data"]["shared_with_train"]["validation"]
    # Names are the split's own; the four red pictures have the same bytes, though.
    assert shared["same_bytes"] == 1


# ---- contact sheet, numbers and words for people --------------------------------------------------------------------


def test_contact_sheet_shows_pictures_as_they_are_and_as_training_changes_them(tmp_path: Path) -> None:
    augment = {"brightness": 0.9, "horizontal_flip": 1.0, "flip_captions": "skip", "word_dropout": 0.5}
    recipe = tiny_recipe(tmp_path, "vit_gpt2", augment=augment)
    plain = tiny_recipe(tmp_path, "vit_gpt2", name="plain")
    reports = [report_of(one, healthy=True) for one in (recipe, plain)]
    # Labels are examined on captions as they are: hidden words would look like wrong ones.
    assert reports[0]["labels"] == reports[1]["labels"]
    sheet = Image.open(examination.output_folder(recipe) / "contact_sheet.png").convert("RGB")
    cells = [sheet.crop((12 + 236 * n, 12, 12 + 236 * n + 224, 12 + 224)) for n in range(4)]
    original = Image.open(examination.output_folder(plain) / "contact_sheet.png").convert("RGB")
    assert cells[0].tobytes() == original.crop((12, 12, 236, 236)).tobytes()
    assert cells[0].tobytes() != cells[1].tobytes() and cells[2].tobytes() != cells[3].tobytes()


def test_contact_sheet() -> None:
    pictures = torch.zeros(5, 3, 16, 32)
    pictures[1, 0] = 1  # red
    pictures[4, 2] = 1  # blue
    png = pixels.contact_sheet(pictures, ["a", "b", "c " * 100, "d", "e"])
    sheet = Image.open(io.BytesIO(png))
    assert sheet.format == "PNG"
    assert sheet.size == (4 * (224 + 12) + 12, 2 * (224 + 52 + 12) + 12)
    assert sheet.getpixel((12 + 236 + 112, 12 + 112)) == (255, 0, 0)
    assert sheet.getpixel((12 + 112, 12 + 288 + 112)) == (0, 0, 255)
    assert sheet.getpixel((12 + 112, 12 + 30)) == (255, 255, 255)  # wide pictures keep their shape
    under_third = sheet.crop((12 + 2 * 236, 12 + 226, 12 + 2 * 236 + 224, 12 + 276)).convert("L")
    assert under_third.tobytes() != bytes([255]) * under_third.width * under_third.height  # its caption
    beside = sheet.crop((12 + 2 * 236 + 225, 12 + 226, 12 + 3 * 236, 12 + 276)).convert("L")
    assert beside.getextrema() == (255, 255)  # cut, not run into the next one


def test_contact_sheet_of_a_recipe(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    report = report_of(recipe, healthy=True)
    sheet = Image.open(examination.output_folder(recipe) / "contact_sheet.png")
    assert sheet.size == (956, 588)
    first = load_split(recipe.data, "train")[0]
    original = Image.open(io.BytesIO(first.image.read())).convert("RGB").resize((224, 224), Image.Resampling.NEAREST)
    # BLIP's normalisation is undone: colours are those of the picture itself.
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
    assert labels.count_labels(packed, wrong, tokens) == LabelCounts(
        positions=14, padding=4, supervised=8, found=3, ended=2,
        padding_taught=1, prompt_taught=1, words_ignored=1, wrong_target=1,
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


def test_tokens_in_colour_and_in_brackets() -> None:
    caption = ShownCaption(
        "a.png", [("<start>", False), ("a", True), ("cat", True), ("<end>", True), ("<pad>", False), ("<pad>", False)]
    )
    assert str(display.caption_text(caption, coloured=False)) == "[<start>] a cat <end> [<pad> x 2]"
    console = Console(force_terminal=True, color_system="standard", width=80)
    with console.capture() as captured:
        console.print(display.caption_text(caption, coloured=True))
    assert captured.get() == "\x1b[90m<start>\x1b[0m \x1b[1;32ma cat <end>\x1b[0m \x1b[90m<pad> x 2\x1b[0m\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "under 1 s"), (61, "61 s"), (125, "2 min"), (9000, "2.5 h"), (260_000, "3.0 days")]
)
def test_durations(seconds: float, text: str) -> None:
    assert display.duration(seconds) == text


def test_sizes() -> None:
    assert [gigabytes(size) for size in (12_345, 5_250_000, 25_300_000_000)] == ["12.3 kB", "5.25 MB", "25.3 GB"]


# ---- command line ---------------------------------------------------------------------------------------------------


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hfcap", "doctor", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(tiny_recipe(tmp_path)), encoding="utf-8")
    output = tmp_path / "doctor"
    assert exit_code(monkeypatch, str(path), "--steps", "0", "-o", str(output)) == 0
    assert {file.name for file in output.iterdir()} == {"doctor.json", "contact_sheet.png"}
    assert exit_code(monkeypatch, str(path), "train.num_train_epochs=0.01", "--steps", "1") == 1
    capsys.readouterr()
    code = exit_code(monkeypatch, str(path), "lora.target_modules=[nothing_like_this]", "-o", str(output))
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.count("lora.target_modules") == 1
    assert "Traceback" not in captured.err
    report = json.loads((output / "doctor.json").read_text("utf-8"))
    assert not report["healthy"]
    the_error(report, "'nothing_like_this' matches no linear layer")
    assert report["pixels"] is not None


def test_a_split_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.test_split"):
        examine(tiny_recipe(tmp_path, data={"n_test": 0}))
    assert list(tmp_path.iterdir()) == []
