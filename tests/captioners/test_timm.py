"""Encoders of timm (VGG, Inception, EfficientNet, MobileNet, Swin) from folder to published captioner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import load_captioner
from hfcap.captioners.published.modeling_image_encoder import CHANNELS_FIRST, CHANNELS_LAST
from hfcap.captioners.shared.feature_map import map_layout
from hfcap.captioners.shared.pretrained import load_image_processor
from hfcap.data.loading import PixelInputs
from hfcap.data.pixels import plan_of
from hfcap.doctor.pixels import restore
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.run.stages import Run
from hfcap.run_directory.paths import RunDirectory
from tests.captioners.helpers import (
    MemoryImage,
    build,
    family_class,
    gradients,
    packed_loss,
    pixel_values,
    random_captions,
)
from tests.captioners.timm_networks import NETWORKS, settings, side_of, write_network
from tests.doctor.examined import report_of
from tests.training.harness import forget_accelerator

timm = pytest.importorskip("timm")
pytest.importorskip("torchvision")

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("one_thread")]

FAMILIES = ("show_attend_tell", "cnn_transformer")
OPTIONS = GenerateOptions(num_beams=2, max_new_tokens=6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    return {name: write_network(root / name, name) for name in NETWORKS}


def built(family: str, folder: Path, **changes: Any) -> Captioner:
    return build(family, vision=str(folder), vision_config=None, **changes)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_of_the_map_is_read_as_a_place(family: str, name: str, folders: dict[str, Path]) -> None:
    """A captioner's states are what timm's own network gives, whatever its layout."""
    captioner = built(family, folders[name])
    config, encoder = captioner.model.config, captioner.model.vision_model
    grid = NETWORKS[name][2]
    assert tuple(config.vision_grid) == grid and config.vision_tokens == grid[0] * grid[1]
    assert config.vision_layout == (CHANNELS_LAST if name == "swin" else CHANNELS_FIRST)
    assert config.vision_width == encoder.timm_model.num_features
    pixels = pixel_values(captioner, 2)
    assert pixels.shape == (2, 3, side_of(name), side_of(name))
    with torch.no_grad():
        found, states = encoder.timm_model.forward_features(pixels), captioner.encode(pixels)
    for row in range(grid[0]):
        for column in range(grid[1]):
            cell = found[:, row, column] if name == "swin" else found[:, :, row, column]
            assert torch.equal(states[:, row * grid[1] + column], cell)
    assert float((states[0] - states[1]).abs().max()) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_training_reaches_every_weight(name: str, folders: dict[str, Path]) -> None:
    """Layers that only a classifier reads are not there, so nothing stands idle."""
    captioner = built("show_attend_tell", folders[name])
    packed_loss(captioner, pixel_values(captioner, 2), random_captions(captioner, [2, 1])).backward()
    without = [name for name, parameter in captioner.model.named_parameters() if parameter.grad is None]
    assert without == []
    gradients(captioner.model)
    assert captioner.model.config.vision_unused == {"vgg": ["pre_logits"], "mobilenet": ["conv_head"]}.get(name, [])


def test_a_pooled_captioner_keeps_the_layers_that_pooling_reads(folders: dict[str, Path]) -> None:
    captioner = built("cnn_transformer", folders["vgg"], vision_feature="pooled")
    assert captioner.model.config.vision_unused == [] and captioner.model.config.vision_width == 4096
    assert captioner.encode(pixel_values(captioner, 2)).shape == (2, 1, 4096)


PLAIN = """
import json, sys
sys.modules["hfcap"] = None
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
image = Image.open(sys.argv[1]).convert("RGB")
found = {}
for folder in sys.argv[2:]:
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    tokens = model.generate(**processor(images=image, return_tensors="pt"), num_beams=2, max_new_tokens=6)
    found[folder] = processor.decode(tokens[0], skip_special_tokens=True)
