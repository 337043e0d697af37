"""Served models in runs and commands: they are used like any other captioner, and cannot be trained or published."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from hfcap.app.demo import LoadedModel
from hfcap.captioners.loading import load_captioner
from hfcap.captioners.openai_endpoint import OpenAIEndpointOptions
from hfcap.cli import app
from hfcap.comparison import read_system
from hfcap.doctor import examine
from hfcap.errors import UserError
from hfcap.files import read_json, read_json_lines
from hfcap.publishing.staging import stage_files
from hfcap.recipe.loading import RecipeError, dump_recipe, recipe_from_mapping
from hfcap.run.stages import Run
from hfcap.run_directory.paths import RunDirectory
from tests.captioners.chat_server import ChatServer, Fault, chatting
from tests.captioners.helpers import random_image, write_image
from tests.test_documentation import ROOT, code_blocks
from tests.training.harness import forget_accelerator, recipe_values

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatServer]:
    with chatting() as server:
        yield server


def values_of(folder: Path, base_url: str, **blocks: Any) -> dict[str, Any]:
    values = recipe_values("blip", folder)
    values |= {"captioner": "openai_endpoint", "lora": None, "publish": {"license": "mit"}}
    values["model"] = {"base_url": base_url, "model": "colours", "max_retries": 0}
    values["train"] = {"num_train_epochs": 1, "dataloader_num_workers": 0, "per_device_eval_batch_size": 3}
    values["generate"] = {"num_beams": 1, "max_new_tokens": 20}
    values["score"] = {**values["score"], "baselines": ["blank_images"]}
    return values | blocks


def execute(values: dict[str, Any], last: Any = "card") -> RunDirectory:
    forget_accelerator()
    run = Run(recipe_from_mapping(values, "test"))
    run.execute(last)
    return run.directory


@pytest.fixture(scope="module")
def run(chat: ChatServer, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return execute(values_of(tmp_path_factory.mktemp("served"), chat.base_url))


def test_from_recipe_to_card(run: RunDirectory, chat: ChatServer) -> None:
    rows = [row for _, row in read_json_lines(run.predictions("test"), "predictions")]
    assert len(rows) == 5 and all(row["caption"].endswith(" image") and row["usage"] for row in rows)
    blank = [row["caption"] for _, row in read_json_lines(run.predictions("test.blank_images"), "predictions")]
    assert len(set(blank)) == 1
    assert read_system(run.path, None).report.n_images == 5
    assert read_json(run.summary, "summary")["parameters"] == 0
    card = run.card.read_text()
    assert 'hfcap.load_captioner("' in card and "AutoModelForImageTextToText" not in card and "LLaVA" not in card
    assert chat.base_url in (run.model / "config.json").read_text()


def test_a_stopped_stage_goes_on(tmp_path: Path, chat: ChatServer) -> None:
    values = values_of(tmp_path, chat.base_url)
    values["score"]["baselines"] = []
    values["model"]["max_concurrency"] = 1
    execute(values, "train")
    before = len(chat.asked)
    chat.faults = []

    def fail_after_the_first_batch(choice: dict[str, Any]) -> dict[str, Any]:
        if len(chat.asked) == before + 3:
            chat.faults = [Fault(500)] * 9
        return choice

    chat.answer = fail_after_the_first_batch
    with pytest.raises(Exception, match="HTTP 500"):
        execute(values, "caption")
    chat.faults, chat.answer = [], lambda choice: choice
    run = execute(values, "caption")
    assert len(chat.asked) == before + 5
    assert len(list(read_json_lines(run.predictions("test"), "predictions"))) == 5


def test_commands_take_it_as_any_other(run: RunDirectory, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    random_image(3).save(image)
    output = tmp_path / "captions.csv"
    done = CliRunner().invoke(app, ["caption", str(run.path), str(image), "-o", str(output), "--prompt", "What?"])
    assert done.exit_code == 0, done.output
    assert " image" in output.read_text()
    assert "100 tokens read, 7 written" in done.output
    page = LoadedModel(str(run.path))
    [(caption, _)] = page.captions(random_image(3), page.defaults, None, lambda words: None)
    assert caption.endswith(" image")
    refused = CliRunner().invoke(app, ["explain", str(run.path), str(image), "-o", str(tmp_path / "maps.png")])
    assert isinstance(refused.exception, UserError) and "only the server can look inside" in str(refused.exception)


def test_an_address_is_a_captioner(chat: ChatServer, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    random_image(3).save(image)
    output = tmp_path / "captions.jsonl"
    done = CliRunner().invoke(app, ["caption", chat.base_url, str(image), "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert " image" in output.read_text() and chat.asked[-1]["model"] == "colours"
    assert chat.asked[-1]["max_tokens"] == 128
    with pytest.raises(UserError, match=r"example\.com/v1; give --trust-remote-code"):
        load_captioner("https://example.com/v1")
    with pytest.raises(UserError, match="must hold no user name") as caught:
        load_captioner("http://me:secret@127.0.0.1/v1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("block", ["lora", "scst", "dpo", "augment"])
def test_it_cannot_be_trained(block: str, tmp_path: Path, chat: ChatServer) -> None:
    with pytest.raises(RecipeError, match="openai_endpoint trains no weights; remove this block"):
        recipe_from_mapping(values_of(tmp_path, chat.base_url, **{block: {}}), "test")


def test_it_cannot_be_published(run: RunDirectory, tmp_path: Path, chat: ChatServer) -> None:
    values = values_of(tmp_path, chat.base_url, publish={"repo_id": "alice/served"})
    with pytest.raises(UserError, match=r"publish\.repo_id: this captioner cannot be published: .*; remove the key"):
        execute(values, "publish")
    with pytest.raises(UserError, match=r"cannot be published: its weights are where the server is"):
        stage_files(run)


def test_doctor_looks_at_the_data(tmp_path: Path, chat: ChatServer) -> None:
    examine(recipe_from_mapping(values_of(tmp_path, chat.base_url), "test"), tmp_path / "report")
    report = read_json(tmp_path / "report" / "doctor.json", "report")
    assert report["method"] == "fitted in one pass" and report["tokens"] is None


def test_the_recipe_comes_back_as_it_was(tmp_path: Path, chat: ChatServer) -> None:
    recipe = recipe_from_mapping(values_of(tmp_path, chat.base_url), "test")
    assert "api_key_env: null" in dump_recipe(recipe)


def test_the_commands_of_the_page(chat: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with a server of this test in the place of the page's."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/served_models.md"
    for number in range(20):
        write_image(Path(f"photos/{number}.png"), number)
    rows = [{"file_name": f"{number}.png", "captions": ["a red image", "an image"]} for number in range(20)]
    Path("photos/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, keys = (text.replace("http://127.0.0.1:8000/v1", chat.base_url) for text in code_blocks(page, "yaml"))
    Path("served.yaml").write_text(whole)
    chat.models = ["colours"]
    lines = [line for block in code_blocks(page, "bash") for line in block.splitlines()]
    assert lines[0].startswith("transformers serve ")  # see test_openai_endpoint_served.py
    for line in lines[1:]:
        name, *arguments = shlex.split(line.replace("http://127.0.0.1:8000/v1", chat.base_url))[1:]
        if name == "demo":  # waits for Ctrl-C; the page's captioner is tested above
            typer.main.get_command(app).commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
            continue
        if name == "compare":
            forget_accelerator()
            assert CliRunner().invoke(app, ["run", "served.yaml", "name=mine"]).exit_code == 0
        forget_accelerator()
        done = CliRunner().invoke(app, [name, *arguments])
        assert done.exit_code == 0, f"{line}: {done.output}"
    assert chat.asked[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    values = yaml.safe_load(keys)["model"]
    assert OpenAIEndpointOptions(**values).api_key_env == "EXAMPLE_KEY"
    assert len(lines) == 7


def test_keys_of_the_page_are_the_defaults() -> None:
    (whole, _) = code_blocks(ROOT / "docs/served_models.md", "yaml")
    values = yaml.safe_load(whole)["model"]
    usual = OpenAIEndpointOptions(base_url=values["base_url"])
    given = {name: value for name, value in values.items() if name not in ("model", "extra_body")}
    assert {name: getattr(usual, name) for name in given} == given
