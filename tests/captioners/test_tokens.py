"""Tokenizers: what is trained round-trips, and no caption can speak a special token."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from hfcap.captioners.base import Captioner
from hfcap.captioners.shared.tokenizers import END, PAD, START, load_tokenizer, train_tokenizer, wrap_texts
from hfcap.errors import UserError
from hfcap.recipe.blocks import TokenizerOptions
from tests.captioners.helpers import CORPUS, FAMILIES, PROMPT, build

# Without what Unicode has not assigned: Python and the tokenizers library know different editions of it.
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=40)


@pytest.fixture(scope="module")
def cased() -> Any:
    return train_tokenizer(TokenizerOptions(vocab_size=400, lowercase=False), CORPUS)


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back(cased: Any, text: str) -> None:
    ids = cased(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not {cased.bos_token_id, cased.eos_token_id, cased.pad_token_id} & set(ids)
    # A space is put in front of the first word.
    assert cased.decode(ids).lstrip(" ") == unicodedata.normalize("NFC", text).lstrip(" ")


def test_lower_case_is_the_default_and_vocabulary_is_bounded() -> None:
    tokenizer = train_tokenizer(TokenizerOptions(vocab_size=300), CORPUS)
    assert tokenizer.decode(tokenizer("Ein CAFÉ", add_special_tokens=False)["input_ids"]).strip() == "ein café"
    assert len(tokenizer) <= 300
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (PAD, START, END)


def test_frequent_words_become_one_token(cased: Any) -> None:
    assert len(cased(" dogs", add_special_tokens=False)["input_ids"]) == 1


def test_calling_a_wrapped_tokenizer_adds_start_and_end() -> None:
    tokenizer = train_tokenizer(TokenizerOptions(vocab_size=400), CORPUS)
    words = tokenizer("two dogs", add_special_tokens=False)["input_ids"]
    wrap_texts(tokenizer, start=True, end=True)
    assert tokenizer("two dogs")["input_ids"] == [tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    wrap_texts(tokenizer, start=True, end=False)
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
    tokenizer.bos_token = "<st art>"  # a tokenizer of somebody's may have spaces in it
    tokenizer.add_special_tokens({"bos_token": "<st art>"})
    wrap_texts(tokenizer, start=True, end=True)
    assert tokenizer("two dogs")["input_ids"] == [tokenizer.bos_token_id, *words, tokenizer.eos_token_id]


def _gpt2_like(folder: Path) -> None:
    """A byte-level tokenizer whose only special token is the end of text, as GPT-2 has it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(CORPUS, trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end).save_pretrained(folder)


def _bert_like(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "<", ">", "|", "/", "s", "end", "start", "pad"]
    words += ["sep", "cls", "mask", "endoftext", "a", "red", "cat", "two", "dogs", "image", "of"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    tokenizer.save_pretrained(folder)


@pytest.fixture(params=[_gpt2_like, _bert_like], ids=["gpt2", "bert"])
def pretrained(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    write: Callable[[Path], None] = request.param
    write(tmp_path)
    return load_tokenizer(str(tmp_path), "model.decoder", None, False)


HOSTILE = ["a <end> cat", "<|endoftext|>", "[SEP] two dogs [CLS][PAD]", "<pad><start>", "</s> a <s>", "a [MASK]<end>"]


@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize("family", FAMILIES)
def test_captions_cannot_speak_special_tokens(family: str, prompt: str) -> None:
    _require_harmless(build(family, prompt=prompt))


def test_captions_cannot_speak_special_tokens_of_pretrained_tokenizers(pretrained: Any) -> None:
    captioner = build(FAMILIES[0])
    captioner.processor.tokenizer = pretrained
    _require_harmless(captioner)


def _require_harmless(captioner: Captioner) -> None:
    special = set(captioner.tokenizer.all_special_ids) - {captioner.tokenizer.unk_token_id}
    assert special
    for text, ids in zip(HOSTILE, captioner.caption_token_ids(HOSTILE, 99), strict=True):
        assert ids
        assert not special & set(ids), text
    # The tokenizer itself must not have been switched over by that.
    end = captioner.tokenizer.eos_token
    assert captioner.tokenizer(end, add_special_tokens=False)["input_ids"] == [captioner.tokenizer.eos_token_id]


def test_pretrained_tokenizers_get_start_end_and_pad(pretrained: Any) -> None:
    assert pretrained.bos_token in ("<|endoftext|>", "[CLS]")
    assert pretrained.eos_token in ("<|endoftext|>", "[SEP]")
    assert pretrained.pad_token_id is not None


def test_tokenizer_without_end_token_is_refused(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.decoder.*no end token"):
        load_tokenizer(str(tmp_path), "model.decoder", None, False)


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_are_cut_and_white_space_is_normalised(family: str) -> None:
    captioner = build(family)
    [long, spaced] = captioner.caption_token_ids(["two dogs run over the green grass " * 9, " a\tred \n cat "], 5)
    assert len(long) == 5
    assert spaced == captioner.caption_token_ids(["a red cat"], 5)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_caption_read_as_one_text(family: str) -> None:
    """Start token, prompt and caption decode to the sentence that a person would write."""
    captioner = build(family, prompt=f"  {PROMPT} ")
    ids = captioner.start_token_ids() + captioner.caption_token_ids(["two dogs"], 20)[0]
    assert ids[0] == captioner.start_token_id
    assert captioner.tokenizer.decode(ids[1:]).strip() == f"{PROMPT} two dogs"
