"""A Hub that nobody can reach: every command says so in one sentence within seconds, and the cache is used."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, constants, get_session, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import _http

from hfcap.children import run_program
from hfcap.failures import hub as hub_reach
from tests.cli.command_line import Hfcap, write_recipe
from tests.data.sample_images import write_jpeg
from tests.hub_server import Hub, client_of_transformers_renewed
from tests.hub_server import hub as hub

NOBODY = "http://127.0.0.1:9"
SENTENCE = f"the Hub at {NOBODY} cannot be reached"
REMEDIES = ("check the network", "HF_ENDPOINT", "HF_HUB_OFFLINE")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Each test finds out for itself; afterwards huggingface_hub has its own client again."""
    hub_reach._answered.clear()
    hub_reach._out_of_reach.clear()
    yield
    set_client_factory(_http.default_client_factory)
    hub_reach._answered.clear()
    hub_reach._out_of_reach.clear()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An address at which nobody answers, in this process, and empty caches."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    template = NOBODY + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", NOBODY)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    with client_of_transformers_renewed():
        yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits between the attempts; `test_nobody_is_asked_again_and_again` has those that people have."""
    monkeypatch.setattr(hub_reach, "_WAITS", (0.01, 0.02))


@pytest.fixture(scope="module")
def finished(forking: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(folder, score={"baselines": [], "metrics": ["rouge_l"]})
    done = run_program([forking, "-m", "hfcap", "run", str(recipe)], timeout=280)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "tiny"


def recipe_with(folder: Path, **changes: Any) -> Path:
    path = write_recipe(folder)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    return path


OPTIONS = ("--option", "clip_score.model=somebody/clip", "--option", "clip_score.images=FOLDER")
COMMANDS = {
    "run: base model": ("run", "BASE"),
    "doctor: base model": ("doctor", "BASE"),
    "run: encoder": ("run", "ENCODER"),
    "run: dataset": ("run", "DATASET"),
    "run: streamed dataset": ("run", "STREAM"),
    "run: push": ("run", "PUSH"),
    "caption: model": ("caption", "somebody/model", "IMAGE"),
    "caption: dataset": ("caption", "RUN", "somebody/photos"),
    "explain": ("explain", "somebody/model", "IMAGE", "-o", "maps.png"),
    "search": ("search", "red", "FOLDER", "--model", "somebody/clip"),
    "score": ("score", "CAPTIONS", "REFERENCES", "--metrics", "clip_score", *OPTIONS),
    "publish": ("publish", "RUN", "--repo-id", "me/model"),
    "verify": ("verify", "me/model"),
}


@pytest.mark.usefixtures("nobody", "impatient")
@pytest.mark.parametrize("name", COMMANDS)
def test_one_sentence_within_seconds(name: str, finished: Path, tmp_path: Path, hfcap: Hfcap) -> None:
    write_jpeg(tmp_path / "photos" / "one.jpg")
    hub_data = {"source": "hub", "dataset": "somebody/photos", "caption_columns": ["caption"]}
    limits = {f"max_{split}_images": 4 for split in ("train", "validation", "test")}
    changes: dict[str, dict[str, Any]] = {
        "BASE": {"captioner": "blip", "model": {"pretrained": "somebody/blip"}},
        "ENCODER": {"model": {"encoder": "somebody/vit", "decoder": "somebody/gpt2"}},
        "DATASET": {"data": hub_data},
        "STREAM": {"data": {**hub_data, "streaming": True, **limits}},
        "PUSH": {"publish": {"license": "mit", "repo_id": "me/model"}},
    }
    captions, references = tmp_path / "captions.json", tmp_path / "references.json"
    captions.write_text('[{"image_id": "one", "caption": "a dog"}]')
    references.write_text('{"one": ["a dog"]}')
    places = {
        "CAPTIONS": captions,
        "REFERENCES": references,
        "IMAGE": tmp_path / "photos" / "one.jpg",
        "FOLDER": tmp_path / "photos",
        "RUN": finished,
    }
    command: list[Any] = []
    for word in COMMANDS[name]:
        whole = word.replace("images=FOLDER", f"images={tmp_path / 'photos'}")
        command.append(recipe_with(tmp_path, **changes[word]) if word in changes else places.get(word, whole))
    began = time.monotonic()
    outcome = hfcap(*command)
    assert time.monotonic() - began < 18
    assert outcome.code == 1, outcome
    assert "Traceback" not in outcome.err and "Retrying" not in outcome.err and "thrown while" not in outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 1 and lines[0].count(SENTENCE) == 1, outcome.err
    for remedy in REMEDIES:
        assert remedy in lines[0]


def test_the_command_itself_writes_no_lines_of_the_library(forking: str, tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, captioner="blip", model={"pretrained": "somebody/blip"})
    began = time.monotonic()
    environment = {**os.environ, "HF_ENDPOINT": NOBODY, "HF_HOME": str(tmp_path / "home")}
    done = run_program([forking, "-m", "hfcap", "run", str(recipe)], environment=environment, timeout=120)
    assert done.returncode == 1 and time.monotonic() - began < 60
    said = [line for line in done.stderr.splitlines() if not line.startswith("warning: only 5 images are scored")]
    assert len(said) == 1 and SENTENCE in said[0], done.stderr


@pytest.mark.usefixtures("nobody")
def test_offline_on_purpose_is_said_otherwise(tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    outcome = hfcap("run", recipe_with(tmp_path, captioner="blip", model={"pretrained": "somebody/blip"}))
    assert outcome.code == 1 and "unset HF_HUB_OFFLINE" in outcome.err and SENTENCE not in outcome.err


@pytest.mark.usefixtures("nobody")
def test_nobody_is_asked_again_and_again() -> None:
    hub_reach.give_up_soon()
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(OfflineModeIsEnabled):
            HfApi().model_info("somebody/model")
    assert 1 < time.monotonic() - began < 6


def test_a_hub_that_answered_is_asked_as_often_as_usual(hub: Hub) -> None:
    hub_reach.give_up_soon()
    HfApi().create_repo("alice/model")
    assert HfApi().model_info("alice/model").id == "alice/model"
    assert not hub_reach._out_of_reach
    place = hub.endpoint.removeprefix("http://")
    assert place in hub_reach._answered


def test_a_client_of_ones_own_stays() -> None:
    def mine() -> Any:
        return _http.default_client_factory()

    set_client_factory(mine)
    hub_reach.give_up_soon()
    assert vars(_http)["_GLOBAL_CLIENT_FACTORY"] is mine
    assert get_session() is not None


def test_lines_of_the_library_become_one(caplog: pytest.LogCaptureFixture) -> None:
    hub_reach.give_up_soon()
    log = logging.getLogger(_http.__name__)
    log.propagate, before = True, log.propagate
    try:
        with caplog.at_level(logging.WARNING):
            for number in range(5):
                log.warning("HTTP Error 503 thrown while requesting GET https://hub/x")
                log.warning(f"Retrying in {number}s [Retry {number}/5].")
            log.warning("something else")
    finally:
        log.propagate = before
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and said[0].startswith("the Hub does not answer, or is busy") and said[1] == "something else"


@pytest.mark.usefixtures("nobody", "impatient")
def test_a_mistyped_folder_of_data_is_said_to_be_missing_here(hfcap: Hfcap) -> None:
    outcome = hfcap("data", "inspect", "my_fotos")
    assert outcome.code == 1 and outcome.out == "" and outcome.err.count("\n") == 1
    assert f"dataset my_fotos cannot be opened: no such file or folder here; on the Hub: {SENTENCE}" in outcome.err
