"""A whole run of a tiny image-text-to-text model, the card's code as a stranger runs it, and what doctor looks at."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.card.usage_code import usage_code
from hfcap.data.loading import CaptionBatch
from hfcap.data.packing import pack_captions
from hfcap.doctor.findings import Findings
from hfcap.doctor.train_generate_parity import examine_agreement
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.run.stages import Run
from hfcap.run_directory.paths import RunDirectory
from tests.captioners.helpers import pixel_values, random_captions
from tests.training.harness import forget_accelerator

OPTIONS = GenerateOptions(num_beams=2, max_new_tokens=6)


def run_recipe(folder: Path, model: dict[str, Any], lora: bool, lora_options: Any = None, **train: Any) -> RunDirectory:
    values = {
        "name": "tiny",
        "output_dir": str(folder / "runs"),
        "captioner": "image_text_to_text",
        "model": model,
        "data": {
            "source": "scenes",
            "n_train": 7,
            "n_validation": 4,
            "n_test": 5,
            "image_size": 32,
            "feature_store_folder": str(folder / "features"),
        },
        "lora": {"r": 4, **(lora_options or {})} if lora else None,
        "train": {
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "dataloader_num_workers": 0,
            **train,
        },
        "generate": OPTIONS.model_dump(include={"num_beams", "max_new_tokens"}),
        "score": {"n_resamples": 10, "baselines": ["blank_images"]},
        "publish": {"license": "apache-2.0", "base_model": "somebody/base"},
    }
    forget_accelerator()
    run = Run(recipe_from_mapping(values, "test"))
    run.execute("publish", False)
    return run.directory


def card_caption(folder: Path, image: Path, model_type: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the card's code prints for the image."""
    code = usage_code(str(folder), folder, has_code=False, model_type=model_type)
    monkeypatch.chdir(image.parent)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "card", "exec"), {"__name__": "card"})
    return " ".join(printed.getvalue().split())


def assert_doctor_agrees(captioner: ImageTextToText) -> None:
    """What doctor looks at before a training is in order: starts, logits against generation, no caption seen early."""
    captions = random_captions(captioner, [2, 1])
    rows = pack_captions(captions, captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id)
    batch = CaptionBatch(pixel_values(captioner, 2), False, rows, 3)
    values = {
        "name": "x",
        "captioner": "image_text_to_text",
        "model": {"pretrained": "x"},
        "data": {"source": "scenes"},
        "train": {"max_steps": 1},
    }
    findings = Findings()
    facts = examine_agreement(recipe_from_mapping(values, "test"), captioner, batch, findings)
    assert findings.problems == []
    assert facts.start_in_training == facts.start_in_generation == facts.start_in_transformers
    assert facts.prediction_difference is not None and facts.prediction_difference < 1e-4
    assert facts.leak is not None and facts.leak < 1e-4
