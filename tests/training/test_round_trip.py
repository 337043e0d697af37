"""Captions that do not come back from the tokenizer, and the spaces that it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from transformers import AutoTokenizer, BertTokenizer

from hfcap.captioners.base import Captioner
from hfcap.captioners.shared.round_trip import round_trip
from hfcap.captioners.shared.spaces import close_spaces
from hfcap.explain import words_of_tokens
from tests.training.harness import tiny_recipe, train

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "'", "s", "red", "ball", ".", ",", "cafe", "it"]


def wordpiece(folder: Path, **arguments: Any) -> Any:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return BertTokenizer(str(folder / "vocab.txt"), **arguments)


class Tokenized:
    """What `round_trip` needs of a captioner."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def caption_token_ids(self, captions: list[str], max_tokens: int) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(captions, add_special_tokens=False)["input_ids"]
        return ids


def test_captions_that_do_not_come_back(tmp_path: Path) -> None:
    captioner = cast(Captioner, Tokenized(wordpiece(tmp_path)))
    found = round_trip(captioner, ["A Dog's red ball.", "a café", "a dog \N{DOG FACE}", "a dog"])
    assert (found.n_captions, found.changed) == (4, 2)
    assert found.examples == [("a café", "a cafe"), ("a dog \N{DOG FACE}", "a dog [UNK]")]
    assert "2 of 4 captions (50.0%) lose accents" in found.problem() and "'a café' becomes 'a cafe'" in found.problem()


def test_apostrophes_close_up_and_stay_so(tmp_path: Path) -> None:
    tokenizer = wordpiece(tmp_path)
    ids = tokenizer("a dog's red ball.", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).startswith("a dog ' s red ball")  # transformers 5 alone
    close_spaces(tokenizer)
    assert tokenizer.decode(ids) == "a dog's red ball."
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").decode(ids) == "a dog's red ball."
    words = words_of_tokens(tokenizer, ids)
    assert words == [("a", [0]), ("dog's", [1, 2, 3]), ("red", [4]), ("ball.", [5, 6])]


def test_a_tokenizer_that_says_otherwise_is_left_alone(tmp_path: Path) -> None:
    tokenizer = wordpiece(tmp_path, clean_up_tokenization_spaces=False)
    close_spaces(tokenizer)
    assert not tokenizer.clean_up_tokenization_spaces


def test_a_run_says_so_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfcap.training import train as module

    found = round_trip(cast(Captioner, Tokenized(wordpiece(tmp_path))), ["a café"])
    monkeypatch.setattr(module, "round_trip", lambda *_: found)
    train(tiny_recipe("vit_gpt2", tmp_path / "run", max_steps=1))
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: 1 of 1 captions (100.0%) lose accents" in said