print("RESULT" + json.dumps(found))
"""


def _small(family: str) -> dict[str, Any]:
    return {key: value for key, value in family_class(family).tiny().items() if key != "vision_config"}


def recipe_of(output: Path, family: str, name: str, network: Path, **decoding: Any) -> Any:
    values = {
        "name": f"{family}-{name}",
        "output_dir": str(output),
        "captioner": family,
        "model": {**_small(family), "vision": str(network)},
        "data": {"source": "scenes", "n_train": 6, "n_validation": 2, "n_test": 2, "image_size": 80},
        "train": {"max_steps": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-3, "dataloader_num_workers": 0},
        "generate": {"num_beams": 2, "max_new_tokens": 6, **decoding},
        "score": {"split": "test", "metrics": ["bleu"]},
        "publish": {"license": "apache-2.0", "base_model": f"timm/{name}"},
    }
    return recipe_from_mapping(values, "test")


def test_from_doctor_to_plain_transformers(folders: dict[str, Path], tmp_path: Path) -> None:
    """Examined, trained, captioned, scored, staged, reloaded, and used where hfcap is not: all in one process."""
    image = tmp_path / "image.png"
    image.write_bytes(MemoryImage(5).read())
    expected: dict[str, str] = {}
    for number, name in enumerate(NETWORKS):
        family = FAMILIES[number % 2]
        recipe = recipe_of(tmp_path / "runs", family, name, folders[name])
        forget_accelerator()
        run = Run(recipe)
        run.execute("publish")
        directory: RunDirectory = run.directory
        captioner = load_captioner(str(directory.path), trust_remote_code=True)
        values = captioner.image_processor(images=Image.open(image).convert("RGB"), return_tensors="pt")
        states = captioner.encode(values["pixel_values"])
        expected[str(directory.publish)] = captioner.caption_states(states, OPTIONS)[0][0].text
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(image), *expected],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {folder: " ".join(text.split()) for folder, text in json.loads(done.stdout.split("RESULT")[1]).items()}
    assert found == expected
    assert any(expected.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_doctor_finds_nothing_wrong(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, family, "mobilenet", folders["mobilenet"], max_new_tokens=16)
    report = report_of(recipe, healthy=True)
    # Two images are few to score, whatever the network.
    problems = [problem for problem in report["problems"] if problem["key"] != "data.test_split"]
    assert problems == []


def test_its_processor_is_saved_with_what_it_is_made_from(folders: dict[str, Path], tmp_path: Path) -> None:
    """What timm's processor says of itself is not enough to make it again."""
    captioner = built("show_attend_tell", folders["mobilenet"])
    captioner.save(tmp_path, OPTIONS)
    again = load_captioner(str(tmp_path), trust_remote_code=True)
    image = Image.effect_mandelbrot((90, 61), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    pixels = [one.image_processor(images=image, return_tensors="pt")["pixel_values"] for one in (captioner, again)]
    network = timm.data.create_transform(**timm.data.resolve_data_config(settings("mobilenet")), is_training=False)
    assert torch.equal(pixels[0][0], network(image)) and torch.equal(pixels[0], pixels[1])
    assert again.image_processor.to_dict() == captioner.image_processor.to_dict()
    inputs = PixelInputs([], captioner.image_processor)
    assert plan_of(captioner.image_processor) is None or inputs.plan is not None
    assert torch.equal(inputs.processed(image), pixels[0][0])
    restored = restore(pixels[0], captioner.image_processor)
    assert float(restored.min()) > -1e-5 and float(restored.max()) < 1 + 1e-5


def test_a_folder_as_timm_writes_it(tmp_path: Path) -> None:
    """timm's own function notes the number of classes twice, on which transformers' wrapper fails."""
    network = timm.create_model("mobilenetv3_small_050", pretrained=False)
    timm.models.save_for_hf(network, tmp_path, safe_serialization=True)
    captioner = built("show_attend_tell", tmp_path)
    weights = captioner.model.vision_model.timm_model.state_dict()
    # `build` makes matrices lively; the statistics of the norms are still those of the file.
    assert all(torch.equal(weights[name], value) for name, value in network.named_buffers() if name in weights)
    assert captioner.image_processor.size == {"height": 224, "width": 224}


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_by_name(family: str) -> None:
    """The size of the images is the network's own."""
    captioner = build(family, vision_config={"model_type": "timm_wrapper", "architecture": "test_efficientnet"})
    assert captioner.image_processor.size == {"height": 160, "width": 160}
    assert captioner.encode(pixel_values(captioner, 1)).shape[1] == 25


class Odd(torch.nn.Module):
    """An encoder that gives states of a chosen shape and says little about them."""

    def __init__(self, *shape: int, width: int | None = None, one_size: bool = True) -> None:
        super().__init__()
        self.shape, self.one_size = shape, one_size
        self.config = type("Config", (), {"hidden_size": width})()

    def forward(self, pixel_values: torch.Tensor) -> Any:
        if self.one_size and pixel_values.shape[-1] != 8:
            raise ValueError("images must have 8 pixels")
        return type("Output", (), {"last_hidden_state": torch.zeros(1, *self.shape)})()


@pytest.mark.parametrize(
    ("encoder", "layout"),
    [
        (Odd(7, 7, 96, width=96), CHANNELS_LAST),
        (Odd(96, 7, 7, width=96), CHANNELS_FIRST),
        (Odd(49, 96, width=96), CHANNELS_FIRST),
        (Odd(7, 7, 7, width=7), "it is not clear which dimension of Odd's states"),
        (Odd(7, 7, 96, width=32), "it is not clear which dimension"),
        (Odd(7, 7, 96), "it is not clear which dimension"),
        (Odd(96, width=96), "a tensor of 2 dimensions"),
        (Odd(2, 7, 7, 96, width=96), "a tensor of 5 dimensions"),
    ],
)
def test_layouts_are_told_by_the_width_or_refused(encoder: Any, layout: str) -> None:
    pixels = torch.zeros(1, 3, 8, 8)
    if layout in (CHANNELS_FIRST, CHANNELS_LAST):
        assert map_layout(encoder, pixels, "model.vision") == layout
    else:
        with pytest.raises(UserError, match=layout):
            map_layout(encoder, pixels, "model.vision")


def test_layouts_are_told_by_a_larger_image() -> None:
    """A configuration of transformers names several widths, and the wrong one may fit by chance."""

    class Growing(Odd):
        def forward(self, pixel_values: torch.Tensor) -> Any:
            cells = pixel_values.shape[-1] // 4
            return type("Output", (), {"last_hidden_state": torch.zeros(1, cells, cells, 6)})()

    assert map_layout(Growing(width=2), torch.zeros(1, 3, 8, 8), "model.vision") == CHANNELS_LAST


def test_networks_that_give_several_maps_are_refused() -> None:
    values = {"model_type": "timm_wrapper", "architecture": "test_resnet", "model_args": {"features_only": True}}
    with pytest.raises(UserError, match=r"model\.vision: the last states of test_resnet are list"):
        build("show_attend_tell", vision_config=values)


def test_a_processor_alone_is_described(folders: dict[str, Path]) -> None:
    processor = load_image_processor(str(folders["swin"]), "model.vision", None, False)
    assert processor.size == {"height": 64, "width": 64}
    assert processor.image_mean == [0.485, 0.456, 0.406] and processor.do_normalize
