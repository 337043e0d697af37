"""Learning, best checkpoints, stopping and what training records."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hfcap.captioners.loading import load_captioner
from hfcap.data.images import decode_image
from hfcap.data.loading import CaptionBatch
from hfcap.data.source import load_split
from hfcap.errors import WorkError
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.training.objectives.cross_entropy import CrossEntropy
from hfcap.training.validation import Validator
from tests.training.harness import (
    FAMILIES,
    SOME_FAMILIES,
    Result,
    assert_same_tensors,
    largest_difference,
    recipe_values,
    tiny_recipe,
    train,
)


@pytest.mark.parametrize("captioner", FAMILIES)
def test_sixteen_scenes_are_learnt_in_full_and_then_others_with_lora(captioner: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dropout": 0.0, "per_device_train_batch_size": 16, "max_steps": 60, "eval_steps": 60}
    scenes = {"n_train": 16}
    start = recipe_values(captioner, tmp_path / "full", data=scenes, learning_rate=1e-2, **options)
    if captioner == "show_attend_tell":
        start["model"]["attention_penalty"] = 0.0  # a part of the loss that has nothing to do with words
    full = train(recipe_from_mapping(start, "test"))
    assert full.losses[0] == pytest.approx(math.log(400), rel=0.1)  # as good as guessing
    assert full.losses[-1] < 0.4 * full.losses[0]
    values = recipe_values(
        captioner, tmp_path / "lora", "lora", data={**scenes, "seed": 1}, learning_rate=2e-2, **options
    )
    adapted = train(recipe_from_mapping({**values, "model": {"pretrained": str(full.run.model)}}, "test"))
    assert adapted.losses[0] < 0.7 * full.losses[0]  # it starts from what full training left
    assert adapted.losses[-1] < 0.8 * adapted.losses[0]
    summary = adapted.summary
    assert summary["method"] == "lora" and summary["trainable_parameters"] < 0.2 * summary["parameters"]


def script_validation(monkeypatch: pytest.MonkeyPatch, name: str, values: list[float]) -> None:
    """Let validations give these values, one after the other."""
    remaining = iter(values)
    original = Validator.values

    def scripted(self: Validator, *arguments: Any) -> dict[str, float]:
        return {**original(self, *arguments), name: next(remaining)}

    monkeypatch.setattr(Validator, "values", scripted)


@pytest.mark.parametrize(
    ("metric", "values", "best"), [("loss", [3.0, 1.0, 2.0, 2.5], 2), ("cider", [0.1, 0.3, 0.9, 0.2], 3)]
)
def test_the_best_checkpoint_is_kept_and_becomes_the_model(
    metric: str, values: list[float], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, metric, values)
    recipe = tiny_recipe("vit_gpt2", tmp_path, eval_steps=1, metric_for_best_model=metric, max_steps=4)
    result = train(recipe)
    assert result.summary["best_step"] == best
    assert result.summary["best_metric"] == {"name": metric, "value": values[best - 1]}
    assert result.steps == sorted({best, 3, 4})
    model = result.model_weights()
    kept = result.weights(best)
    shared = model.keys() & kept.keys()
    assert len(shared) > 20
    assert_same_tensors({name: model[name] for name in shared}, {name: kept[name] for name in shared})
    assert largest_difference(kept, result.weights(4)) > 0


def test_the_last_weights_where_the_recipe_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, "loss", [1.0, 2.0, 3.0, 4.0])
    result = train(tiny_recipe("vit_gpt2", tmp_path, eval_steps=1, load_best_model_at_end=False))
    model, last = result.model_weights(), result.weights(4)
    shared = model.keys() & last.keys()
    assert_same_tensors({name: model[name] for name in shared}, {name: last[name] for name in shared})


def test_the_average_of_the_best_step_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, "loss", [3.0, 1.0, 2.0, 2.5])
    result = train(tiny_recipe("vit_gpt2", tmp_path, eval_steps=1, ema_decay=0.9))
    model, average = result.model_weights(), result.weights(2, "average")
    shared = model.keys() & average.keys()
    assert len(shared) > 20
    assert_same_tensors({name: model[name] for name in shared}, {name: average[name] for name in shared})
    assert largest_difference(average, {name: result.weights(2)[name] for name in average}) > 0


def test_validation_sees_the_average_and_puts_the_weights_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a look at the average, training goes the same way."""
    plain = train(tiny_recipe("vit_gpt2", tmp_path / "a", eval_steps=1))
    averaged = train(tiny_recipe("vit_gpt2", tmp_path / "b", eval_steps=1, ema_decay=0.99))
    assert plain.losses == averaged.losses
    assert_same_tensors(plain.weights(4), averaged.weights(4))

    def validations(result: Result) -> list[float]:
        return [row["validation_loss"] for row in result.rows if "validation_loss" in row]

    assert validations(plain) != validations(averaged)


