"""Habits of captions that the doctor and `hfcap data inspect` name with examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfcap.data.inspection import inspect_data
from hfcap.data.inspection_report import report
from hfcap.data.traps import caption_traps, repeated_in_images
from hfcap.doctor import dataset
from hfcap.doctor.findings import Findings
from tests.data.sample_images import write_jpeg
from tests.doctor.examined import record

GOOD = [f"a man with {n} apples & a hat <3, at 10:30, or noon; i saw it" for n in range(60)]


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        ("a <b>red</b> rose", "hold HTML"),
        ("salt &amp; pepper", "hold HTML"),
        ("a rose <br/> in a garden", "hold HTML"),
        ("a rose, see https://x.test/rose", "hold web addresses"),
        ("<image> a rose", "hold marks of a model's prompt"),
        ("ASSISTANT: a rose", "hold marks of a model's prompt"),
        ("Quality issues are too severe to recognize visual content.", "are canned"),
        ("I'm sorry, I cannot help with that", "are canned"),
        ("Image not available", "are canned"),
        ("a rose || a red flower", "look like several captions in one"),
        ("a rose <sep> a red flower", "look like several captions in one"),
    ],
)
def test_each_habit_is_found_with_an_example(caption: str, kind: str) -> None:
    (trap,) = caption_traps([*GOOD, caption])
    assert (trap.kind, trap.count) == (kind, 1) and trap.examples == (
        caption[:60] + ("..." if len(caption) > 60 else ""),
    )
    assert trap.remedy
    # One among very many is a slip.
    assert caption_traps([f"{one} {n}" for n in range(4) for one in GOOD] + [caption]) == []


def test_ordinary_captions_have_no_habits() -> None:
    ordinary = [
        f"{who} {what}" for who in ("a dog", "no people, but a cat", "an untitled book") for what in ("runs", "sits")
    ]
    assert caption_traps(ordinary * 20) == [] and caption_traps([]) == []
    assert repeated_in_images([["a dog", "a cat"], ["a dog"]]) is None


def test_a_common_beginning_and_repetitions() -> None:
    (trap,) = caption_traps([f"This image displays: thing number {n}" for n in range(30)])
    assert "begin with 'This image displays:'" in trap.kind and trap.count == 30
    (trap,) = caption_traps([f"In this photo there is {n}" for n in range(30)])
    assert "'In this photo there'" in trap.kind
    twice = repeated_in_images([["a dog", "a dog"], ["a cat"]])
    assert twice is not None and twice.sentence(3) == "1 of 3 captions stand twice at their image, for example 'a dog'"


def test_the_doctor_and_the_inspection_show_them(tmp_path: Path) -> None:
    train = [record(tmp_path, f"{n}.png", f"#ff00{n:02x}", f"<p>scene {n}\x1b[31m</p>", "a wall") for n in range(12)]
    findings = Findings()
    dataset.examine_data({"train": train}, findings)
    (problem,) = [one for one in findings.problems if "HTML" in one.message]
    assert problem.key == "data.source" and "12 of 24 captions hold HTML, for example '<p>scene 0" in problem.message
    assert "\x1b" not in problem.message
    write_jpeg(tmp_path / "own" / "a.jpg")
    (tmp_path / "own" / "a.txt").write_text("a rose, www.x.test")
    assert "note: 1 of 1 captions hold web addresses, for example 'a rose, www.x.test': take" in report(
        inspect_data(str(tmp_path / "own"))
    )
