"""What `import hfcap` offers: names, captions as the command line's and as plain transformers', and nothing printed."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import hfcap
from hfcap.captioning import caption_images
from tests.captioners.helpers import ALL_FAMILIES, build, plain_processor, write_image
from tests.captioning.conftest import OPTIONS
from tests.data.http_server import serving

NAMES = [
    "AgreementReport",
    "Candidate",
    "Caption",
    "Comparison",
    "ImageCaptioner",
    "LanguageComparison",
    "MissingPackageError",
    "OptionError",
    "PublishResult",
    "Ranking",
    "RecipeError",
    "ScoreReport",
    "StoppedError",
    "TrainedRun",
    "UnreadableImageError",
    "UserError",
    "WorkError",
    "compare",
    "compare_languages",
    "judge",
    "judge_metrics",
    "load_captioner",
    "measure_judge",
    "probe_objects",
    "push_to_hub",
    "score",
    "train",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BLIP."""
    folder = tmp_path_factory.mktemp("captioner") / "model"
    build("blip").save(folder, OPTIONS)
    return folder


@pytest.fixture(scope="module")
def captioner(model: Path) -> hfcap.ImageCaptioner:
    return hfcap.load_captioner(model, device="cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [write_image(folder / f"{number}.png", seed=number) for number in range(5)]


@pytest.fixture(autouse=True)
def _prints_nothing(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr() == ("", "")


# ---- the names -------------------------------------------------------------------------------------------------


def test_the_exported_names() -> None:
    assert hfcap.__all__ == NAMES
    assert [name for name in dir(hfcap) if not name.startswith("__")] == sorted(NAMES)
    assert {"__all__", "__version__"} < set(dir(hfcap))
    assert {name for names in hfcap._HOMES.values() for name in names} == set(NAMES)
    for name in NAMES:
        assert getattr(hfcap, name).__doc__
    with pytest.raises(AttributeError, match=r"no attribute 'load_captoner'; did you mean 'load_captioner'\?"):
        hfcap.load_captoner  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'zzz'$"):
        hfcap.zzz  # type: ignore[attr-defined]  # noqa: B018


def test_errors_are_typed() -> None:
    assert issubclass(hfcap.UserError, ValueError)
    for error in (hfcap.OptionError, hfcap.RecipeError, hfcap.UnreadableImageError, hfcap.MissingPackageError):
        assert issubclass(error, hfcap.UserError)
    assert issubclass(hfcap.WorkError, RuntimeError) and issubclass(hfcap.StoppedError, RuntimeError)


def test_importing_is_fast_and_brings_nothing() -> None:
    code = (
        "import time, sys; start = time.perf_counter(); import hfcap; dir(hfcap); "
        "print(time.perf_counter() - start, *sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    seconds, *modules = run.stdout.split()
    assert float(seconds) < 0.5
    assert {"torch", "numpy", "PIL", "pydantic", "rich"}.isdisjoint(modules)
    assert [name for name in modules if name.startswith("hfcap.")] == []


def test_scoring_imports_no_torch() -> None:
    """Nobody listens to the logger there: Python prints its warnings, and nothing else is said."""
    code = "import sys, hfcap; hfcap.score(['a cat'], [['a cat']], n_resamples=9); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout == "False\n"
    assert [line.split()[0] for line in run.stderr.splitlines()] == ["only", "one"]  # image, human caption per image


# ---- captions --------------------------------------------------------------------------------------------------


def test_one_image_is_one_caption_and_several_are_a_list(captioner: hfcap.ImageCaptioner, images: list[Path]) -> None:
    one = captioner.caption(images[0])
    assert isinstance(one, hfcap.Caption)
    assert (one.image, str(one), one.text) == (str(images[0]), one.text, one.candidates[0].text)
    assert captioner.caption(images[:1]) == [one]
    assert captioner.caption(path for path in images[:1]) == [one]
    assert captioner.caption([]) == []
    found = captioner.caption(images)
    assert [caption.image for caption in found] == [str(path) for path in images]
    assert len({caption.text for caption in found}) > 1


@pytest.mark.parametrize(
    "generation",
    [
        {},
        {"num_beams": 1},
        {"num_beams": 4, "num_return_sequences": 3, "length_penalty": -1.0},
        {"num_return_sequences": 4},
        {"do_sample": True, "seed": 7, "top_p": 0.9, "num_return_sequences": 2},
    ],
    ids=str,
)
def test_captions_are_those_of_the_command_line(
    captioner: hfcap.ImageCaptioner,
    model: Path,
    images: list[Path],
    generation: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Through the installed command's own code, batches of two."""
    from hfcap.cli import app

    options = [
        word
        for name, value in generation.items()
        if name != "length_penalty"
        for word in (["--sample"] if name == "do_sample" else [f"--{name.replace('_', '-')}", str(value)])
    ]
    if "length_penalty" in generation:
        generation = {name: value for name, value in generation.items() if name != "length_penalty"}
    output = tmp_path / "captions.jsonl"
    command = ["caption", str(model), *map(str, images), "-o", str(output), "--batch-size", "2", *options]
    app(command, standalone_mode=False)
    capfd.readouterr()
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    found = captioner.caption(images, batch_size=2, **generation)
    ours = [(each.image, each.text, each.score, [one.text for one in each.candidates]) for each in found]
    assert ours == [(row["file_name"], row["caption"], row["score"], row["candidates"]) for row in rows]
    assert len(found[0].candidates) == generation.get("num_return_sequences", 1)


def test_captions_are_those_of_plain_transformers(
    captioner: hfcap.ImageCaptioner, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Images of the model's own size: resizing may differ by a level, and random weights have captions that near."""
    processor = plain_processor(model)
    size = captioner.captioner.image_processor.size
    images = [write_image(tmp_path / f"{n}.png", n, (size["width"], size["height"])) for n in range(5)]
    plain = AutoModelForImageTextToText.from_pretrained(model)
    capfd.readouterr()  # transformers shows its progress
    pixels = processor.image_processor(
        images=[Image.open(path).convert("RGB") for path in images], return_tensors="pt"
    )["pixel_values"]
    with torch.inference_mode():
        output = plain.generate(
            pixel_values=pixels,
            num_beams=3,
            num_return_sequences=2,
            max_new_tokens=6,
            return_dict_in_generate=True,
            output_scores=True,
        )
    texts = [" ".join(text.split()) for text in processor.batch_decode(output.sequences, skip_special_tokens=True)]
    found = captioner.caption(images, num_beams=3, num_return_sequences=2, max_new_tokens=6)
    assert [one.text for caption in found for one in caption.candidates] == texts
    scores = [one.score for caption in found for one in caption.candidates]
    assert scores == pytest.approx(output.sequences_scores.tolist(), abs=1e-5)
    assert all(caption.score == caption.candidates[0].score for caption in found)


@pytest.mark.parametrize("family", [name for name in ALL_FAMILIES if name != "blip"])
def test_every_family_captions_as_the_command_line(
    family: str, images: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build(family).save(tmp_path / "model", OPTIONS)
    rows = caption_images(str(tmp_path / "model"), [str(path) for path in images[:3]], trust_remote_code=True)
    capfd.readouterr()
    captioner = hfcap.load_captioner(tmp_path / "model", trust_remote_code=True)
    found = captioner.caption(images[:3])
    assert [(each.text, each.score) for each in found] == [(row.caption, row.score) for row in rows]
    assert captioner.captioner.family == family


def test_the_prompt_is_that_of_the_command_line(
    captioner: hfcap.ImageCaptioner, model: Path, images: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    rows = caption_images(str(model), [str(path) for path in images], prompt="a red")
    capfd.readouterr()
    found = captioner.caption(images, "a red")
    assert [caption.text for caption in found] == [row.caption for row in rows]
    assert [caption.text for caption in found] != [caption.text for caption in captioner.caption(images)]


def test_an_image_that_cannot_be_read(
    captioner: hfcap.ImageCaptioner, images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    given: list[Any] = [images[0], tmp_path / "text.jpg", tmp_path / "gone.png", b"no image", images[1]]
    with pytest.raises(hfcap.UnreadableImageError, match=r"text\.jpg: damaged, or not an image"):
        captioner.caption(given)
    with pytest.raises(hfcap.UnreadableImageError, match=r"gone\.png: no such file"):
        captioner.caption(given[2], unreadable="skip")  # nothing would be left
    with caplog.at_level(logging.WARNING, "hfcap"):
        found = captioner.caption(given, unreadable="skip")
    assert [caption.image for caption in found] == [str(images[0]), str(images[1])]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "image 3: damaged" in caplog.messages[2]


def test_images_of_the_web_go_through_the_guard(captioner: hfcap.ImageCaptioner, images: list[Path]) -> None:
    with serving() as server:
        server.files["/cat.png"] = images[0].read_bytes()
        found = captioner.caption(f"{server.url}/cat.png")
        assert (found.text, found.image) == (captioner.caption(images[0]).text, f"{server.url}/cat.png")
        with pytest.raises(hfcap.UnreadableImageError, match="404"):
            captioner.caption(f"{server.url}/gone.png")


# ---- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"num_beam": 3}, r"unknown option 'num_beam'; did you mean 'num_beams'\? \(known: num_beams, max_new_tokens,"),
        ({"zzz": 3}, r"unknown option 'zzz' \(known: num_beams"),
        ({"max_length": 5}, r"unknown option 'max_length'; use max_new_tokens \(known: num_beams"),
        ({"num_beams": 0}, "num_beams: Input should be greater than 0"),
        ({"num_beams": 2, "num_return_sequences": 3}, "needs num_beams of at least that many"),
        ({"num_beams": 2, "num_return_sequences": 3, "do_sample": True}, "not 2, or num_beams: 1, which draws each"),
        ({"temperature": 0.5}, "temperature: has no effect without do_sample=True"),
        ({"batch_size": 0}, "batch_size: must be at least 1, not 0"),
        ({"batch_size": True}, "batch_size: must be at least 1"),
        ({"unreadable": "ignore"}, "unreadable: choose 'raise' or 'skip'"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(
    captioner: hfcap.ImageCaptioner, images: list[Path], generation: dict[str, Any], message: str
) -> None:
    with pytest.raises(hfcap.OptionError, match=message):
        captioner.caption(images, **generation)


def test_options_go_over_those_saved_with_the_model(captioner: hfcap.ImageCaptioner) -> None:
    assert captioner.options() == OPTIONS
    assert captioner.options(max_new_tokens=4) == OPTIONS.model_copy(update={"max_new_tokens": 4})
    assert captioner.options(num_return_sequences=1) == OPTIONS  # one caption is what there is anyway
    assert captioner.options(num_return_sequences=5).num_beams == 5
    assert captioner.options(num_return_sequences=2, do_sample=True).num_beams == 1  # no beam search
    assert captioner.options(num_beams=2, do_sample=True).num_beams == 2
    assert "blip" in repr(captioner) and captioner.device == torch.device("cpu")


def test_samples_may_be_more_than_the_beams_saved_with_the_model(
    captioner: hfcap.ImageCaptioner, images: list[Path]
) -> None:
    drawn = captioner.caption(images[0], do_sample=True, num_return_sequences=9)
    assert len(drawn.candidates) == 9 > OPTIONS.num_beams > 1


def test_the_random_state_of_the_process_decides_nothing(captioner: hfcap.ImageCaptioner, images: list[Path]) -> None:
    first = captioner.caption(images, do_sample=True, seed=1)
    torch.manual_seed(99)
    assert captioner.caption(images, do_sample=True, seed=1) == first
    assert captioner.caption(images, do_sample=True, seed=2) != first


# ---- what is said ----------------------------------------------------------------------------------------------


def test_progress_is_logged(
    captioner: hfcap.ImageCaptioner, images: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "hfcap"):
        captioner.caption(images, batch_size=2)
    assert caplog.messages == ["Captioning: 5 of 5"]


def test_progress_is_shown_when_asked_for(
    captioner: hfcap.ImageCaptioner,
    images: list[Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with caplog.at_level(logging.INFO, "hfcap"):
        captioner.caption(images, progress=True)
    captured = capfd.readouterr()
    assert "Captioning" in captured.err and "5/5" in captured.err and captured.out == ""
    assert caplog.messages == []


def test_loading_leaves_the_libraries_as_they_were(model: Path) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_quiet = are_progress_bars_disabled()
    hfcap.load_captioner(str(model))
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
    assert are_progress_bars_disabled() == hub_quiet


def test_a_folder_below_home(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert hfcap.load_captioner("~/model").location == str(model)


@pytest.mark.parametrize("device", ["cudaa", "cuda"])
def test_a_device_that_is_not_here(model: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(hfcap.OptionError, match=r"^device: "):
        hfcap.load_captioner(model, device=device)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(hfcap.UserError, match="holds neither a model"):
        hfcap.load_captioner(tmp_path)
    with pytest.raises(hfcap.UserError, match="no such folder"):
        hfcap.load_captioner("./nothing")