@pytest.mark.parametrize("load_best", [True, False])
def test_early_stopping(load_best: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, "loss", [3.0, 2.0, 2.1, 2.0, 1.0])
    recipe = tiny_recipe(
        "vit_gpt2",
        tmp_path,
        max_steps=9,
        eval_steps=1,
        save_steps=3,
        early_stopping_patience=2,
        load_best_model_at_end=load_best,
    )
    result = train(recipe)
    assert (result.summary["stopped"], result.summary["steps"], result.summary["best_step"]) == ("early", 4, 2)
    again = train(recipe)  # finished: nothing is trained further
    assert again.summary["steps"] == 4
    assert_same_tensors(again.model_weights(), result.model_weights())


def test_save_total_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, "loss", [1.0, 2.0, 3.0])
    result = train(tiny_recipe("vit_gpt2", tmp_path, max_steps=6, eval_steps=2, save_steps=1, save_total_limit=3))
    assert result.steps == [2, 4, 5, 6]


def test_validation_loss_is_that_of_plain_transformers(tmp_path: Path) -> None:
    """Caption by caption through the saved model, batch of one, no packing."""
    result = train(
        tiny_recipe("vit_gpt2", tmp_path, dropout=0.1, max_steps=2, eval_steps=2, load_best_model_at_end=False)
    )
    captioner = load_captioner(str(result.run.model))
    recipe = tiny_recipe("vit_gpt2", tmp_path)
    total, tokens = 0.0, 0
    for record in load_split(recipe.data, "validation"):
        pixels = captioner.image_processor(images=decode_image(record.image), return_tensors="pt")["pixel_values"]
        for caption in record.captions:
            ids = captioner.tokenizer(caption, add_special_tokens=False)["input_ids"]
            labels = torch.tensor([[*ids, captioner.end_token_id]])
            inputs = torch.tensor([[captioner.start_token_id, *ids]])
            with torch.no_grad():
                logits = captioner.model(pixel_values=pixels, decoder_input_ids=inputs).logits
            total += float(torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="sum"))
            tokens += labels.numel()
    (logged,) = [row["validation_loss"] for row in result.rows if "validation_loss" in row]
    assert logged == pytest.approx(total / tokens, rel=1e-4)


def test_log_and_summary(tmp_path: Path) -> None:
    result = train(tiny_recipe("blip", tmp_path, num_train_epochs=1.5, logging_steps=2))
    rows = [row for row in result.rows if "loss" in row]
    # 7 images in batches of 2: 4 updates an epoch, 6 in one and a half.
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert [row["epoch"] for row in rows] == [0.5, 1.0, 1.5]
    for row in rows:
        assert {
            "learning_rate",
            "grad_norm",
            "images_per_second",
            "captions_per_second",
            "peak_memory_bytes",
        } <= row.keys()
        assert row["images_per_second"] > 0 and row["peak_memory_bytes"] > 10**7
    summary = result.summary
    assert (summary["steps"], summary["epochs"], summary["method"]) == (6, 1.5, "full")
    # The first epoch holds all 7 images; the second's two batches 4, or 3 where the short one comes early.
    assert summary["images_seen"] in (10, 11)
    assert summary["captions_seen"] == 5 * summary["images_seen"]


