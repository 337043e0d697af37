"""A whole run with images of several shapes: feature store, training, captions, card and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.data.loading import BlankInputs, PixelInputs, batch_keys, epoch_batches, sizes_of
from hfcap.errors import UserError
from hfcap.files import read_json, read_json_lines
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.run.stages import Run
from hfcap.schema import CaptionedImage, SizedImages
from hfcap.store.features import FeatureStore, captioner_encoder
from tests.captioners.helpers import random_image
from tests.captioners.itt_models import itt
from tests.captioners.itt_runs import OPTIONS, assert_doctor_agrees, card_caption
from tests.training.harness import forget_accelerator

pytestmark = pytest.mark.contract

SHAPES = ((64, 64), (150, 60), (60, 200), (97, 131))
KIND = "idefics3"
"""The kind with tiles of images whose processor needs no torchvision."""


class FileImage:
    """An image file, as sources have it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes:
        return self.path.read_bytes()

    def describe(self) -> str:
        return str(self.path)

    def check_key(self) -> str:
        return self.read().hex()


def folder_of_photos(root: Path, count: int = 12) -> Path:
    root.mkdir(parents=True)
    lines = []
    for number in range(count):
        name = f"{number:02}.png"
        random_image(number, SHAPES[number % len(SHAPES)]).save(root / name)
        lines.append(json.dumps({"file_name": name, "text": f"a photo of {number} dogs on a table"}))
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def records_of(root: Path) -> list[CaptionedImage]:
    return [CaptionedImage(path.stem, path.name, ("a dog",), FileImage(path)) for path in sorted(root.glob("*.png"))]


def execute(folder: Path, captioner: ImageTextToText, **changes: Any) -> Run:
    photos = folder_of_photos(folder / "photos")
    captioner.save(folder / "base", OPTIONS)
    values = {
        "name": "tiny",
        "output_dir": str(folder / "runs"),
        "captioner": "image_text_to_text",
        "model": {"pretrained": str(folder / "base"), "prompt": captioner.prompt},
        "data": {"source": "folder", "root": str(photos), "feature_store_folder": str(folder / "features")},
        "lora": {"r": 4},
        "train": {
            "max_steps": 2,
            "per_device_train_batch_size": 3,
            "learning_rate": 1e-2,
            "dataloader_num_workers": 0,
            "freeze": ["vision"],
        },
        "generate": OPTIONS.model_dump(include={"num_beams", "max_new_tokens"}),
        "score": {"n_resamples": 10, "baselines": ["blank_images"]},
        "publish": {"license": "apache-2.0", "base_model": "somebody/base"},
    }
    forget_accelerator()
    run = Run(recipe_from_mapping({**values, **changes}, "test"))
    run.execute("publish", False)
    return run


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["whole", "lora"])
def test_a_whole_run(lora: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = itt(KIND, own=True)
    run = execute(tmp_path, captioner, lora=lora)
    assert list((tmp_path / "features").rglob("shard-*.safetensors"))
    rows = [row for _, row in read_json_lines(run.directory.predictions("test"), "predictions")]
    assert rows and read_json(run.directory.scores("test"), "scores")["n_images"] == len(rows)
    assert "image_size" not in read_json(run.directory.model / "hfcap.json", "sidecar")
    if lora is not None:
        return  # its card names a base model of the Hub
    photo, with_plain = tmp_path / "photo.jpg", {}
    for row in rows:
        photo.write_bytes((tmp_path / "photos" / row["file_name"]).read_bytes())
        with_plain[row["file_name"]] = card_caption(run.directory.model, photo, KIND, monkeypatch)
    assert with_plain == {row["file_name"]: row["caption"] for row in rows}


def test_features_of_any_length_are_kept(tmp_path: Path) -> None:
    captioner = itt(KIND, own=True)
    records = records_of(folder_of_photos(tmp_path / "photos"))
    store = FeatureStore(captioner_encoder(captioner), tmp_path / "features")
    stored = store.inputs(records, batch_size=5)
    pixels = PixelInputs(records, captioner.image_processor)
    lengths = set()
    for number, record in enumerate(records):
        item: Any = stored[number]
        assert isinstance(item, SizedImages)
        with torch.inference_mode():
            expected = captioner.encode(pixels.pixel_values([number]))
        assert item.sizes == expected.sizes == (random_image(0, SHAPES[number % 4]).size,)
        torch.testing.assert_close(item.values[0].float(), expected.values[0], rtol=2e-3, atol=2e-3)
        lengths.add(len(item.values[0]))
        assert record.image_id
    assert len(lengths) > 1
    assert sizes_of(stored) == sizes_of(pixels) == [SHAPES[number % 4] for number in range(12)]
    again = FeatureStore(captioner_encoder(captioner), tmp_path / "features").inputs(records)
    assert again.places == stored.places
    assert store.rows.info().n_images == 12


def test_batches_hold_images_of_one_shape_where_they_can() -> None:
    sizes = [SHAPES[number % 4] for number in range(40)]

    inputs = SimpleNamespace(sizes=lambda: sizes)
    data: Any = SimpleNamespace(inputs=inputs, tokens=[[[1] * (number % 3 + 1)] for number in range(40)])
    batches = epoch_batches(batch_keys(data), 5, seed=1, epoch=0)
    assert sorted(number for batch in batches for number in batch) == list(range(40))
    assert all(len({sizes[number] for number in batch}) == 1 for batch in batches)


def test_blank_images_have_the_shape_of_the_images(tmp_path: Path) -> None:
    captioner = itt(KIND, own=True)
    pixels = PixelInputs(records_of(folder_of_photos(tmp_path / "photos")), captioner.image_processor)
    blank = BlankInputs(pixels)
    for number in range(4):
        image, item = pixels[number], blank[number]
        assert isinstance(image, SizedImages) and isinstance(item, SizedImages)
        assert item.sizes == image.sizes and item.values[0].shape == image.values[0].shape
        assert not bool(item.values[0].any())


def test_doctor_finds_training_and_generation_in_agreement() -> None:
    assert_doctor_agrees(itt("qwen2_vl", own=True))


def test_self_critical_training_asks_for_a_square(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scst: .*keeps the shape of each; set model\.image_size"):
        execute(
            tmp_path,
            itt(KIND, own=True),
            scst={},
            train={"max_steps": 1, "metric_for_best_model": "cider", "dataloader_num_workers": 0},
        )
