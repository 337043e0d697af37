"""What scoring says of captions in languages that the metrics cannot read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hfcap.errors import UserError
from hfcap.metrics.shared.languages import tokenizer_of
from hfcap.metrics.shared.tokenizer import TOKENIZER_VERSION
from hfcap.scoring import score_files
from hfcap.scoring.signature import data_signature

HUMAN = {"17": ["one red dog", "a dog"], "4": ["two cats", "cats in grass"]}
CHINESE = {"17": "一个男人在海浪上冲浪", "4": "一只狗在草地上奔跑"}


RIGHT = {key: [text] for key, text in CHINESE.items()}
APART = {key: " ".join(text) for key, text in CHINESE.items()}


def quiet(message: str) -> None:
    """Say nothing."""


def test_languages_without_spaces_are_found_and_split() -> None:
    said: list[str] = []
    report = score_files(CHINESE, RIGHT, warn=said.append, n_resamples=0)
    assert any("the human captions look Chinese" in one and "(zh)" in one for one in said)
    assert report.signature["tokenizer"].startswith("zh-lower-")
    # Equal captions of two images, taken apart by hand: the value that the same words have in English's tokeniser.
    by_hand = score_files(APART, {key: [text] for key, text in APART.items()}, warn=said.append, n_resamples=0)
    assert by_hand.signature["tokenizer"] == TOKENIZER_VERSION
    assert report.metrics == by_hand.metrics
    assert report.metrics["bleu_4"] == pytest.approx(1.0)


def test_the_named_language_needs_no_guess() -> None:
    said: list[str] = []
    report = score_files(CHINESE, RIGHT, language="zh-Hans", warn=said.append, n_resamples=0)
    assert report.metrics["bleu_4"] == pytest.approx(1.0) and not any("look Chinese" in one for one in said)


def test_shuffled_chinese_scores_less() -> None:
    shuffled = {key: "".join(sorted(text)) for key, text in CHINESE.items()}
    found = score_files(shuffled, RIGHT, language="zh", warn=quiet, n_resamples=0).metrics
    assert found["bleu_1"] == pytest.approx(1.0) and (found["bleu_4"] or 0.0) < 0.5


def test_said_to_be_english_it_is_warned_of() -> None:
    said: list[str] = []
    report = score_files(
        CHINESE, RIGHT, metrics=["bleu", "bad_endings"], language="en", warn=said.append, n_resamples=0
    )
    assert report.signature["unspaced_language"] == "Chinese"
    assert any(one.startswith("the human captions are Chinese without spaces between words") for one in said)
    assert any(one.startswith("the predictions are Chinese without spaces") for one in said)
    assert "the human captions are not English, but bad_endings knows English only: leave it out" in said
    said.clear()
    report = score_files(APART, {key: [text] for key, text in APART.items()}, warn=said.append, n_resamples=0)
    assert "unspaced_language" not in report.signature and not any("spaces" in one for one in said)


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.tokenizers.tokenizer_zh", None)
    tokenizer_of.cache_clear()
    said: list[str] = []
    try:
        score_files(CHINESE, RIGHT, warn=said.append, n_resamples=0)
        with pytest.raises(UserError, match="pip install 'sacrebleu"):
            score_files(CHINESE, RIGHT, language="zh", warn=said.append, n_resamples=0)
    finally:
        tokenizer_of.cache_clear()
    assert any("pip install 'sacrebleu" in one for one in said)


@pytest.mark.parametrize("metric", ["meteor", "bad_endings", "chair", "spice"])
def test_metrics_of_english_words_refuse_other_languages(metric: str) -> None:
    with pytest.raises(UserError, match=f"{metric} knows English only.*'de'.*use bleu"):
        score_files(CHINESE, RIGHT, metrics=["bleu", metric], language="de", warn=quiet)


def test_document_frequencies_of_english_refuse_other_languages() -> None:
    with pytest.raises(UserError, match=r"coco-val.*English captions.*use corpus"):
        score_files(CHINESE, RIGHT, document_frequencies="coco-val", language="zh", warn=quiet)


@pytest.mark.parametrize("language", ["german", "", "1"])
def test_what_is_no_language_is_refused(language: str) -> None:
    with pytest.raises(UserError, match="give an ISO 639 code such as en, de or zh"):
        tokenizer_of(language)


def test_words_of_languages() -> None:
    for language, caption, words in (
        ("de", "Zwei Hunde, nass, laufen über 3,5 m!", "zwei hunde nass laufen über 3,5 m"),
        ("fr", "L'été à la plage.", "l été à la plage"),
        ("zh", "一只狗 iPhone 3.5。", "一 只 狗 iphone 3.5"),
        ("ja", "茶色の犬が砂浜を走っている。", "茶色 の 犬 が 砂浜 を 走っ て いる"),
        ("th", "หมา วิ่ง", "ห ม า ว ิ ่ ง"),
    ):
        split = tokenizer_of(language).words
        assert split is not None and split(caption) == words
    assert tokenizer_of("en").words is None and tokenizer_of("EN-us").name == TOKENIZER_VERSION


def test_image_diversity_counts_the_words_of_the_language() -> None:
    captions = {"17": "一只狗", "4": "一只猫"}
    options = {"diversity": {"training_captions": ("一只狗。",)}}
    human = {key: [text] for key, text in captions.items()}
    found = score_files(
        captions, human, metrics=["diversity"], metric_options=options, language="zh", warn=quiet, n_resamples=0
    )
    assert found.metrics["vocabulary_size"] == 4  # 一 只 狗 猫
    assert found.metrics["novel_captions"] == 0.5


def test_captions_without_words_are_warned_of() -> None:
    said: list[str] = []
    score_files({"17": "...", "4": "two cats"}, HUMAN, warn=said.append, n_resamples=0)
    assert "1 captions hold no letter or digit, and score 0 (image 17)" in said
    assert not any("spaces" in one or "English" in one for one in said)


def test_human_captions_of_crossmodal_3600_are_those_of_the_language(tmp_path: Path) -> None:
    rows = [
        {"image/key": key, "image/locale": "en", "en": {"caption": HUMAN[key]}, "zh": {"caption": RIGHT[key]}}
        for key in HUMAN
    ]
    path, predictions = tmp_path / "captions.jsonl", tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # Captions of a folder are named after its files.
    lines = [json.dumps({"image_id": f"images/{key}.jpg", "caption": text}) for key, text in CHINESE.items()]
    predictions.write_text("\n".join(lines), encoding="utf-8")
    found = score_files(predictions, path, language="zh-Hans", warn=quiet, n_resamples=0)
    assert found.metrics["bleu_4"] == pytest.approx(1.0)
    assert found.signature["references_sha256"] == data_signature(RIGHT, "", 0)["references_sha256"]
    english = score_files(dict.fromkeys(HUMAN, "a dog"), path, warn=quiet, n_resamples=0)
    assert english.signature["references_sha256"] == data_signature(HUMAN, "", 0)["references_sha256"]
    with pytest.raises(UserError, match=r"captions\.jsonl: line 1: no captions in 'de'; choose another .* of en, zh"):
        score_files(predictions, path, language="de", warn=quiet)
