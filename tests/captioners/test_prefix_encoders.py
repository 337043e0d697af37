"""Prefix captioners over every well-known image encoder: trained a step, saved, and used where hfcap is not."""

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
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.backbones import ENCODERS, LANGUAGE_MODELS
from tests.captioners.helpers import build, gradients, packed_loss, pixel_values, random_captions, write_image

NAMES = ("clip", "siglip", "flava", "dinov2", "vit", "resnet")
FEATURES = ("pooled", "patches")
OPTIONS = GenerateOptions(num_beams=2, max_new_tokens=6)

PLAIN = """
import json, sys
sys.modules["hfcap"] = None
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
image = Image.open(sys.argv[1]).convert("RGB")
found = {}
for folder in sys.argv[2:]:
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=True)
    tokens = model.generate(**processor(images=image, return_tensors="pt"))
    found[folder] = processor.decode(tokens[0], skip_special_tokens=True)
print("RESULT" + json.dumps(found))
"""


def trained(encoder: str, vision_feature: str) -> tuple[Captioner, list[float], dict[str, torch.Tensor]]:
    """A captioner after updates of all weights; its losses, and the gradients of the first update."""
    captioner = build(
        "clip_prefix",
        vision_config=ENCODERS[encoder],
        language_model_config=LANGUAGE_MODELS["gpt2"],
        vision_feature=vision_feature,
        mapper="mlp" if vision_feature == "pooled" else "transformer",
        mapper_layers=1,
        mapper_heads=2,
    )
    pixels, captions = pixel_values(captioner, 3), random_captions(captioner, [2, 1, 2])
    optimizer = torch.optim.SGD(captioner.model.parameters(), lr=2e-4)
    losses, first = [], {}
    for step in range(2):
        loss = packed_loss(captioner, pixels, captions)
        losses.append(float(loss.detach()))
        loss.backward()
        if step == 0:
            first = {name: p.grad.clone() for name, p in captioner.model.named_parameters() if p.grad is not None}
            optimizer.step()
        gradients(captioner.model)  # leaves none behind
    return captioner, losses, first


@pytest.fixture(scope="module", params=[(name, feature) for name in NAMES for feature in FEATURES], ids="-".join)
def case(request: pytest.FixtureRequest) -> Any:
    return (request.param, *trained(*request.param))


def test_a_step_lowers_the_loss_and_reaches_the_encoder(case: Any) -> None:
    (encoder, _), captioner, losses, first = case
    assert losses[1] < losses[0]
    reached = [name for name in first if name.startswith("vision_model.") and float(first[name].abs().max()) > 0]
    # The last norm or pooler of an encoder does not serve both outputs.
    assert len(reached) > 0.7 * sum(name.startswith("vision_model.") for name, _ in captioner.model.named_parameters())
    assert captioner.model.vision_model.config.model_type == ENCODERS[encoder]["model_type"]


def test_every_encoder_captions_alike_where_hfcap_is_not(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.png", seed=5)
    expected: dict[str, str] = {}
    for encoder in NAMES:
        captioner, *_ = trained(encoder, "pooled")
        captioner.model.eval()
        captioner.save(tmp_path / encoder, OPTIONS)
        values = captioner.image_processor(images=Image.open(image).convert("RGB"), return_tensors="pt")
        with torch.inference_mode():
            states = captioner.encode(values["pixel_values"])
        expected[str(tmp_path / encoder)] = captioner.caption_states(states, OPTIONS)[0][0].text
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(image), *expected],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {folder: " ".join(text.split()) for folder, text in json.loads(done.stdout.split("RESULT")[1]).items()}
    assert found == expected
    assert all(expected.values())
