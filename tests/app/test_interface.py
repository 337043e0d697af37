"""What the demo's page does, without a browser (tests/app/test_page_in_browser.py has one)."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hfcap.app import interface, page_models
from hfcap.app.demo import (
    LoadedModel,
    example_files,
    load_models,
    read_demo_accounts,
    score_of,
    scores_of,
    served,
    shown_names,
)
from hfcap.card.example_images import drawn_images, read_record
from hfcap.errors import MissingPackageError, UserError
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import IMAGE_FORMATS
from tests.hub_server import running_hub
from tests.publishing.run_builder import build_run


def handler_of(page: Any, name: str = "caption") -> Callable[..., Any]:
    """The function that a button calls."""
    return next(function.fn for function in page.fns.values() if function.api_name == name)


CONTROLS = ("", 1, 1, 20, False, 1.0, 1.0, 0)
"""Prompt, captions, beams, tokens, sampling, temperature, top-p, seed."""


def echo(name: str) -> page_models.Captioner:
    def caption(image: Image.Image, decoding: dict[str, Any]) -> str:
        drawn = int(torch.randint(1000, (1,))) if decoding["do_sample"] else None
        return f"{name} {image.size} {image.getpixel((0, 0))} {sorted(decoding.items())} {drawn}"

    return caption


def test_every_model_captions_the_image(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.new("RGB", (5, 4), "red").save(path)
    models = {"one": echo("one"), "two": echo("two")}

    def run(*controls: Any) -> list[str]:
        settings = interface.settings_of(*controls)
        return page_models.caption_with_all(models, str(path), settings.seed, settings.decoding)

    wanted = "(5, 4) (255, 0, 0) [('do_sample', False), ('max_new_tokens', 20), ('num_beams', 4)] None"
    assert run("", 1, 4, 20, False, 0.5, 0.9, 0) == [f"one {wanted}", f"two {wanted}"]
    sampled = ("", 1, 1, 20, True, 0.5, 0.9)
    first = run(*sampled, 3)
    assert "('temperature', 0.5), ('top_p', 0.9)" in first[0]
    assert run(*sampled, 3) == first != run(*sampled, 4)


def test_several_captions_are_searched_with_as_many_beams() -> None:
    searched = interface.settings_of("", 5, 3, 20, False, 1.0, 1.0, 0).decoding
    assert (searched["num_beams"], searched["num_return_sequences"]) == (5, 5)
    sampled = interface.settings_of("", 5, 1, 20, True, 1.0, 1.0, 0).decoding
    assert (sampled["num_beams"], sampled["num_return_sequences"]) == (1, 5)
    said = page_models.Said([("a cat", -0.25), ("a dog", None)])
    assert said.caption == "a cat" and said.others == "1. a cat  (-0.25)\n2. a dog"
    assert page_models.Said([("a cat", -0.25)]).others == "" == page_models.Said().caption


def test_what_a_model_cannot_do_does_not_reach_it(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), "red").save(tmp_path / "p.png")
    given: list[Any] = []

    class Model(page_models.PageModel):
        def captions(self, image: Any, decoding: Any, prompt: Any, say: Any) -> list[tuple[str, float | None]]:
            given.append((prompt, "num_return_sequences" in decoding))
            return [("a cat", None)]

    class Able(Model):
        takes_prompt = ranks = True

    models = {"one": Model(echo("one")), "two": Able(echo("two"))}
    settings = interface.settings_of(" two cats ", 3, 3, 20, False, 1.0, 1.0, 0)
    assert list(page_models.all_models(models, str(tmp_path / "p.png"), settings))
    assert given == [(None, False), ("two cats", True)]


def test_words_are_shown_while_they_are_written_and_the_work_s_error_is_raised(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), "red").save(tmp_path / "p.png")

    class Slow(page_models.PageModel):
        def captions(self, image: Any, decoding: Any, prompt: Any, say: Any) -> list[tuple[str, float | None]]:
            say("a")
            say("a cat")
            if decoding["max_new_tokens"] > 20:
                raise ValueError("too long")
            return [("a cat.", -1.0)]

    models = {"one": Slow(echo("")), "two": Slow(echo(""))}
    steps = page_models.all_models(models, str(tmp_path / "p.png"), interface.settings_of(*CONTROLS))
    shown = [[one.caption for one in said] for said in steps]
    assert shown[:4] == [["a", ""], ["a cat", ""], ["a cat.", ""], ["a cat.", "a"]]
    assert shown[-1] == ["a cat.", "a cat."]
    with pytest.raises(ValueError, match="too long"):
        list(page_models.all_models(models, str(tmp_path / "p.png"), page_models.Settings({"max_new_tokens": 30})))


def test_mistakes_are_shown_on_the_page(tmp_path: Path) -> None:
    gradio = pytest.importorskip("gradio")
    page = interface.build({"one": echo("one")}, {"num_beams": 2, "unknown": 7}, score=lambda *_: {})
    (tmp_path / "text.jpg").write_text("<script>alert(1)</script>")
    for path, message in ((None, "Choose an image"), (str(tmp_path / "text.jpg"), "not an image")):
        with pytest.raises(gradio.Error, match=message):
            next(handler_of(page)(path, *CONTROLS))
    with pytest.raises(gradio.Error, match="Choose images"):
        next(handler_of(page, "caption_files")([], "one", *CONTROLS))
    for own, said in (("", "a cat"), ("a cat", "")):
        with pytest.raises(gradio.Error, match="at least one"):
            handler_of(page, "score")(own, said)


def test_images_are_upright_and_large_ones_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4), "red").save(path, exif=exif)
    assert page_models.open_image(str(path)).size == (4, 6)
    monkeypatch.setattr(page_models, "MAX_PIXELS", 20)
    with pytest.raises(ValueError, match="more than 20 pixels"):
        page_models.open_image(str(path))
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        page_models.open_image(str(path))


def test_only_the_usual_formats_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    Image.new("RGB", (6, 4), "red").save(path, format="EPS")
    with pytest.raises(ValueError, match="not an image"):
        page_models.open_image(str(path))
    # The page is copied into Spaces without hfcap, so it cannot import them.
    assert page_models.FORMATS == IMAGE_FORMATS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return build_run(tmp_path_factory.mktemp("demo") / "run")


def test_a_run_captions_in_the_demo_as_it_was_recorded(run: RunDirectory, tmp_path: Path) -> None:
    model = LoadedModel(str(run.path))
    recorded = read_record(run.path)["captions"]
    for name, content in drawn_images().items():
        (tmp_path / name).write_bytes(content)
        defaults = {key: model.defaults[key] for key in ("num_beams", "max_new_tokens")}
        (caption,) = page_models.caption_with_all({"it": model}, str(tmp_path / name), 0, defaults)
        assert caption == recorded[f"verification/{name}"]
    with pytest.raises(ValueError, match="greater than 0"):
        model.captions(Image.new("RGB", (9, 9)), {"num_beams": 0}, None, print)


def test_the_demo_draws_with_the_seed_of_the_page(run: RunDirectory, tmp_path: Path) -> None:
    model = LoadedModel(str(run.path))
    path = tmp_path / "ball.png"
    path.write_bytes(drawn_images()["ball.png"])
    decoding: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 8, "do_sample": True, "temperature": 1.5}
    drawn = [page_models.caption_with_all({"it": model}, str(path), seed, decoding)[0] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    # As from the command line and from Python.
    assert drawn[0] == model.captioner.caption(path, seed=3, **decoding).text


def test_what_the_command_needs(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match=r"hfcap demo needs .*: pip install 'gradio>=\d"):
        load_models([str(run.path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="given twice"):
        load_models([str(run.path), f"{run.path}/."])
    with pytest.raises(UserError, match="no such folder"):
        load_models(["./nothing"])


def test_the_page_names_no_folders_of_this_machine(tmp_path: Path) -> None:
    places = [tmp_path / "runs" / "blip", tmp_path / "old" / "runs" / "blip", tmp_path / "runs" / "git"]
    for place in places:
        place.mkdir(parents=True)
    assert shown_names([str(places[0]), "you/blip"]) == ["blip", "you/blip"]
    names = shown_names([*map(str, places), "you/blip"])
    assert len(set(names)) == 4 and names[1] == "old/runs/blip" and not any(map(Path.is_absolute, map(Path, names)))


def test_a_demo_may_ask_for_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[dict[str, Any]] = []

    pytest.importorskip("gradio")

    class Page:
        def launch(self, **options: Any) -> tuple[None, str, None]:
            launched.append(options)
            return None, "http://127.0.0.1:7860/", None

        def close(self, **_: Any) -> None:
            pass

    class Model:
        defaults: dict[str, Any] = {}  # noqa: RUF012  # nothing writes to it

    monkeypatch.setattr(interface, "build", lambda *_, **__: Page())
    path = tmp_path / "accounts"
    path.write_text("# who may look\nalice correct horse battery\n\nbob  password-of-bob\n")
    accounts = read_demo_accounts(path)
    assert accounts == [("alice", "correct horse battery"), ("bob", "password-of-bob")]
    models: Any = {"one": Model()}
    for host, port, allowed in (("0.0.0.0", 7860, accounts), ("127.0.0.1", None, None)):
        with served(models, host, port, allowed) as address:
            assert address == "http://127.0.0.1:7860/"
    assert [options["auth"] for options in launched] == [accounts, None]
    # Without quiet, gradio's advice is to set share=True.
    assert all((options["share"], options["quiet"]) == (False, True) for options in launched)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    models: Any = {"one": page_models.PageModel(echo("one"))}
    models["one"].defaults = {}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: cannot be listened on"), served(models, "127.0.0.1", port):
            pass


def test_examples_are_drawn_or_those_of_a_folder(tmp_path: Path) -> None:
    drawn = example_files(None, tmp_path)
    assert [Path(path).read_bytes() for path in drawn] == list(drawn_images().values())
    assert example_files(tmp_path, tmp_path / "other") == drawn
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--examples .*empty: no images"):
        example_files(tmp_path / "empty", tmp_path)


def test_the_scores_of_a_card(tmp_path: Path) -> None:
    metrics = [{"type": "cider", "value": 157.94}, {"type": "length", "value": 9.0}, {"type": "bleu_4", "value": 61}]
    front = json.dumps({"model-index": [{"name": "x", "results": [{"metrics": metrics}]}]})
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# Card\n")
    assert scores_of(str(tmp_path)) == "CIDEr-D 157.9, BLEU-4 61.0"
    for text in ("# Card without metadata", "---\n{: [\n---\n", '---\nmodel-index: [1, {"results": 3}]\n---\n'):
        (tmp_path / "README.md").write_text(text)
        assert scores_of(str(tmp_path)) == ""
    (tmp_path / "README.md").unlink()
    with running_hub(tmp_path / "hub"):
        assert scores_of(str(tmp_path)) == "" == scores_of("alice/nothing")


def test_a_caption_is_scored_against_those_of_a_person() -> None:
    assert score_of("a red ball", ["a red ball"])["BLEU-1"] == "100.0"
    some = score_of("a red ball", ["two dogs run", "a blue ball"])
    assert list(some) == ["BLEU-1", "BLEU-4", "ROUGE-L"] and some["BLEU-1"] == "66.7"


@pytest.mark.parametrize("family", ["show_attend_tell", "blip", "clip_prefix", "vit_gpt2", "image_text_to_text"])
def test_words_are_told_while_hfcap_writes_them(family: str, tmp_path: Path) -> None:
    model = LoadedModel(str(build_run(tmp_path / "run", family).path))
    image = Image.open(io.BytesIO(drawn_images()["ball.png"])).convert("RGB")
    for decoding in ({"num_beams": 1}, {"num_beams": 1, "do_sample": True}):
        told: list[str] = []
        [(caption, _)] = model.captions(image, {**decoding, "max_new_tokens": 8}, None, told.append)
        untold = model.captions(image, {**decoding, "max_new_tokens": 8}, None, lambda _: None)
        assert untold == [(caption, None)]
        # The last token, which no model reads again, may be a word or the end.
        assert len(told) >= 2 and caption.startswith(told[-1]) and len(caption) > 0
        assert all(after.startswith(before) for before, after in itertools.pairwise(told))


def test_heat_maps_show_each_word_of_the_caption(tmp_path: Path) -> None:
    model = LoadedModel(str(build_run(tmp_path / "run", "show_attend_tell").path))
    image = Image.open(io.BytesIO(drawn_images()["ball.png"])).convert("RGB")
    decoding = {"num_beams": 2, "max_new_tokens": 8}
    maps = model.heat_maps(image, decoding, None)
    [(caption, _)] = model.captions(image, decoding, None, print)
    assert [word for _, word in maps] == caption.split()
    assert model.explains and all(shown.mode == "RGB" for shown, _ in maps)
    assert len({shown.tobytes() for shown, _ in maps}) > 1
    assert not LoadedModel(str(build_run(tmp_path / "other", "retrieval").path)).explains


def test_which_models_take_a_prompt(tmp_path: Path) -> None:
    takes = {
        family: LoadedModel(str(build_run(tmp_path / family, family).path)).takes_prompt
        for family in ("blip", "retrieval")
    }
    assert takes == {"blip": True, "retrieval": False}


@pytest.mark.parametrize("text", ["", "# nobody", "alice", "alice short", "alice long-enough\nalice another-one"])
def test_wrong_accounts_of_a_demo_are_refused_without_the_password(text: str, tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)) as refused:
        read_demo_accounts(path)
    assert not any(word in str(refused.value) for word in ("short", "long-enough", "another-one"))
