"""`hfcap probe-objects`: the whole way to a served model and back, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import hfcap as hfcap_package
from hfcap.errors import UserError
from hfcap.files import read_json, read_json_lines
from hfcap.metrics.shared.coco_objects import CATEGORIES
from hfcap.probes import Asking, probe_objects
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.chat_server import ChatServer, chatting
from tests.captioners.helpers import build
from tests.cli.command_line import Hfcap, assert_refused


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with chatting() as server:
        yield server


def sees_red(choice: dict[str, Any]) -> dict[str, Any]:
    """Say yes of red images and no of all others."""
    red = "red" in choice["message"]["content"]
    return {**choice, "message": {"role": "assistant", "content": "Yes, it is there." if red else "No."}}


@pytest.fixture
def annotated(tmp_path: Path) -> tuple[Path, Path]:
    """COCO instances of four images, the first two of which are red; and their folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    names = ("dog", "cat", "kite", "person", "car", "bus")
    content: dict[str, Any] = {
        "images": [{"id": number, "file_name": f"p{number}.png"} for number in range(4)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [{"image_id": n, "category_id": (n + k) % 6} for n in range(4) for k in range(2)],
    }
    for number in range(4):
        Image.new("RGB", (32, 24), (220, 10, 10) if number < 2 else (10, 220, 10)).save(folder / f"p{number}.png")
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path, folder


def test_a_served_model_is_asked(chat: ChatServer, annotated: tuple[Path, Path], hfcap: Hfcap, tmp_path: Path) -> None:
    chat.answer = sees_red
    out = tmp_path / "probe"
    arguments = ("probe-objects", chat.base_url, *annotated, "--n-questions", "2", "--n-resamples", "100", "-o", out)
    found = hfcap(*arguments)
    assert found.code == 0, found.err
    assert "adversarial" in found.out and "50.0" in found.out and "probe.json" in found.out
    report = read_json(out / "probe.json", "probe")
    # Red images: all yes, right where the object is there; green ones the other way round.
    assert report["values"]["popular"] == {
        "accuracy": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "yes_ratio": 0.5,
    }
    questions = [row for _, row in read_json_lines(out / "questions.jsonl", "questions")]
    sent = sorted(
        part["text"] for body in chat.asked for part in body["messages"][0]["content"] if part["type"] == "text"
    )
    assert sent == sorted(row["text"] for row in questions) and len(sent) == report["n_questions"]["random"] + sum(
        not row["present"] and "random" not in row["kinds"] for row in questions
    )
    assert {row["object"] for row in questions} <= set(CATEGORIES)
    answers = [row["caption"] for _, row in read_json_lines(out / "answers.jsonl", "answers")]
    assert set(answers) == {"Yes, it is there.", "No."}


def test_python_gives_what_the_command_gives(
    chat: ChatServer, annotated: tuple[Path, Path], hfcap: Hfcap, tmp_path: Path
) -> None:
    chat.answer = sees_red
    found = hfcap_package.probe_objects(chat.base_url, *annotated, kinds=["popular"], n_questions=2, n_resamples=50)
    arguments = ("probe-objects", chat.base_url, *annotated, "--kinds", "popular", "--n-questions", "2")
    assert hfcap(*arguments, "--n-resamples", "50", "-o", tmp_path / "out").code == 0
    assert read_json(tmp_path / "out/probe.json", "probe") == json.loads(json.dumps(found.as_json()))
    with pytest.raises(UserError, match="unknown kind 'rare'"):
        hfcap_package.probe_objects(chat.base_url, *annotated, kinds=["rare"])


def test_captioners_without_instructions_are_refused(annotated: tuple[Path, Path], tmp_path: Path) -> None:
    build("vit_gpt2").save(tmp_path / "model", GenerateOptions())
    with pytest.raises(UserError, match="captioner vit_gpt2: takes no instructions, so that it answers no questions"):
        probe_objects(str(tmp_path / "model"), *annotated, asking=Asking(n_questions=1))


def test_wrong_input_is_refused(annotated: tuple[Path, Path], hfcap: Hfcap, tmp_path: Path) -> None:
    instances, folder = annotated
    assert_refused(hfcap("probe-objects", "m", instances, folder, "--kinds", "rare"), "unknown kind 'rare'")
    assert_refused(hfcap("probe-objects", "m", instances, folder, "--n-questions", "9"), "no image has 9 objects")
    (folder / "p3.png").unlink()
    assert_refused(hfcap("probe-objects", "m", instances, folder, "--n-questions", "1"), "no image for 1 of 4 images")
    assert_refused(
        hfcap("probe-objects", "m", instances, folder, "--vocabulary", tmp_path / "none.txt"), "none.txt", "not found"
    )
