"""Systems scored in several languages: one table per value, tests and refusals within each language."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hfcap
from hfcap.comparison.languages import language_json, language_markdown, language_page, language_table
from hfcap.comparison.rendering import as_text
from hfcap.comparison.writing import write_language_table
from hfcap.scoring import read_scores
from hfcap.scoring.signature import language_of, signature_line
from tests.comparison.language_files import N_IMAGES, WORDS, Score, captions, human, scorer, table, two_systems, written
from tests.comparison.pages import HOSTILE, Outline


@pytest.fixture
def score(tmp_path: Path) -> Score:
    return scorer(tmp_path)


def test_score_files_say_their_language_unless_it_is_english(score: Score) -> None:
    signatures = {code: read_scores(score(f"{code}.json", code)).signature for code in WORDS}
    assert [signatures[code].get("language") for code in ("en", "de", "zh")] == [None, "de", "zh"]
    assert {code: language_of(signature) for code, signature in signatures.items()} == {code: code for code in WORDS}
    assert "|lang:de|" in signature_line(signatures["de"]) and "lang:" not in signature_line(signatures["en"])
    # Earlier files name the tokeniser alone, and that of German is many languages'.
    old = {code: {k: v for k, v in signature.items() if k != "language"} for code, signature in signatures.items()}
    assert {code: language_of(signature) for code, signature in old.items()} == {"en": "en", "de": None, "zh": "zh"}


def unigram_bleu(predicted: dict[str, str], references: dict[str, list[str]], cut: Callable[[str], list[str]]) -> float:
    """BLEU-1 of a corpus: clipped matches over words, times the brevity penalty (Papineni et al. 2002)."""
    matches = n_words = length = 0
    for key, caption in predicted.items():
        words, groups = cut(caption), [cut(one) for one in references[key]]
        most = Counter[str]()
        for group in groups:
            most |= Counter(group)
        matches += sum((Counter(words) & most).values())
        n_words += len(words)
        length += min((abs(len(group) - len(words)), len(group)) for group in groups)[1]
    return matches / n_words * min(1.0, np.exp(1 - length / n_words))


def test_cells_are_the_values_of_the_score_files(score: Score) -> None:
    paths = two_systems(score)
    found = table(*paths)
    assert found.languages == ("de", "en", "zh") and set(found.systems) == {"blip", "git"}
    for path in paths:
        name, language, _ = path.name.split(".")
        raw = json.loads(path.read_text(encoding="utf-8"))
        for output, value in raw["metrics"].items():
            assert found.value(name, language, output) == pytest.approx(value, abs=1e-12)
            assert found.columns[language].intervals[name][output] == pytest.approx(raw["intervals"][output])
    # By hand: German words are those between spaces, Chinese ones are characters.
    by_hand = {
        ("git", "de"): unigram_bleu(captions("de", 13), human("de"), lambda text: text.lower().split()),
        ("blip", "zh"): unigram_bleu(captions("zh", 1), human("zh"), list),
    }
    for (name, language), value in by_hand.items():
        assert value < 1 and found.value(name, language, "bleu_1") == pytest.approx(value, abs=1e-9)
    header, rows = markdown_rows(language_markdown(found), "BLEU-1")
    assert header == ["system", "de (24 images)", "en (24 images)", "zh (24 images)", "plain mean of 3 columns"]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["git"][0].startswith(f"{100 * by_hand['git', 'de']:.1f} \\[")


def markdown_rows(text: str, title: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the first table below a heading."""
    lines = text.partition(f"## {title}\n")[2].lstrip("\n").splitlines()
    cells = [[cell.strip().replace("**", "") for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    length = next((n for n, line in enumerate(lines) if not line.strip()), len(lines))
    return cells[0], cells[2:length]


def test_means_are_plain_means_of_whole_rows(score: Score) -> None:
    paths = two_systems(score)
    found = table(*paths)
    for output in ("bleu_4", "rouge_l", "cider"):
        for name in ("blip", "git"):
            values = [found.value(name, language, output) for language in found.languages]
            assert found.means[output][name] == pytest.approx(np.mean(np.asarray(values, dtype=float)))
    assert list(found.systems) == sorted(found.systems, key=lambda name: -found.means["cider"][name])
    # Without one of its files a system has no mean, and comes after those that have one.
    fewer = table(*[path for path in paths if path.name != "blip.zh.json"])
    assert set(fewer.means["cider"]) == {"git"} and fewer.systems == ("git", "blip")
    assert fewer.value("blip", "zh", "cider") is None
    _, rows = markdown_rows(language_markdown(fewer), "CIDEr-D")
    assert rows[1][0] == "blip" and rows[1][3] == "missing" and rows[1][4] == "-"
    assert not any(mark in rows[0][3] for mark in "*")  # nobody to be worse than
    assert fewer.best("zh", "cider") is None


def holm(p_values: list[float]) -> list[float]:
    """Holm (1979): the k-th smallest of m is multiplied by m - k + 1, never below the one before it."""
    ordered = sorted(p_values)
    steps = np.minimum(1.0, np.maximum.accumulate([(len(ordered) - n) * p for n, p in enumerate(ordered)]))
    # Equal p-values have the first one's place: what comes after it is never smaller.
    return [float(steps[ordered.index(value)]) for value in p_values]


def test_tests_are_paired_within_a_language_and_corrected_over_all(score: Score) -> None:
    found = table(*two_systems(score), n_resamples=4000)
    assert [found.best(language, "rouge_l") for language in found.languages] == ["blip", "git", "blip"]
    for language, other in (("de", "git"), ("en", "blip"), ("zh", "git")):
        column = found.columns[language]
        values = {
            system.name: np.asarray([row["rouge_l"] for _, row in sorted(system.report.per_image.items())], dtype=float)
            for system in column.systems
        }
        best = found.best(language, "rouge_l") or ""
        differences = values[other] - values[best]
        # All exchanges of the two captions of an image, where they differ.
        unequal = differences[differences != 0]
        assert 2 < len(unequal) < 15
        signs = np.asarray(list(itertools.product((-1.0, 1.0), repeat=len(unequal))))
        exact = (np.abs(signs @ unequal) >= abs(differences.sum()) - 1e-9).mean()
        tested = column.differences["rouge_l"][other]
        assert tested.paired.difference == pytest.approx(differences.mean())
        assert tested.paired.p_value == pytest.approx(exact, abs=0.035)
    every = [one for column in found.columns.values() for row in column.differences.values() for one in row.values()]
    assert len(every) == 3 * 6  # languages, values; one other system each
    by_hand = holm([one.paired.p_value for one in every])
    assert [one.corrected_p_value for one in every] == pytest.approx(by_hand)
    assert any(one.corrected_p_value > one.paired.p_value for one in every)
    alone = hfcap.compare([found.columns["de"].systems[n].path for n in (0, 1)], n_resamples=4000)
    inside = found.columns["de"].differences["cider"]["git"]
    assert alone.differences["cider"]["git.de"].paired == inside.paired
    assert inside.corrected_p_value >= alone.differences["cider"]["git.de"].corrected_p_value


def test_every_rendering_marks_the_best_and_what_is_surely_worse(score: Score, tmp_path: Path) -> None:
    found = table(*two_systems(score), n_resamples=2000)
    worse = found.columns["de"].differences["cider"]["git"]
    assert worse.corrected_p_value < 0.05 < found.columns["en"].differences["cider"]["blip"].corrected_p_value
    write_language_table(found, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"leaderboard.{end}" for end in ("md", "json", "html")
    }
    text = (tmp_path / "out" / "leaderboard.md").read_text(encoding="utf-8")
    lines = {
        line.split("|")[1].strip(): line for line in text.partition("## CIDEr-D")[2].splitlines()[:6] if "|" in line
    }
    blip, git = ([cell.strip() for cell in lines[name].split("|")[2:5]] for name in ("blip", "git"))
    assert blip[0].startswith("**") and git[1].startswith("**") and blip[2].startswith("**")
    assert git[0].endswith("\\*") and not blip[1].endswith("\\*") and not git[0].startswith("**")
    assert "By CIDEr-D, blip is best in 2 of 3 languages (de, zh)" in text
    assert "Plain mean of the 3 columns, not tested: " in text
    values = json.loads((tmp_path / "out" / "leaderboard.json").read_text(encoding="utf-8"))
    assert values == json.loads(json.dumps(language_json(found)))
    german = next(one for one in values["languages"] if one["language"] == "de")
    assert german["n_images"] == N_IMAGES and german["best"]["cider"] == "blip"
    git_there = next(one for one in german["systems"] if one["name"] == "git")
    assert git_there["difference_to_best"]["cider"]["corrected_p_value"] == worse.corrected_p_value
    assert git_there["metrics"]["cider"] == found.value("git", "de", "cider")
    # A terminal has a row for each language.
    rows = [line for line in as_text(language_table(found)).splitlines() if "│ de (24 images)" in line]
    assert len(rows) == 6 and rows[0].rstrip("│ ").endswith("*")


def test_the_page_escapes_what_strangers_wrote(score: Score) -> None:
    paths = two_systems(score)
    reports = {path.name: read_scores(path) for path in paths}
    found = hfcap.compare_languages(
        {
            HOSTILE: [reports[f"blip.{code}.json"] for code in WORDS],
            "[red]git": [reports[f"git.{code}.json"] for code in WORDS],
        },
        n_resamples=100,
    )
    assert set(found.systems) == {HOSTILE, "[red]git"} and "[red]git" in str(found)
    page = Outline(language_page(found))
    assert page.scripts == [{}] and page.count("img") == 0
    assert HOSTILE in page.text and "[red]git" in page.text
    assert page.count("table") == 2 * 6 + 2  # values, differences, languages, signatures
    assert "<script" not in language_markdown(found)


def test_a_hostile_language_is_escaped(score: Score) -> None:
    def rename(value: dict[str, Any]) -> None:
        value["signature"]["language"] = HOSTILE

    paths = [score("a.de.json", "de"), written(score("a.zh.json", "zh"), rename)]
    found = hfcap.compare_languages({"a": paths}, n_resamples=100)
    page = Outline(language_page(found))
    assert page.scripts == [{}] and page.count("img") == 0 and HOSTILE in page.text
    # Inside of code, where signatures stand, Markdown knows no HTML.
    assert "<script" not in re.sub(r"(`+).*?\1", "", language_markdown(found))


def test_metrics_of_english_are_absent_elsewhere(score: Score) -> None:
    paths = [score("a.en.json", "en", metrics=["cider", "bad_endings"])]
    paths += [score("a.de.json", "de", metrics=["cider"]), score("b.de.json", "de", 3, metrics=["cider"])]
    paths.append(score("b.en.json", "en", metrics=["cider", "bad_endings"]))
    found = table(*paths)
    assert "bad_endings" not in found.means and "cider" in found.means
    header, rows = markdown_rows(language_markdown(found), "bad\\_endings")
    assert header == ["system", "de (24 images)", "en (24 images)"] and [row[1] for row in rows] == ["-", "-"]


def test_a_metric_under_other_conditions_has_no_mean(score: Score, tmp_path: Path) -> None:
    paths = two_systems(score)
    counted = tmp_path / "counted.json"
    counted.write_text(json.dumps(human("de")), encoding="utf-8")
    score("blip.de.json", "de", document_frequencies=str(counted))
    found = table(*paths)
    assert "cider" not in found.means and "rouge_l" in found.means
    assert any(said.startswith("de: cider was computed under different conditions") for said in found.warnings)
    assert found.best("de", "cider") is None and "cider" not in found.columns["de"].differences
    # Alike within German, but not as in the other languages.
    score("git.de.json", "de", 13, document_frequencies=str(counted))
    found = table(*paths)
    assert found.best("de", "cider") == "blip" and "cider" not in found.means
    assert any(said.startswith("cider has no mean: it was computed under other conditions") for said in found.warnings)


def test_only_one_language_in_common(score: Score) -> None:
    found = table(
        score("a.en.json", "en"), score("a.de.json", "de"), score("b.en.json", "en", 5), score("b.zh.json", "zh")
    )
    assert found.means == {} and found.languages == ("de", "en", "zh")
    assert [found.best(language, "cider") for language in found.languages] == [None, "a", None]
    assert [sorted(column.differences) != [] for column in found.columns.values()] == [False, True, False]
    assert "plain mean" not in language_markdown(found) and "best in 1 of 1 language (en)" in language_markdown(found)
