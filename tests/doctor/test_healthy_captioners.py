"""The doctor is silent about healthy captioners of every family; its estimates agree with real runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hfcap import registry
from hfcap.data.source import load_split
from hfcap.run.stages import Run
from hfcap.store.prune import kept_stores
from tests.doctor.examined import problems_of, report_of, tiny_recipe
from tests.training.harness import FAMILIES, SOME_FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_captioner(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(tmp_path, family, model={"prompt": "a picture of"})
    report = report_of(recipe, healthy=True, steps=2)
    assert report["problems"] == []
    for counts in (report["labels"]["counted"], report["labels"]["measured"]):
        assert counts["captions"] == counts["found"] == counts["ended"] > 0
        wrong = ("padding_in_loss", "prompt_in_loss", "words_ignored", "wrong_target", "wrong_start")
        assert [counts[name] for name in wrong] == [0] * 5
    assert report["labels"]["counted"]["captions"] == 40
    assert report["labels"]["loss"] == pytest.approx(report["labels"]["uniform"], abs=1)
    agreement = report["agreement"]
    starts = {agreement[f"start_in_{place}"] for place in ("training", "generation", "transformers")}
    assert starts == {"<start>"}
    assert agreement["prediction_difference"] < 1e-4
    assert agreement["leak"] < 1e-4 < agreement["image_effect"]
    printed = capsys.readouterr().out
    assert "[<start>apictureof]" in printed.replace(" ", "")
    assert 0 < printed.index("Nothing wrong.") < printed.index("\nData\n")  # the verdict comes first
    assert not (tmp_path / "runs" / "tiny").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_in_the_loss_spell_the_captions(family: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, family, model={"prompt": "a picture of"})
    report = report_of(recipe, healthy=True)
    captions = {record.file_name: record.captions for record in load_split(recipe.data, "train")}
    shown: dict[str, list[str]] = {}
    for one in report["labels"]["shown"]:
        shown.setdefault(one["file_name"], []).append("".join(text for text, in_loss in one["tokens"] if in_loss))
        ignored = [text for text, in_loss in one["tokens"] if not in_loss and text != "<pad>"]
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
    # Training keeps the images of train and validation; only those of the test are still lacking.
    store = report_of(recipe, healthy=True, steps=1)["cost"]["disk"]["feature_store"]
    assert (store["images"], store["bytes"]) == (4, 4 * 32 * 2)


def test_image_cache_is_estimated_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    recipe = tiny_recipe(tmp_path, data={"image_cache": True, "image_cache_folder": str(tmp_path / "kept")})
    before = report_of(recipe, healthy=True, steps=1)["cost"]["disk"]
    assert before["feature_store"] is None and not (tmp_path / "kept").exists()
    Run(recipe).execute("train")
    after = report_of(recipe, healthy=True, steps=1)["cost"]["disk"]["image_cache"]
    [kept] = kept_stores(tmp_path / "kept")
    assert str(kept.folder) == before["image_cache"]["folder"] == after["folder"]
    assert before["image_cache"]["images"] == kept.n_images + after["images"] and after["images"] == 4
    written = sum(path.stat().st_size for path in kept.folder.glob("*.safetensors"))
    # Names and checksums come on top.
    assert 0 < written - (before["image_cache"]["bytes"] - after["bytes"]) < 0.1 * written


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 0))
    recipe = tiny_recipe(tmp_path, data={"image_cache": True, "image_cache_folder": str(tmp_path / "kept")})
    report = report_of(recipe, healthy=False, steps=1)
    run, cache = problems_of(report, "error")
    assert run.startswith("output_dir: ") and "and data.image_cache_folder on the same disk 49.2 kB" in run
    assert cache.startswith("data.image_cache_folder: 16 images") and "0 kB are free" in cache


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
