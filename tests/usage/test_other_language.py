"""A day with captions in other languages: what the numbers are worth is said before anybody believes them."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.cli.command_line import Hfcap
from tests.usage.album import write_album, write_recipe

CHINESE = {"red": "红", "green": "绿", "blue": "蓝", "yellow": "黄", "black": "黑", "white": "白"}


def test_german_captions_with_a_card_in_german(hfcap: Hfcap, tmp_path: Path) -> None:
    album = write_album(
        tmp_path / "album", lambda colour: [f"eine Wand, für {colour} gestrichen", f"{colour}, wie schön"]
    )
    recipe = write_recipe(tmp_path, album, publish={"language": "de"})
    outcome = hfcap("run", recipe)
    assert outcome.code == 0, outcome
    card = (tmp_path / "runs/tiny/README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["language"] == "de" and "English only" not in card
    references = (tmp_path / "runs/tiny/references/test.json").read_text(encoding="utf-8")
    assert "schön" in references


def test_metrics_that_know_english_only_are_named(hfcap: Hfcap, tmp_path: Path) -> None:
    references = {str(number): [f"кот {number} спит на диване"] for number in range(3)}
    (tmp_path / "references.json").write_text(json.dumps(references, ensure_ascii=False), encoding="utf-8")
    captions = {key: value[0] for key, value in references.items()}
    (tmp_path / "captions.json").write_text(json.dumps(captions, ensure_ascii=False), encoding="utf-8")
    outcome = hfcap("score", tmp_path / "captions.json", tmp_path / "references.json", "--metrics", "cider,bad_endings")
    assert outcome.code == 0, outcome
    assert "the human captions are not English, but bad_endings knows English only: leave it out" in outcome.err


def test_chinese_captions_are_not_scored_without_a_word(hfcap: Hfcap, tmp_path: Path) -> None:
    """Without spaces a caption is one word: every score would be 0.0. The language is found, or named."""
    album = write_album(tmp_path / "album", lambda colour: [f"一面{CHINESE.get(colour, '灰')}色的墙"])
    recipe = write_recipe(tmp_path, album)
    doctor = hfcap("doctor", recipe)
    assert "look Chinese" in doctor.out and "score.language: zh" in " ".join(doctor.out.split()), doctor
    named = hfcap("doctor", recipe, "publish.language=zh")
    assert "Chinese" not in named.out + named.err, named
    outcome = hfcap("run", recipe)
    assert "Traceback" not in outcome.err
    assert outcome.code == 0 and "Chinese" in outcome.err, outcome
