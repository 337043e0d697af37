"""Spaces that WordPiece tokenizers leave around punctuation when they put words together again."""

from __future__ import annotations

from typing import Any

_KEY = "clean_up_tokenization_spaces"


def close_spaces(tokenizer: Any) -> None:
    """Let a WordPiece tokenizer (BERT's; that of BLIP and GIT) write "dog's" and not "dog ' s", as its authors' did.

    Up to version 4 transformers did so unless the tokenizer said otherwise, from 5 on it does not. It is saved with the
    tokenizer, so that whoever loads a published model reads the same captions.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)  # some tokenizers are written in Python
    if type(getattr(backend, "model", None)).__name__ == "WordPiece" and _KEY not in tokenizer.init_kwargs:
        tokenizer.clean_up_tokenization_spaces = True
        tokenizer.init_kwargs[_KEY] = True
