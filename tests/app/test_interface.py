"""The demo's page: built with gradio where it is installed, and everywhere with a stand-in, and really called."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hfcap.app import interface
from hfcap.app.demo import LoadedModel, launch, load_models, read_demo_accounts, shown_names
from hfcap.card.example_images import drawn_images, read_record
from hfcap.errors import MissingPackageError, UserError
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import IMAGE_FORMATS
from tests.publishing.run_builder import build_run


class Part:
    """Stands in for any of gradio's parts: remembers what it was made with and what its events call."""

    made: list[Part] = []  # noqa: RUF012  # emptied by the fixture

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options, self.events = arguments, options, {}  # type: ignore[var-annotated]
        Part.made.append(self)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def click(self, run: Callable[..., Any], inputs: list[Part], outputs: list[Part], **_: Any) -> None:
        self.events["run"] = (run, inputs, outputs)

    upload = click


class StandInError(Exception):
    """Stands in for gradio.Error."""


@pytest.fixture(params=["stand-in", "gradio"])
def gradio(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param == "gradio":
        yield pytest.importorskip("gradio")
        return
    module = types.ModuleType("gradio")
    for name in ("Blocks", "Row", "Column", "Accordion", "Image", "Button", "Textbox", "Slider", "Checkbox", "Number"):
        setattr(module, name, type(name, (Part,), {}))
    module.Error = StandInError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gradio", module)
    Part.made.clear()
    yield module


def handler_of(page: Any) -> Callable[..., Any]:
    """The function that the button calls."""
    if isinstance(page, Part):
        return next(part.events["run"][0] for part in Part.made if part.events)
    return next(function.fn for function in page.fns.values() if function.api_name == "caption")


def echo(name: str) -> interface.Captioner:
    def caption(image: Image.Image, decoding: dict[str, Any]) -> str:
        drawn = int(torch.randint(1000, (1,))) if decoding["do_sample"] else None
        return f"{name} {image.size} {image.getpixel((0, 0))} {sorted(decoding.items())} {drawn}"

    return caption


def test_every_model_captions_the_uploaded_image(gradio: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.new("RGB", (5, 4), "red").save(path)
    page = interface.build({"one": echo("one"), "two": echo("two")}, {"num_beams": 2, "unknown": 7})
    run = handler_of(page)
    captions = run(str(path), 4, 20, False, 0.5, 0.9, 0)
    wanted = "(5, 4) (255, 0, 0) [('do_sample', False), ('max_new_tokens', 20), ('num_beams', 4)] None"
    assert captions == [f"one {wanted}", f"two {wanted}"]
    first = run(str(path), 1, 20, True, 0.5, 0.9, 3)
    assert "('temperature', 0.5), ('top_p', 0.9)" in first[0]
    assert run(str(path), 1, 20, True, 0.5, 0.9, 3) == first != run(str(path), 1, 20, True, 0.5, 0.9, 4)


def test_mistakes_are_shown_on_the_page(gradio: Any, tmp_path: Path) -> None:
    run = handler_of(interface.build({"one": echo("one")}, {}))
    (tmp_path / "text.jpg").write_text("<script>alert(1)</script>")
    for path, message in ((None, "Choose an image"), (str(tmp_path / "text.jpg"), "not an image")):
        with pytest.raises(gradio.Error, match=message):
            run(path, 1, 20, False, 1.0, 1.0, 0)


def test_images_are_upright_and_large_ones_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4), "red").save(path, exif=exif)
    assert interface.open_image(str(path)).size == (4, 6)
    monkeypatch.setattr(interface, "MAX_PIXELS", 20)
    with pytest.raises(ValueError, match="more than 20 pixels"):
        interface.open_image(str(path))
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        interface.open_image(str(path))


def test_only_the_usual_formats_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    Image.new("RGB", (6, 4), "red").save(path, format="EPS")
    with pytest.raises(ValueError, match="not an image"):
        interface.open_image(str(path))
    # The page is copied into Spaces without hfcap, so it cannot import them.
    assert interface.FORMATS == IMAGE_FORMATS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return build_run(tmp_path_factory.mktemp("demo") / "run")


def test_a_run_captions_in_the_demo_as_it_was_recorded(run: RunDirectory, tmp_path: Path) -> None:
    model = LoadedModel(str(run.path))
    recorded = read_record(run.path)["captions"]
    for name, content in drawn_images().items():
        (tmp_path / name).write_bytes(content)
        defaults = {key: model.defaults[key] for key in ("num_beams", "max_new_tokens")}
        (caption,) = interface.caption_with_all({"it": model}, str(tmp_path / name), 0, defaults)
        assert caption == recorded[f"verification/{name}"]
    with pytest.raises(ValueError, match="greater than 0"):
        model(Image.new("RGB", (9, 9)), {"num_beams": 0})


def test_the_demo_draws_with_the_seed_of_the_page(run: RunDirectory, tmp_path: Path) -> None:
    model = LoadedModel(str(run.path))
    path = tmp_path / "ball.png"
    path.write_bytes(drawn_images()["ball.png"])
    decoding: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 8, "do_sample": True, "temperature": 1.5}
    drawn = [interface.caption_with_all({"it": model}, str(path), seed, decoding)[0] for seed in (3, 3, 4)]
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

    class Page:
        def launch(self, **options: Any) -> None:
            launched.append(options)

    class Model:
        defaults: dict[str, Any] = {}  # noqa: RUF012  # nothing writes to it

    monkeypatch.setattr(interface, "build", lambda *_: Page())
    path = tmp_path / "accounts"
    path.write_text("# who may look\nalice correct horse battery\n\nbob  password-of-bob\n")
    accounts = read_demo_accounts(path)
    assert accounts == [("alice", "correct horse battery"), ("bob", "password-of-bob")]
    models: Any = {"one": Model()}
    launch(models, "0.0.0.0", 7860, accounts)
    launch(models, "127.0.0.1", None)
    assert [options["auth"] for options in launched] == [accounts, None]
    assert all(options["share"] is False for options in launched)


@pytest.mark.parametrize("text", ["", "# nobody", "alice", "alice short", "alice long-enough\nalice another-one"])
def test_wrong_accounts_of_a_demo_are_refused_without_the_password(text: str, tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)) as refused:
        read_demo_accounts(path)
    assert not any(word in str(refused.value) for word in ("short", "long-enough", "another-one"))
