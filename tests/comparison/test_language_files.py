"""Which score files are one system in several languages, and which are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import hfcap
from hfcap.comparison import compare_languages, in_several_languages, named_by_files, read_systems
from hfcap.errors import UserError
from tests.comparison.language_files import Score, captions, human, scorer, table, two_systems, written


@pytest.fixture
def score(tmp_path: Path) -> Score:
    return scorer(tmp_path)


def test_names_without_the_language_are_systems(score: Score, tmp_path: Path) -> None:
    def names(*files: str) -> list[str]:
        made = [score(name, re.findall("en|de|zh", name.lower())[-1]) for name in files]
        return [system.name for system in named_by_files(read_systems(made))]

    assert names("1/blip_de.json", "1/blip-base-en.json", "1/x.ZH.json") == ["blip", "blip-base", "x"]
    assert names("2/blip/de.json", "2/blip/en.json", "2/git/de.json") == ["blip", "blip", "git"]
    assert names("3/de/blip.json", "3/zh/blip.json") == ["blip", "blip"]
    # The same names in two folders: the folders tell them apart.
    assert names("4/a/test.de.json", "4/b/test.de.json", "4/a/test.en.json") == ["a/test", "b/test", "a/test"]
    # A folder stands for its score files; other files in it are none.
    (tmp_path / "2" / "blip" / "captions.json").write_text(json.dumps(captions("de", 0)), encoding="utf-8")
    found = hfcap.compare_languages([tmp_path / "2" / "blip", tmp_path / "2" / "git"], n_resamples=100)
    assert found.languages == ("de", "en") and set(found.systems) == {"blip", "git"}
    one = hfcap.compare_languages({"mine": [tmp_path / "2" / "blip"]}, n_resamples=100)
    assert one.systems == ("mine",) and one.means["cider"]["mine"] > 0


def test_runs_are_named_by_their_folders(score: Score, tmp_path: Path) -> None:
    for code in ("de", "en"):
        score(f"runs/mine_{code}/scores/test.json", code)
        (tmp_path / f"runs/mine_{code}/recipe.yaml").write_text(f"name: {code}\nscore: {{split: test}}\n")
    runs = [tmp_path / "runs" / f"mine_{code}" for code in ("de", "en")]
    assert hfcap.compare_languages(runs, n_resamples=100).systems == ("mine",)
    assert hfcap.compare_languages([run / "scores" / "test.json" for run in runs], n_resamples=100).systems == ("mine",)


def test_the_same_system_twice_in_a_language_is_refused(score: Score) -> None:
    paths = [score("a.en.json", "en"), score("b.de.json", "de"), score("c.de.json", "de", 3)]
    with pytest.raises(
        UserError, match=r"'a' has two score files in de; give one for each system and language"
    ) as said:
        hfcap.compare_languages({"a": paths}, n_resamples=100)
    assert str(paths[1]) in str(said.value) and str(paths[2]) in str(said.value)


def test_two_tokenisers_of_one_language_are_refused(score: Score) -> None:
    paths = two_systems(score)

    def older(value: dict[str, Any]) -> None:
        value["signature"]["tokenizer"] = "intl-lower-sacrebleu-2.0.0"

    written(paths[3], older)
    with pytest.raises(
        UserError, match=r"different tokenisers \(intl-.* and intl-lower-sacrebleu-2\.0\.0\).*score both again"
    ):
        table(*paths)


def test_captions_split_as_english_are_refused(score: Score) -> None:
    def english(value: dict[str, Any]) -> None:
        value["signature"]["tokenizer"] = "ptb-coco-2"

    paths = [score("a.en.json", "en"), written(score("a.de.json", "de"), english)]
    with pytest.raises(UserError, match=r"a\.de\.json: captions in de were split .* score them again: hfcap score"):
        table(*paths)


def test_other_images_or_captions_of_one_language_are_refused(score: Score) -> None:
    paths = two_systems(score)
    score("git.de.json", "de", references=human("de", 9))
    with pytest.raises(UserError, match=r"different images \(24 and 9 images;.*score both"):
        table(*paths)
    other = {key: group[:1] for key, group in human("de").items()}
    score("git.de.json", "de", references=other)
    with pytest.raises(UserError, match=r"different human captions .*score both"):
        table(*paths)


def test_languages_that_nothing_connects_are_refused(score: Score) -> None:
    paths = [score("a.en.json", "en"), score("b.de.json", "de")]
    with pytest.raises(
        UserError, match=r"a\.en\.json \(en\) and .*b\.de\.json \(de\).*not comparable.*SYSTEM\.LANGUAGE"
    ):
        table(*paths)
    with pytest.raises(UserError, match=r"different languages \(en and de\).*not comparable.*compare_languages"):
        hfcap.compare(paths, n_resamples=100)


def test_one_language_named_twice_is_refused(score: Score) -> None:
    paths = [score("a.en.json", "en", references=human("de")), score("a.de.json", "de")]
    with pytest.raises(UserError, match="same human captions in different languages; score them again"):
        table(*paths)
    # Of two files alone it is one language under other conditions, as it has always been.
    assert not in_several_languages(read_systems(paths))


def test_files_that_do_not_say_their_language(score: Score) -> None:
    def old(value: dict[str, Any]) -> None:
        del value["signature"]["language"]

    paths = [score("a.en.json", "en"), written(score("a.de.json", "de"), old)]
    with pytest.raises(UserError, match=r"a\.de\.json: .* does not say its language .*score again with --language"):
        table(*paths)
    # Another file with the same human captions says it.
    systems = read_systems([*paths, score("b.de.json", "de")])
    names = dict(zip([system.name for system in systems], "aab", strict=True))
    given = [type(one)(names[one.name], one.path, one.report) for one in systems]
    found = compare_languages(given, n_resamples=100, warn=lambda message: None)
    assert [one.name for one in found.columns["de"].systems] in (["a", "b"], ["b", "a"])


def test_nothing_and_too_few_resamples_are_refused(score: Score) -> None:
    with pytest.raises(UserError, match="give score files"):
        compare_languages([])
    with pytest.raises(UserError, match="at least 100"):
        table(score("a.en.json", "en"), score("a.de.json", "de"), n_resamples=3)
