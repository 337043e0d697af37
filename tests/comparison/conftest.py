"""Score files and run directories of random captions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcap.files import read_json
from hfcap.scoring import score_files
from tests.comparison.pages import FEW, Scored, encoded
from tests.metrics.random_captions import random_captions

N_IMAGES = 130


def _worse(candidates: dict[str, str], share: float, seed: int) -> dict[str, str]:
    generator = np.random.default_rng(seed)
    return {key: "grass grass" if generator.random() < share else line for key, line in candidates.items()}


@pytest.fixture
def scored(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the score file of captions, a share of which is spoiled."""
    _, references = random_captions(N_IMAGES, 60)
    # One of the human captions as candidate: a system that deserves its score.
    candidates = {key: group[0] for key, group in references.items()}
    references = {key: [*group[1:], "a man on the street"] for key, group in references.items()}

    def score(path: str, share: float, *, seed: int = 0, drop: int = 0, **options: Any) -> Path:
        chosen = dict(list(references.items())[drop:])
        output = tmp_path / path
        output.parent.mkdir(parents=True, exist_ok=True)
        sources = tmp_path / "sources"
        sources.mkdir(exist_ok=True)
        (sources / "p.json").write_text(json.dumps({key: _worse(candidates, share, seed)[key] for key in chosen}))
        (sources / "r.json").write_text(json.dumps(chosen))
        options.setdefault("n_resamples", 200)
        score_files(sources / "p.json", sources / "r.json", output=output, split="test", warn=lambda _: None, **options)
        return output

    return score


@pytest.fixture
def run_directory(scored: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a run directory with scores, costs and a published target."""

    def make(name: str, share: float, metrics: Sequence[str] = ("bleu", "rouge_l", "cider"), **recipe: Any) -> Path:
        folder = tmp_path / "runs" / name
        scored(f"runs/{name}/scores/test.json", share, metrics=metrics)
        expect = {"metrics": {"cider": 1.333}, "source": "the paper, table 2", "reproduced": False}
        content = {"name": name, "score": {"split": "test"}, "expect": expect} | recipe
        (folder / "recipe.yaml").write_text(json.dumps(content))
        (folder / "training_summary.json").write_text(
            json.dumps(
                {
                    "parameters": 247_000_000,
                    "trainable_parameters": 2_500_000,
                    "train_seconds": 7200.0,
                    "peak_memory_bytes": 3 * 2**30,
                    "images_per_second": 41.5,
                    "captions_per_second": None,
                }
            )
        )
        return folder

    return make


@pytest.fixture
def whole_run(run_directory: Scored, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a run directory with predictions, human captions, images and a loadable recipe."""

    def make(name: str, share: float) -> Path:
        images = tmp_path / "images"
        data = {"source": "coco_json", "captions": str(tmp_path / "all.json"), "images": str(images)}
        model: dict[str, Any] = {"captioner": "blip", "model": {"pretrained": "x"}, "train": {"max_steps": 1}}
        run = run_directory(name, share, FEW, data=data, **model)
        predictions = read_json(tmp_path / "sources" / "p.json", "p")
        human = read_json(tmp_path / "sources" / "r.json", "r")
        rows = [
            {"image_id": key, "file_name": f"{key}.png", "caption": caption} for key, caption in predictions.items()
        ]
        for folder in (run / "predictions", run / "references", images):
            folder.mkdir(exist_ok=True)
        (run / "predictions" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        coco = {
            "images": [{"id": key, "file_name": f"{key}.png", "split": "test"} for key in human],
            "annotations": [{"image_id": key, "caption": text} for key, group in human.items() for text in group],
        }
        for path in (run / "references" / "test.json", tmp_path / "all.json"):
            path.write_text(json.dumps(coco))
        for row in rows:
            (images / row["file_name"]).write_bytes(encoded("PNG"))
        return run

    return make