@pytest.mark.parametrize("captioner", SOME_FAMILIES)
def test_bfloat16_trains_on_the_cpu(captioner: str, tmp_path: Path) -> None:
    result = train(
        tiny_recipe(
            captioner, tmp_path, dropout=0.0, mixed_precision="bf16", max_steps=8, per_device_train_batch_size=7
        )
    )
    assert result.losses[-1] < result.losses[0]
    assert all(tensor.dtype == torch.float32 for tensor in result.weights(8, "optimizer").values())
    exact = train(tiny_recipe(captioner, tmp_path / "b", dropout=0.0, max_steps=8, per_device_train_batch_size=7))
    assert result.losses != exact.losses
    assert result.losses[0] == pytest.approx(exact.losses[0], rel=0.02)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = CrossEntropy.forward
    calls: list[int] = []

    def diverging(self: CrossEntropy, batch: CaptionBatch) -> torch.Tensor:
        loss = forward(self, batch)
        calls.append(1)
        return loss * math.nan if len(calls) == 3 else loss

    monkeypatch.setattr(CrossEntropy, "forward", diverging)
    recipe = tiny_recipe("vit_gpt2", tmp_path, save_steps=1, eval_steps=4)
    with pytest.raises(WorkError, match=r"step 3.*nan.*train\.learning_rate"):
        train(recipe)
    monkeypatch.undo()
    resumed = train(recipe)
    assert resumed.summary["steps"] == 4
    assert all(bool(torch.isfinite(tensor).all()) for tensor in resumed.weights(4).values())


def test_gradients_that_are_no_numbers_stop_the_run_before_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = CrossEntropy.forward

    def bad_gradient(self: CrossEntropy, batch: CaptionBatch) -> torch.Tensor:
        loss = forward(self, batch)
        loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    monkeypatch.setattr(CrossEntropy, "forward", bad_gradient)
    with pytest.raises(WorkError, match=r"gradient norm (nan|inf)"):
        train(tiny_recipe("vit_gpt2", tmp_path))


def test_a_validation_that_is_no_number_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_validation(monkeypatch, "loss", [math.nan])
    with pytest.raises(WorkError, match="step 2: validation gives"):
        train(tiny_recipe("vit_gpt2", tmp_path, eval_steps=2))


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = train(tiny_recipe("vit_gpt2", tmp_path, report_to=["tensorboard"], eval_steps=2))
    (events,) = (result.run.path / "trackers").rglob("events.out.tfevents.*")
    reader = event_accumulator.EventAccumulator(str(events.parent))
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("loss")] == [
        (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in result.rows if "loss" in row
    ]
    assert [event.step for event in reader.Scalars("validation_loss")] == [2, 4]


@pytest.mark.parametrize("augment", [None, {"word_dropout": 0.1}, {"synonym_replacement": 0.5}])
def test_captions_that_are_cut(
    augment: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither training nor validation sees an end after the cut, and the run says how many captions are cut."""
    ends: list[tuple[bool, int]] = []
    forward = CrossEntropy.forward

    def watched(self: CrossEntropy, batch: CaptionBatch) -> torch.Tensor:
        ends.append((self.training, int((batch.packed.labels == self.captioner.end_token_id).sum())))
        return forward(self, batch)

    monkeypatch.setattr(CrossEntropy, "forward", watched)
    values = recipe_values("vit_gpt2", tmp_path, max_steps=2, eval_steps=2)
    values["data"]["max_caption_tokens"] = 2  # all have more
    if augment:
        values["augment"] = augment
    train(recipe_from_mapping(values, "test"))
    assert {training for training, _ in ends} == {True, False}
    assert all(count == 0 for _, count in ends)
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"warning: (\d+) of \1 train captions are cut at 2 tokens, and teach no end", said)
    assert "validation captions are cut" in said
