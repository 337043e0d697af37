"""What scoring says of captions in languages that the metrics cannot read."""

from __future__ import annotations

from hfcap.scoring import score_files

HUMAN = {"17": ["one red dog", "a dog"], "4": ["two cats", "cats in grass"]}
CHINESE = {"17": "一个男人在海浪上冲浪", "4": "一只狗在草地上奔跑"}


def test_languages_without_spaces_are_warned_of() -> None:
    said: list[str] = []
    human = {key: [text] for key, text in CHINESE.items()}
    report = score_files(CHINESE, human, metrics=["bleu", "bad_endings"], warn=said.append, n_resamples=0)
    assert report.signature["unspaced_language"] == "Chinese"
    assert any(one.startswith("the human captions are Chinese without spaces between words") for one in said)
    assert any(one.startswith("the predictions are Chinese without spaces") for one in said)
    assert "the human captions are not English, but bad_endings knows English only: leave it out" in said
    said.clear()
    spaced = {key: " ".join(text) for key, text in CHINESE.items()}
    report = score_files(spaced, {key: [text] for key, text in spaced.items()}, warn=said.append, n_resamples=0)
    assert "unspaced_language" not in report.signature and not any("spaces" in one for one in said)


def test_captions_without_words_are_warned_of() -> None:
    said: list[str] = []
    score_files({"17": "...", "4": "two cats"}, HUMAN, warn=said.append, n_resamples=0)
    assert "1 captions hold no letter or digit, and score 0 (image 17)" in said
    assert not any("spaces" in one or "English" in one for one in said)
