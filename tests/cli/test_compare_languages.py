"""What `hfcap compare` makes of score files in several languages."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.command_line import Hfcap, assert_refused


def test_systems_in_several_languages_are_a_table(hfcap: Hfcap, tmp_path: Path) -> None:
    """Crossmodal-3600's file, scored in each language, and all score files given to compare."""
    human = {
        "en": ["a dog runs", "two cats sleep"],
        "de": ["ein Hund läuft", "zwei Katzen"],
        "zh": ["一只狗", "两只猫"],
    }
    rows = [
        {"image/key": str(number), **{code: {"caption": [human[code][number]]} for code in human}}
        for number in range(2)
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for code, captions in human.items():
        for name, said in (("blip", captions), ("git", captions[:1] * 2)):
            lines = [json.dumps({"image_id": str(number), "caption": text}) for number, text in enumerate(said)]
            (tmp_path / f"{name}.{code}.jsonl").write_text("\n".join(lines), encoding="utf-8")
            output = tmp_path / "scores" / f"{name}.{code}.json"
            files = (tmp_path / f"{name}.{code}.jsonl", tmp_path / "captions.jsonl")
            scored = hfcap("score", *files, "--language", code, "-o", output, "--n-resamples", 0)
            assert scored.code == 0 and ("lang:" in scored.out) == (code != "en")
    done = hfcap("compare", tmp_path / "scores", "--n-resamples", 100, "-o", tmp_path / "out")
    assert done.code == 0, done
    assert "By CIDEr-D, blip is best in 3 of 3 languages (de, en, zh)" in done.out.replace("\n", " ")
    assert "de (2 images)" in done.out and "plain mean of 3 columns" in done.out
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".md", ".json", ".html"}
    (tmp_path / "scores" / "git.zh.json").unlink()
    done = hfcap("compare", tmp_path / "scores", "--n-resamples", 100, "--show-images", "-o", tmp_path / "out")
    assert done.code == 0 and "missing" in done.out and "shows no images" in done.out.replace("\n", " ")
    copied = tmp_path / "scores" / "git" / "en.json"
    copied.parent.mkdir()
    copied.write_bytes((tmp_path / "scores" / "git.en.json").read_bytes())
    files = (tmp_path / "scores", copied)
    assert_refused(hfcap("compare", *files), "'scores/git' has two score files in en", str(copied))
    assert_refused(
        hfcap("compare", copied, tmp_path / "scores" / "blip.de.json"), "not comparable", "SYSTEM.LANGUAGE.json"
    )
    one = hfcap("compare", *(tmp_path / "scores" / f"{name}.de.json" for name in ("blip", "git")), "--n-resamples", 100)
    assert one.code == 0 and "Leaderboard" in one.out and "blip.de" in one.out
