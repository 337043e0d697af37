"""Training after prompts that differ from image to image: losses, runs, what a run notes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import load_captioner
from hfcap.captioning.captioner import ImageCaptioner
from hfcap.data.loading import CaptionDataset, Collate, PixelInputs
from hfcap.decoding import read_captions
from hfcap.doctor.run_checks import examine
from hfcap.errors import UserError
from hfcap.files import read_json, read_json_lines
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.run.stages import Run
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import CaptionedImage
from hfcap.training.assemble import asked_prompts, tokenised
from hfcap.training.objectives.cross_entropy import CrossEntropy
from tests.captioners.helpers import MemoryImage, build, gradients, write_image
from tests.captioners.itt_models import itt
from tests.captioners.itt_more_models import more
from tests.captioners.itt_runs import card_caption
from tests.rounding import assert_equal_to_rounding
from tests.training.harness import forget_accelerator, recipe_values

NAMES = ("red cup", "dog", "red cup", "three people in a long boat")
CAPTIONS = (("a red cat sits", "two dogs"), ("a man's hat",), ("a boat", "green grass", "three people"), ("a mat",))
KINDS: dict[str, Any] = {
    "llava": lambda: itt("llava"),
    "qwen2_vl": lambda: itt("qwen2_vl", own=True),
    "paligemma": lambda: itt("paligemma"),
    "florence2": lambda: itt("florence2"),
    "blip-2": lambda: itt("blip-2"),
    "internvl": lambda: more("internvl"),
    "git": lambda: itt("git"),
    "blip": lambda: build("blip"),
    "clip_prefix": lambda: build("clip_prefix"),
}


def records() -> list[CaptionedImage]:
    return [
        CaptionedImage(str(n), f"{n}.png", CAPTIONS[n], MemoryImage(n), columns={"name": name})
        for n, name in enumerate(NAMES)
    ]


def loss_of(captioner: Captioner, chosen: list[CaptionedImage]) -> torch.Tensor:
    """The summed loss of one batch, as training computes it."""
    inputs = PixelInputs(chosen, captioner.image_processor)
    dataset = CaptionDataset(inputs, tokenised(captioner, chosen, 20), None, 0, 20, asked_prompts(captioner, chosen))
    ids = (captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id)
    batch = Collate(*ids, inputs)([dataset[(0, number)] for number in range(len(chosen))])
    objective = CrossEntropy(captioner, 0.0).eval()
    loss: torch.Tensor = objective(batch.to(captioner.device))
    return loss


@pytest.mark.contract
@pytest.mark.parametrize("plain", [False, True], ids=["packed", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_one_image_at_a_time(
    kind: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner: Captioner = KINDS[kind]()
    if plain:
        monkeypatch.setattr(type(captioner), "packs_captions", False)
    captioner.ask("this {name} is")
    loss = loss_of(captioner, records())
    loss.backward()
    found = gradients(captioner.model)
    expected = torch.zeros(())
    for record, name in zip(records(), NAMES, strict=True):
        captioner.prompt = f"this {name} is"
        one = loss_of(captioner, [record])
        one.backward()
        expected = expected + one.detach()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert_equal_to_rounding(found, gradients(captioner.model))
    captioner.prompt = "this is"
    assert abs(float(loss_of(captioner, records()).detach() - expected)) > 1e-2


def photo_folder(folder: Path, changed: dict[str, Any] | None = None) -> Path:
    rows = [
        {
            "file_name": f"{n}.png",
            "caption": CAPTIONS[n % 4][0],
            "name": NAMES[n % 4],
            "split": split,
            **(changed or {}),
        }
        for n, split in enumerate(("train",) * 4 + ("validation",) * 2 + ("test",) * 3)
    ]
    for number, row in enumerate(rows):
        write_image(folder / row["file_name"], number)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_values(family: str, folder: Path, root: Path, prompt: str, **data: Any) -> dict[str, Any]:
    values = recipe_values(family, folder, dropout=0.0, metric_for_best_model="cider")
    values["data"] = {"source": "folder", "root": str(root), "max_caption_tokens": 20, **data}
    values["model"]["prompt"] = prompt
    values["score"]["baselines"] = ["blank_images"]
    return values


def run_of(values: dict[str, Any], last: Any = "publish") -> RunDirectory:
    forget_accelerator()
    run = Run(recipe_from_mapping(values, "test"))
    run.execute(last, False)
    return run.directory


@pytest.mark.parametrize("family", ["image_text_to_text", "blip"])
def test_a_run_asks_each_image_in_training_and_in_decoding(family: str, tmp_path: Path) -> None:
    run = run_of(run_values(family, tmp_path / "runs", photo_folder(tmp_path / "photos"), "this {name} is"))
    captioner = load_captioner(str(run.path))
    assert captioner.template == "this {name} is"
    loaded = ImageCaptioner(run.path)
    for number, name in ((6, NAMES[2]), (7, NAMES[3]), (8, NAMES[0])):
        alone = loaded.caption(tmp_path / "photos" / f"{number}.png", f"this {name} is")
        assert read_captions(run.predictions("test"))[f"{number}.png"] == alone.text
        assert loaded.caption(tmp_path / "photos" / f"{number}.png").text == alone.text
    card = run.card.read_text()
    assert '"this {name} is".format(**{"name": "name"})' in card


def test_the_cards_code_asks_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = itt("llava", prompt="this {name} is {{what}}")
    captioner.save(tmp_path / "model", GenerateOptions(num_beams=2, max_new_tokens=6))
    image = write_image(tmp_path / "images" / "photo.jpg", 3)
    asked = ImageCaptioner(tmp_path / "model").caption(image, "this name is {{what}}").text
    assert card_caption(tmp_path / "model", image, "llava", monkeypatch) == asked


@pytest.mark.parametrize("kind", ["git", "llava"])
def test_a_store_of_features_changes_nothing(kind: str, tmp_path: Path) -> None:
    root = photo_folder(tmp_path / "photos")
    if kind == "llava":
        itt("llava").save(tmp_path / "base", GenerateOptions())
    logs = []
    for store in ("on", "off"):
        values = run_values("image_text_to_text", tmp_path / store, root, "this {name} is", feature_store=store)
        values["data"]["feature_store_folder"] = str(tmp_path / "features")
        values["train"]["freeze"] = ["vision"]
        if kind == "llava":
            values["model"] = {"pretrained": str(tmp_path / "base"), "prompt": "this {name} is"}
        log = run_of(values, "train").log
        logs.append([row["loss"] for _, row in read_json_lines(log, "log") if "loss" in row])
    assert len(logs[0]) == 4 and logs[0] == pytest.approx(logs[1], abs=1e-3)


def test_a_field_that_images_lack_is_said_before_training(tmp_path: Path) -> None:
    root = photo_folder(tmp_path / "photos")
    with pytest.raises(UserError, match=r"image 0.png of train has no value for \{namee\}, did you mean 'name'\?"):
        run_of(run_values("blip", tmp_path / "runs", root, "this {namee} is"))
    with pytest.raises(UserError, match="columns with one: file_name, name, split"):
        run_of(run_values("blip", tmp_path / "runs", root, "this {caption} is"))
    assert not (tmp_path / "runs").exists()


def test_a_training_notices_that_values_changed(tmp_path: Path) -> None:
    root = photo_folder(tmp_path / "photos")
    values = run_values("blip", tmp_path / "runs", root, "this {name} is")
    run = run_of(values, "train")
    noted = read_json(run.environment, "environment")["start"]["prompts"]
    photo_folder(tmp_path / "photos", {"name": "cat"})
    again = run_of({**values, "name": "other"}, "train")
    assert read_json(again.environment, "environment")["start"]["prompts"] != noted


def test_rewards_and_preferences_want_one_prompt(tmp_path: Path) -> None:
    values = run_values("blip", tmp_path / "runs", photo_folder(tmp_path / "photos"), "this {name} is")
    first = run_of(values, "train")
    values |= {"name": "sharpened", "scst": {"num_samples": 2}}
    values["model"] = {"pretrained": str(first.path), "prompt": "this {name} is"}
    with pytest.raises(UserError, match="scst: trains after one prompt for all images"):
        run_of(values, "train")


def test_the_doctor_looks_at_the_prompts_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = run_values("image_text_to_text", tmp_path / "runs", photo_folder(tmp_path / "photos"), "this {name} is")
    forget_accelerator()
    assert examine(recipe_from_mapping(values, "test"), tmp_path / "doctor", steps=1)
    assert "do not begin with start token and prompt" not in capsys.readouterr().out


def test_an_ensemble_asks_the_same_of_every_image(tmp_path: Path) -> None:
    places = []
    for number, prompt in enumerate(("", "this {name} is")):
        captioner = build("blip", prompt=prompt)
        captioner.save(tmp_path / str(number), GenerateOptions())
        places.append({"model": str(tmp_path / str(number))})
    with pytest.raises(UserError, match="whose prompt has no fields"):
        build("ensemble", members=places)


def test_the_demo_refuses_what_its_images_cannot_fill(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from hfcap.app.demo import LoadedModel

    build("blip", prompt="this {name} is").save(tmp_path, GenerateOptions())
    with pytest.raises(UserError, match="without a table that has name; caption a folder"):
        LoadedModel(str(tmp_path))
