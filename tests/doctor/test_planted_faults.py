"""The doctor is loud about each fault that was planted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hfcap import registry
from hfcap.captioners import blip
from hfcap.data import loading
from hfcap.data.packing import pack_captions
from hfcap.doctor import labels, run_checks
from hfcap.schema import PackedCaptions
from hfcap.training.objectives.cross_entropy import CrossEntropy
from tests.doctor.examined import problems_of, report_of, the_error, tiny_recipe
from tests.training.harness import forget_accelerator


def test_padding_in_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(captions: Any, start: Sequence[int], end: int, pad: int, **shown: Any) -> PackedCaptions:
        packed = pack_captions(captions, start, end, pad, **shown)
        return replace(packed, labels=packed.labels.masked_fill(packed.caption_index < 0, pad))

    monkeypatch.setattr(loading, "pack_captions", pack)
    report = report_of(tiny_recipe(tmp_path), healthy=False)
    the_error(report, "padding positions are in the loss", "seen in the batches")
    the_error(report, "padding positions are in the loss", "seen in the loss")
    counts = report["labels"]["counted"]
    assert counts["padding_in_loss"] == counts["padding"] > 0


def test_end_token_not_in_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    the_error(report_of(tiny_recipe(tmp_path), healthy=False), "another target than the next token")


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


@pytest.fixture
def other_accelerator() -> Iterator[None]:
    """Let a test have an Accelerator of another precision than those before and after it."""
    forget_accelerator()
    yield
    forget_accelerator()


def test_bf16_on_a_processor_without_it(
    other_accelerator: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("hfcap.environment.bfloat16_gain", lambda: 0.02)
    report = report_of(tiny_recipe(tmp_path, train={"mixed_precision": "bf16"}), healthy=True, steps=1)
    assert [one for one in problems_of(report, "warning") if "bfloat16 50 times as slowly" in one]


def test_bf16_on_a_processor_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("hfcap.doctor.measurement.bfloat16_gain", lambda: 3.0)
    report = report_of(tiny_recipe(tmp_path), healthy=True, steps=1)
    assert report["measured"]["bfloat16_gain"] == 3.0
    assert "products in bfloat16 are 3.0 times as fast here" in " ".join(capsys.readouterr().out.split())


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_checks, "memory_of", lambda device: 1_000_000)
    report = report_of(tiny_recipe(tmp_path), healthy=False, steps=1)
    the_error(report, "train.per_device_train_batch_size", "this machine has 1 MB")
    assert report["measured"] is None


def test_random_weights_that_stay_frozen(tmp_path: Path) -> None:
    report = report_of(tiny_recipe(tmp_path, train={"freeze": ["vision"]}), healthy=True)
    assert problems_of(report, "warning") == [
        "train.freeze: vision: random weights are frozen and never learn anything"
    ]
