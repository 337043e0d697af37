"""Training, scoring, comparing and publishing from Python give what the commands give."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import hfcap
from hfcap.captioners.loading import load_captioner
from hfcap.files import read_json
from hfcap.recipe.loading import load_recipe, recipe_from_mapping
from hfcap.run_directory.paths import RunDirectory
from hfcap.scoring import read_scores, score_files
from tests.captioners.helpers import write_image
from tests.cli.command_line import write_recipe
from tests.hub_server import Hub, hub  # noqa: F401
from tests.publishing.run_builder import build_run
from tests.training.harness import assert_same_tensors, forget_accelerator

pytestmark = pytest.mark.usefixtures("one_thread")

PREDICTIONS = {"1": "a red cat", "2": "two dogs on grass", "3": "a man in a boat"}
REFERENCES = {
    "1": ["a red cat sits", "a cat"],
    "2": ["two dogs run on grass", "dogs"],
    "3": ["a man in a boat", "someone rows"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> hfcap.TrainedRun:
    """A run up to its card, trained from Python."""
    recipe = write_recipe(tmp_path_factory.mktemp("finished"))
    forget_accelerator()
    return hfcap.train(recipe, until="card")


# ---- runs ------------------------------------------------------------------------------------------------------


def test_training_is_that_of_the_command_and_its_messages_are_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from hfcap.cli import app

    recipe = write_recipe(tmp_path)
    forget_accelerator()
    app(["train", str(recipe), "name=command", "train.seed=5"], standalone_mode=False)
    capfd.readouterr()
    forget_accelerator()
    with caplog.at_level(logging.INFO, "hfcap"):
        ours = hfcap.train(recipe, name="python", train={"seed": 5})
    assert capfd.readouterr() == ("", "")
    assert any("validation" in message for message in caplog.messages)
    theirs = RunDirectory(tmp_path / "runs" / "command")
    assert ours.folder == tmp_path / "runs" / "python" and ours.model.is_dir() and not ours.card.exists()
    trained = [load_captioner(str(path)).model.state_dict() for path in (ours.folder, theirs.path)]
    assert_same_tensors(*trained)
    assert ours.summary["images_seen"] == read_json(theirs.summary, "summary")["images_seen"]


def test_a_finished_run_captions_scores_and_has_a_card(finished: hfcap.TrainedRun, tmp_path: Path) -> None:
    assert finished.card.is_file()
    assert finished.scores().metrics == read_scores(RunDirectory(finished.folder).scores("test")).metrics
    with pytest.raises(hfcap.UserError, match="no scores of split 'train'"):
        finished.scores("train")
    caption = finished.load(device="cpu").caption(write_image(tmp_path / "a.png"))
    assert caption == hfcap.load_captioner(finished, device="cpu").caption(tmp_path / "a.png")
    forget_accelerator()
    again = hfcap.train(finished, until="card")  # a run directory, in which everything is done
    assert again == finished


def test_recipes_may_be_objects(tmp_path: Path) -> None:
    from hfcap.api.runs import override_texts, recipe_of

    path = write_recipe(tmp_path)
    known = load_recipe(path, ["train.max_steps=7", "lora.r=2", "data.image_size=48", "output_dir=x y"])
    changes = {"train": {"max_steps": 7}, "lora": {"r": 2}, "data.image_size": 48, "output_dir": Path("x y")}
    texts = override_texts(changes)
    loaded = load_recipe(path)
    for source in (path, loaded, loaded.model_dump(mode="json")):
        assert recipe_of(source, texts)[0] == known
    assert recipe_of(known, override_texts({"lora": None, "train": {"learning_rate": 1e-05}}))[0].lora is None
    assert recipe_of("quickstart")[0].name == "quickstart"
    assert loaded == recipe_from_mapping(loaded.model_dump(mode="json"), "test")  # nothing was changed in place


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train": {"learning_rte": 1}}, hfcap.RecipeError, "did you mean 'train.learning_rate'"),
        ({"captoner": "blip"}, hfcap.RecipeError, "did you mean 'captioner'"),
        ({"until": "everything"}, hfcap.UserError, "no stage 'everything'; choose one of train, caption"),
    ],
    ids=str,
)
def test_wrong_recipes_are_refused(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        hfcap.train(write_recipe(tmp_path), **arguments)
    with pytest.raises(hfcap.UserError, match="no such recipe or run directory"):
        hfcap.train("nothing")
    assert not (tmp_path / "runs").exists()


def test_a_run_that_wants_foreign_code_is_refused(tmp_path: Path) -> None:
    folder = build_run(tmp_path / "run", model={"trust_remote_code": True}).path
    with pytest.raises(hfcap.UserError, match="lets code that came with a model run on this machine"):
        hfcap.train(folder)


# ---- scores ----------------------------------------------------------------------------------------------------


def test_scores_are_those_of_files_however_captions_are_given(tmp_path: Path) -> None:
    predictions, references = tmp_path / "predictions.json", tmp_path / "references.json"
    predictions.write_text(json.dumps(PREDICTIONS))
    references.write_text(json.dumps(REFERENCES))
    known = score_files(predictions, references, metrics=["bleu", "cider"], warn=lambda _: None)
    captions = [
        hfcap.Caption(text, None, (hfcap.Candidate(text, None),), f"{name}.jpg") for name, text in PREDICTIONS.items()
    ]
    given: list[tuple[Any, Any]] = [
        (predictions, references),
        (str(predictions), REFERENCES),
        (PREDICTIONS, str(references)),
        ({int(name): text for name, text in PREDICTIONS.items()}, REFERENCES),
        (dict(zip(PREDICTIONS, captions, strict=True)), REFERENCES),
        (list(PREDICTIONS.values()), list(REFERENCES.values())),
        (captions, [tuple(group) for group in REFERENCES.values()]),
    ]
    for one, other in given:
        report = hfcap.score(one, other, metrics=("bleu", "cider"), output=tmp_path / "scores.json")
        assert (report.metrics, report.intervals) == (known.metrics, known.intervals)
        assert read_scores(tmp_path / "scores.json").metrics == known.metrics
    assert set(hfcap.score(PREDICTIONS, REFERENCES, metrics="rouge_l", n_resamples=0).metrics) == {"rouge_l"}


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], REFERENCES, "give both as lists in the same order"),
        (["a"], [["a"], ["b"]], "1 predictions and 2 references"),
        ({"1": 3}, REFERENCES, "the caption of image '1' must be text"),
        ({"9": "a"}, REFERENCES, "are not in the references"),
        ({"1": "a"}, REFERENCES, "predictions: no caption for 2 of 3 images of the references"),
        ({"1": "a"}, {"1": []}, "image '1' needs a text or a list of texts"),
        (3, REFERENCES, "predictions: give a file"),
        (PREDICTIONS, 3, "references: give a file"),
        ({"": "a"}, REFERENCES, "image_id must be"),
        ("gone.json", REFERENCES, "prediction file not found"),
    ],
    ids=str,
)
def test_what_cannot_be_scored_is_refused(predictions: Any, references: Any, message: str) -> None:
    with pytest.raises(hfcap.UserError, match=message):
        hfcap.score(predictions, references)


def test_scoring_some_of_the_images(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.WARNING, "hfcap"):
        report = hfcap.score({"1": "a red cat", "3": "a boat"}, REFERENCES, allow_missing=True, n_resamples=0)
    assert report.n_images == 2
    assert any("1 of 3 images have no prediction" in message for message in caplog.messages)
    assert capfd.readouterr() == ("", "")


# ---- comparison ------------------------------------------------------------------------------------------------


def test_comparing_captions_reports_and_files(tmp_path: Path) -> None:
    worse = dict(PREDICTIONS) | {"2": "a cat", "3": "a red cat"}
    files = {"good": tmp_path / "good.json", "bad": tmp_path / "bad.json"}
    for path, captions in zip(files.values(), (PREDICTIONS, worse), strict=True):
        path.write_text(json.dumps(captions))
    reports: dict[str, Any] = {
        "good": hfcap.score(PREDICTIONS, REFERENCES, n_resamples=0),
        "bad": hfcap.score(worse, REFERENCES, n_resamples=0),
    }
    ways = [
        hfcap.compare(files, references=REFERENCES, n_resamples=200),
        hfcap.compare(list(files.values()), references=REFERENCES, n_resamples=200),
        hfcap.compare({"good": PREDICTIONS, "bad": worse}, references=REFERENCES, n_resamples=200),
        hfcap.compare(reports, n_resamples=200, output=tmp_path / "leaderboard"),
    ]
    for comparison in ways:
        assert [system.name for system in comparison.systems] == ["good", "bad"]
        assert comparison.best["cider"] == "good"
        assert comparison.differences == ways[0].differences
        assert comparison.intervals == ways[0].intervals
        assert "Leaderboard" in str(comparison) and "Difference to the best" in str(comparison)
    assert (tmp_path / "leaderboard" / "leaderboard.html").is_file()
    with pytest.raises(hfcap.UserError, match=r"good: to compare captions, give their human captions"):
        hfcap.compare({"good": PREDICTIONS})
    with pytest.raises(hfcap.UserError, match="nothing to compare"):
        hfcap.compare({})
    with pytest.raises(hfcap.UserError, match="different images"):
        hfcap.compare(reports | {"other": hfcap.score({"1": "a"}, {"1": ["a"]}, n_resamples=0)})


def test_comparing_runs(finished: hfcap.TrainedRun) -> None:
    comparison = hfcap.compare([finished], n_resamples=100)
    assert comparison.systems[0].report.metrics == finished.scores().metrics
    assert hfcap.compare(finished.folder, n_resamples=100).systems[0].path == finished.folder
    assert hfcap.compare({"mine": finished}, n_resamples=100).systems[0].name == "mine"


# ---- the Hub ---------------------------------------------------------------------------------------------------


def test_a_run_goes_to_the_hub_and_captions_from_there(
    finished: hfcap.TrainedRun,
    hub: Hub,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    staged = hfcap.push_to_hub(finished, "alice/tiny", dry_run=True)
    assert staged.dry_run and staged.commit is None and "README.md" in {file.path for file in staged.files}
    result = hfcap.push_to_hub(finished, "alice/tiny", private=True, verify=False)
    assert result.repo_id == "alice/tiny" and "model.safetensors" in result.uploaded and result.commit
    published = hfcap.load_captioner("alice/tiny", revision=result.commit, device="cpu")
    image = write_image(tmp_path / "a.png")
    assert published.caption(image) == finished.load(device="cpu").caption(image)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(hfcap.UserError, match="publish"):
        hfcap.push_to_hub(finished)
    with pytest.raises(hfcap.UserError, match="may not write"):
        hfcap.push_to_hub(finished, "mallory/tiny", verify=False)
    with pytest.raises(hfcap.UserError, match="not a run directory"):
        hfcap.push_to_hub(tmp_path, "alice/tiny")
