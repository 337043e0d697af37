"""Words that captions must not hold: as tokens that generation leaves out, and looked for in what it wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hfcap.captioners.base import Captioner
from hfcap.errors import UserError


def forbidden_words(text: str) -> tuple[str, ...]:
    """Return the words of a list joined by commas.

    Raises:
        UserError: there is none.
    """
    words = tuple(dict.fromkeys(" ".join(word.split()) for word in text.split(",") if word.strip()))
    if not words:
        raise UserError(f"--forbid-words {text!r}: give words joined by commas, e.g. 'photo,image of'")
    return words


def bad_words_ids(captioner: Captioner, words: Sequence[str]) -> list[list[int]]:
    """Return the words as transformers' `bad_words_ids`: in small and capital letters, within and at the start.

    What only begins with such tokens ("photograph" with some tokenizers) is left out with them.

    Raises:
        UserError: the captioner's captions are not generated word by word, or its tokenizer does not know a word.
    """
    if not captioner.trains_by_gradients:
        raise UserError(
            f"--forbid-words: {captioner.card_facts.title} does not write captions word by word; leave it out"
        )
    tokenizer = captioner.tokenizer
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        spellings = {word, word.lower(), word.upper(), word.capitalize()}
        ids = [_ids(tokenizer, before + spelling) for spelling in sorted(spellings) for before in ("", " ")]
        known = [one for one in ids if one and tokenizer.unk_token_id not in one]
        if not known:
            raise UserError(f"--forbid-words: the captioner cannot write {word!r}; leave it out")
        found |= dict.fromkeys(known)
    return [list(ids) for ids in found]


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def held_words(caption: str, words: Sequence[str]) -> list[str]:
    """Return the words that a caption holds all the same, put together from other tokens."""
    return [word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption, re.IGNORECASE)]
