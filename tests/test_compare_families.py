"""scripts/compare_families.py on a handful of images: every step for real, one small family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hfcap.errors import UserError
from hfcap.recipe.loading import load_recipe
from scripts import compare_families
from scripts.compare_families import Contest, family_recipes

pytestmark = pytest.mark.usefixtures("forks")
ROOT = Path(__file__).parents[1]
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200), "grey": (120, 120, 120)}


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for number in range(48):
        colour = list(COLOURS)[number % 4]
        Image.new("RGB", (64, 64), COLOURS[colour]).save(tmp_path / "images" / f"{number}.png")
        split = "val" if number >= 40 else "train"
        images.append({"id": number, "file_name": f"{number}.png", "split": split})
        annotations += [
            {"id": 2 * number + n, "image_id": number, "caption": text}
            for n, text in enumerate([f"a {colour} square", f"an image that is {colour}"])
        ]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    return path


def test_one_family_is_trained_for_its_time_and_not_twice(
    captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compare_families, "PACE_UPDATES", 4)
    monkeypatch.setattr(compare_families, "PACE_FROM", 2)
    output = tmp_path / "out"
    small = ["model.tokenizer.vocab_size=300", "score.baselines=[]", "train.dataloader_num_workers=0"]
    sizes = {"image_size": 32, "width": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feed_forward": 64}
    small += [f"model.architecture.{name}={size}" for name, size in sizes.items()]
    arguments = [str(captions), *small, "--vision", "not used", "--minutes", "0.004"]
    arguments += ["--families", "image_transformer", "--output", str(output)]
    compare_families.main(arguments)

    plan = json.loads((output / "plan.json").read_text(encoding="utf-8"))
    summary = json.loads((output / "image_transformer/training_summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == plan["updates"]["image_transformer"] >= 1
    [row] = json.loads((output / "families.json").read_text(encoding="utf-8"))["rows"]
    low, high = row["cider_interval"]
    assert low <= row["cider"] <= high
    assert row["parameters"] == summary["parameters"]
    assert min(row["images_per_second"], row["captioning_images_per_second"]) > 0
    table = (output / "families.md").read_text(encoding="utf-8").splitlines()
    assert table[2].startswith(f"| image_transformer | {100 * row['cider']:.1f} (")
    assert table[2].count("|") == table[0].count("|") == len(compare_families.COLUMNS) + 1
    assert "image_transformer" in capsys.readouterr().out

    weights = output / "image_transformer/model/model.safetensors"
    before = weights.stat().st_mtime_ns
    compare_families.main(arguments)
    assert weights.stat().st_mtime_ns == before

    with pytest.raises(UserError, match=r"plan\.json: made for 0\.004 minutes"):
        Contest(captions, "not used", 5.0, output, small).updates("image_transformer")


def test_what_a_command_refuses_is_passed_on_with_its_exit_code(
    captions: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    contest = Contest(captions, "not used", 1.0, tmp_path / "out", [])
    with pytest.raises(SystemExit) as stopped:
        contest.hfcap("train", "image_transformer", "data.validation_split=nowhere", "data.max_train_images=4")
    assert stopped.value.code == 2
    said = capfd.readouterr().err
    assert said.count("error: ") == 1 and "'nowhere'" in said
    done = subprocess.run(
        [sys.executable, "-m", "scripts.compare_families", captions, "data.nothing=1", "--vision", "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "data.nothing" in done.stderr


def test_families_that_stand_on_an_encoder_get_the_one_that_is_given(tmp_path: Path) -> None:
    contest = Contest(tmp_path / "captions.json", "some/encoder", 1.0, tmp_path, ["train.seed=7"])
    for family, path in family_recipes().items():
        recipe = contest.recipe(family)[2]
        assert recipe.captioner == family == path.parent.name
        assert recipe.train.seed == 7
        vision = getattr(load_recipe(path).model, "vision", None)
        assert getattr(recipe.model, "vision", None) == (None if vision is None else "some/encoder")
