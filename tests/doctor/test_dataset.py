"""What the doctor says about the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hfcap import registry
from hfcap.captioners import blip
from hfcap.data.images import FileImage
from hfcap.data.sources.folder import FolderOptions
from hfcap.doctor import dataset
from hfcap.doctor.findings import Findings
from hfcap.schema import CaptionedImage
from tests.doctor.examined import record, report_of, the_error, tiny_recipe


def test_images_in_two_splits(tmp_path: Path) -> None:
    train = [record(tmp_path, "a.png", "red", "a red wall"), record(tmp_path, "b.png", "blue", "the sea", "the  Sea")]
    other = tmp_path / "other"
    other.mkdir()
    validation = [
        record(other, "copy.png", "red", "a wall"),
        record(other, "new.png", "green", "grass", image_id="b.png"),
        record(other, "b.png", "black", "night", image_id="c"),
        record(other, "fine.png", "white", "a white wall"),
    ]
    findings = Findings()
    facts = dataset.examine_data({"train": train, "validation": validation}, findings)
    shared = facts.shared_with_train["validation"]
    assert (shared.same_id, shared.same_file_name, shared.same_bytes) == (1, 1, 1)
    assert facts.most_frequent[0] == ("the sea", 2)
    assert facts.splits["train"].captions_per_image == {1: 1, 2: 1}
    assert facts.splits["validation"].one_word_captions == 2
    assert [problem.key for problem in findings.problems] == ["data.validation_split"]
    assert "1 by id, 1 by file name, 1 by content" in findings.problems[0].message


def blobs(seed: int) -> Image.Image:
    """An image of soft shapes, which no other seed resembles."""
    grey = np.random.default_rng(seed).integers(0, 256, (7, 6, 3), dtype=np.uint8)
    return Image.fromarray(grey).resize((120, 90), Image.Resampling.BICUBIC)


def test_images_that_look_like_training_images(tmp_path: Path) -> None:
    def saved(name: str, image: Image.Image, **options: Any) -> CaptionedImage:
        image.save(tmp_path / name, **options)
        return CaptionedImage(name, name, (f"a caption of {name}",), FileImage(tmp_path / name))

    train = [saved(f"t{seed}.png", blobs(seed)) for seed in range(20)]
    train += [saved("plain.png", Image.new("RGB", (40, 30), "red"))]
    test = [saved(f"v{seed}.png", blobs(seed)) for seed in range(100, 120)]
    test += [
        saved("small.jpg", blobs(3).resize((64, 48)), quality=60),
        saved("brighter.jpg", blobs(4).point(lambda value: min(255, value + 12)), quality=90),
        saved("turned.png", blobs(5).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        saved("plain.jpg", Image.new("RGB", (40, 30), "green")),
        saved("same.png", blobs(6)),  # the same bytes: reported as such
    ]
    findings = Findings()
    dataset.examine_data({"train": train, "test": test}, findings)
    content, alike = findings.problems
    assert "1 by content" in content.message and content.key == alike.key == "data.test_split"
    assert alike.message.startswith("2 of 25 images of test look like training images, for example 'small.jpg' like ")
    assert "'t3.png' and 'brighter.jpg' like 't4.png'" in alike.message and "same split" in alike.remedy


def test_scored_images_that_chose_the_checkpoint(tmp_path: Path) -> None:
    train, held_out = record(tmp_path, "a.png", "red", "a red wall"), record(tmp_path, "b.png", "blue", "the sea")
    findings = Findings()
    dataset.examine_data({"train": [train], "validation": [held_out], "test": [held_out]}, findings)
    assert [(problem.level, problem.key) for problem in findings.problems] == [("warning", "data.test_split")]
    assert "1 of 1 scored images are validation images too" in findings.problems[0].message


def test_placeholder_captions(tmp_path: Path) -> None:
    captions = ["photo" if n % 2 else f"a red wall, take {n}" for n in range(20)]
    train = [record(tmp_path, f"{n}.png", f"#ff00{n:02x}", captions[n]) for n in range(20)]
    findings = Findings()
    dataset.examine_data({"train": train}, findings)
    assert [problem.message for problem in findings.problems] == [
        "10 of 20 training captions are 'photo'; the captioner will learn to say just that",
        "10 of 20 training captions are a single word",
    ]


@pytest.mark.parametrize(("repeated", "alarms"), [(2, False), (7, False), (8, True)])
def test_few_repetitions_are_no_placeholder(repeated: int, alarms: bool, tmp_path: Path) -> None:
    captions = ["a red wall" if n < repeated else f"a red wall, take {n}" for n in range(36)]
    train = [record(tmp_path, f"{n}.png", f"#ff00{n:02x}", captions[n]) for n in range(36)]
    findings = Findings()
    dataset.examine_data({"train": train}, findings)
    assert any("the captioner will learn to say just that" in one.message for one in findings.problems) is alarms


def test_one_row_per_caption(tmp_path: Path) -> None:
    train = [record(tmp_path, f"{n}.png", f"#ff00{n // 2:02x}", f"a red wall, take {n}") for n in range(20)]
    findings = Findings()
    facts = dataset.examine_data({"train": train}, findings)
    assert facts.different_images == 10
    assert [one.message for one in findings.problems] == [
        "20 training images are 10 different ones: one row per caption, or copies"
    ]


def test_markers_read_as_special_tokens(plant: Any, tmp_path: Path) -> None:
    class ReadsMarkers(blip.Blip):
        def caption_token_ids(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
            ids: list[list[int]] = self.tokenizer(list(captions), add_special_tokens=False)["input_ids"]
            return ids

    plant(ReadsMarkers)
    root = tmp_path / "images"
    for split in ("train", "validation", "test"):
        (root / split).mkdir(parents=True)
        rows = [record(root / split, f"{n}.png", "red", f"a red wall{' <end> or' * (n == 3)}") for n in range(4)]
        lines = [json.dumps({"file_name": row.file_name, "caption": row.captions[0]}) for row in rows]
        (root / split / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = registry.load("sources", "folder").REGISTERED.options
    recipe = tiny_recipe(tmp_path).model_copy(update={"data": options(source="folder", root=str(root))})
    report = report_of(recipe, healthy=False)
    the_error(report, "data.source: 1 captions contain the start, end or pad token")
    shared = report["data"]["shared_with_train"]["validation"]
    # Names are the split's own; the four red images have the same bytes, though.
    assert shared["same_bytes"] == 1


def test_a_small_test_split_is_warned_of_with_the_remedy(tmp_path: Path) -> None:
    """120 images gave 8 test images, and an interval of 14 to 69 without a word."""
    report = report_of(tiny_recipe(tmp_path, data={"n_test": 3}), healthy=True)
    (warning,) = [one for one in report["problems"] if one["key"] == "data.test_split"]
    assert "only 3 images are scored (split test)" in warning["message"] and warning["remedy"] == "raise data.n_test"
    assert report_of(tiny_recipe(tmp_path), healthy=True)["problems"] == []


def test_captions_that_answer_prompts_which_the_captioner_is_not_told(tmp_path: Path) -> None:
    """LLaVA's questions: training without them teaches the answers without the question, and nobody said so."""
    questions = ["<image>\nWhat is it?", "<image>\nWhich colour is it?"]
    rows = []
    for number in range(12):
        Image.new("RGB", (32, 32), f"hsl({30 * number}, 80%, 50%)").save(tmp_path / f"{number}.png")
        asked, answer = questions[number % 3 == 0], f"a wall with the number {number}"
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        rows.append({"id": number, "image": f"{number}.png", "conversations": turns})
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    data = FolderOptions(source="folder", root=str(tmp_path), validation_share=0.25, test_share=0.25)

    def problems(family: str, **model: Any) -> list[dict[str, Any]]:
        recipe = tiny_recipe(tmp_path, family, model=model).model_copy(update={"data": data})
        found = report_of(recipe, True)["problems"]
        return [problem for problem in found if problem["key"] == "model.prompt"]

    [told] = problems("blip")
    assert "answer 2 prompts of the dataset, most often '<image> Wh" in told["message"]
    assert "none of them" in told["message"] and "data.filter" in told["remedy"] and "model.prompt" in told["remedy"]
    [other] = problems("blip", prompt="a photo of")
    assert "is told 'a photo of' instead" in other["message"]
    [none] = problems("retrieval")
    assert "takes no prompt" in none["remedy"]


@pytest.mark.parametrize(
    ("prompt", "answered", "said"),
    [
        ("What is it?", ("What  is it?",), []),
        ("", (), []),
        ("", ("What is it?",), ["set model.prompt to it"]),
        ("What is it?", ("What is it?", "\x1b[31mWhere?"), ["\N{REPLACEMENT CHARACTER}[31mWhere?"]),
    ],
)
def test_which_prompts_are_reported(prompt: str, answered: tuple[str, ...], said: list[str], tmp_path: Path) -> None:
    findings = Findings()
    train = [CaptionedImage("a", "a.png", ("a wall",), FileImage(tmp_path / "a.png"), prompts=answered)]
    dataset.report_prompts(train, prompt, True, False, findings)
    assert len(findings.problems) == len(said)
    for problem, wanted in zip(findings.problems, said, strict=True):
        assert wanted in problem.message + problem.remedy
