"""Scoring of a run without training one: predictions and references are written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcap.data.images import decode_image
from hfcap.data.source import load_split
from hfcap.errors import UserError
from hfcap.files import read_json, write_json, write_json_lines
from hfcap.metrics.shared.images import DecodedImages
from hfcap.metrics.suite import CaptionSuite
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.run.stages import Run, _coco_references
from hfcap.run_directory.paths import RunDirectory
from hfcap.scoring import read_scores
from hfcap.scoring.of_run import RunScoring
from tests.captioners.clip_folder import write_clip
from tests.training.harness import forget_accelerator, recipe_values

CAPTIONS = ["a red square", "a big ball", "a red square", "two cats", "nothing"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def _other_tests_may_train() -> Iterator[None]:
    yield
    forget_accelerator()


def _recipe(folder: Path, **score: Any) -> Recipe:
    values = recipe_values("vit_gpt2", folder, data={"feature_store_folder": str(folder / "features")})
    return recipe_from_mapping(values | {"score": {"n_resamples": 0, **score}}, "test")


def _scoring(recipe: Recipe) -> RunScoring:
    """A run that has just captioned its five test images."""
    directory = RunDirectory(Path(recipe.output_dir) / recipe.name)
    records = load_split(recipe.data, "test")
    rows = [
        {"image_id": record.image_id, "caption": caption, "candidates": [caption, "a blue ball"]}
        for record, caption in zip(records, CAPTIONS, strict=True)
    ]
    write_json_lines(directory.predictions("test"), rows)
    write_json(directory.references("test"), {record.image_id: record.captions for record in records})
    return RunScoring(recipe, directory, lambda split: load_split(recipe.data, split))


def test_clip_score_sees_the_runs_images_and_keeps_their_features(clip_folder: str, tmp_path: Path) -> None:
    options = {"clip_score": {"model": clip_folder, "device": "cpu", "batch_size": 2}}
    scoring = _scoring(_recipe(tmp_path, metrics=["clip_score"], metric_options=options))
    scoring.check()
    scoring.score(["test"], {"prompt": "x"})
    found = read_json(scoring.directory.scores("test"), "scores")
    records = scoring.records("test")
    image_source = DecodedImages({record.image_id: record.image for record in records}, decode_image)
    suite = CaptionSuite(["clip_score"], options={"clip_score": options["clip_score"] | {"image_source": image_source}})
    expected = suite.compute(
        {record.image_id: caption for record, caption in zip(records, CAPTIONS, strict=True)},
        {record.image_id: record.captions for record in records},
    )
    # 2.5 times a cosine of float32 vectors, computed in other batches.
    assert found["metrics"] == pytest.approx(expected.values, rel=0, abs=2e-5)
    each = [row["clip_score"] for row in found["per_image"].values()]
    np.testing.assert_allclose(each, expected.per_image()["clip_score"], rtol=0, atol=2e-5)
    assert found["signature"]["metrics"]["clip_score"]["model"] == Path(clip_folder).name
    assert str(tmp_path) not in scoring.directory.scores("test").read_text()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.safetensors")}
    assert kept
    scoring.score(["test"], {})
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.safetensors")} == kept


def test_without_feature_store_nothing_is_kept(clip_folder: str, tmp_path: Path) -> None:
    values = recipe_values("vit_gpt2", tmp_path, data={"feature_store": "off"})
    options = {"clip_score": {"model": clip_folder, "device": "cpu"}}
    score = {"n_resamples": 0, "metrics": ["clip_score"], "metric_options": options}
    scoring = _scoring(recipe_from_mapping(values | {"score": score}, "test"))
    scoring.score(["test"], {})
    assert read_json(scoring.directory.scores("test"), "scores")["metrics"]["clip_score"] is not None
    assert not list(tmp_path.rglob("shard-*"))


def test_diversity_knows_training_captions_and_n_best_lists(tmp_path: Path) -> None:
    scoring = _scoring(_recipe(tmp_path, metrics=["diversity"]))
    scoring.score(["test"], {})
    values = read_json(scoring.directory.scores("test"), "scores")["metrics"]
    assert values["novel_captions"] == 1.0  # the scenes say more than "a red square"
    assert values["m_bleu_4"] is not None and values["m_bleu_4"] < 0.1
    training = tmp_path / "training.json"
    write_json(training, {"1": ["A red square.", "two cats"]})
    options = {"diversity": {"training_captions": str(training)}}
    scoring = _scoring(_recipe(tmp_path, metrics=["diversity"], metric_options=options))
    scoring.score(["test"], {})
    values = read_json(scoring.directory.scores("test"), "scores")["metrics"]
    assert values["novel_captions"] == pytest.approx(2 / 5)


def test_document_frequencies_of_a_file(tmp_path: Path) -> None:
    human = tmp_path / "human.json"
    write_json(human, {"1": ["a red square"], "2": ["a ball"], "3": ["two cats"]})
    values = []
    for source in ("corpus", str(human)):
        scoring = _scoring(_recipe(tmp_path, metrics=["cider"], document_frequencies=source))
        scoring.score(["test"], {})
        scores = read_json(scoring.directory.scores("test"), "scores")
        assert scores["signature"]["metrics"]["cider"]["document_frequencies"] == Path(source).name
        values.append(scores["metrics"]["cider"])
    assert values[0] != values[1]


def test_what_a_metric_lacks_is_said_before_the_training(tmp_path: Path) -> None:
    for score, message in (
        ({"metrics": ["chair"]}, "instances"),
        ({"metrics": ["cider"], "document_frequencies": "coco-tran"}, "did you mean 'coco-train'"),
    ):
        run = Run(_recipe(tmp_path, **score))
        with pytest.raises(UserError, match=message):
            run.execute("score")
        assert not run.directory.model.exists() and not run.directory.checkpoints.exists()
        forget_accelerator()


def test_a_run_scores_groups_of_its_images_apart(tmp_path: Path) -> None:
    scoring = _scoring(_recipe(tmp_path, metrics=["rouge_l"], by=["group", "counts"]))
    records = [replace(one, group=f"kind {number % 2}") for number, one in enumerate(scoring.records("test"))]
    grouped = replace(scoring, records=lambda split: records)
    write_json(grouped.directory.references("test"), _coco_references(records))
    grouped.check()
    grouped.score(["test"], {})
    report = read_scores(grouped.directory.scores("test"))
    assert {value: found.n_images for value, found in report.slices["group"].items()} == {"kind 0": 3, "kind 1": 2}
    assert set(report.slices) == {"group", "counts"}
    # What is wrong is said before hours of training.
    with pytest.raises(UserError, match=r"column 'group': neither .* have it"):
        scoring.check()
