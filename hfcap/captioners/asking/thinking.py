"""What a model writes for itself before its answer ("<think> ... </think>"): never part of a caption."""

from __future__ import annotations

import re
from typing import Any

_TAGS = "think|thinking|thought|reasoning"
MARKS: tuple[tuple[str, str], ...] = (
    (rf"<(?:{_TAGS})>", rf"</(?:{_TAGS})>"),  # Qwen, GLM, DeepSeek, InternVL
    (r"\[think\]", r"\[/think\]"),  # Mistral
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|channel>thought", r"<channel\|>"),  # Gemma
    (r"<\|channel\|>(?:analysis|commentary)<\|message\|>", r"<\|end\|>"),  # gpt-oss
)
"""Patterns of what begins and what ends thinking."""

_MARK = re.compile(r"think|thought|reasoning|<\|?channel\|?>|<\|message\|>", re.IGNORECASE)
"""Special tokens that a mark is written with."""
_BEGUN = "<think>"
_ANSWER = re.compile(r"</?answer>|<\|(?:begin|end)_of_box\|>|<\|channel\|>final<\|message\|>", re.IGNORECASE)
"""What some models put around the answer itself."""


def without_thinking(text: str) -> tuple[str, bool]:
    """Return what is answered, spaces as written, and whether the model was still thinking when it ended.

    An end without a beginning means that the prompt began the thinking, so that everything before it is left out; after
    a beginning without an end there is no answer.
    """
    unended = False
    for begin, end in MARKS:
        text = re.sub(f"{begin}.*?{end}", " ", text, flags=re.DOTALL | re.IGNORECASE)
        text = re.split(end, text, flags=re.IGNORECASE)[-1]
        before, *after = re.split(begin, text, maxsplit=1, flags=re.IGNORECASE)
        text, unended = before, unended or bool(after)
    return _ANSWER.sub(" ", text), unended


def answers(tokenizer: Any, rows: Any, begun: bool) -> list[tuple[str, bool]]:
    """Return what generated tokens (B, T) say without thinking, and whether the model was still thinking.

    Args:
        begun: the prompt began the thinking.
    """
    special = [token for token in getattr(tokenizer, "all_special_tokens", []) if _MARK.search(token)]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=not special)
    found = [without_thinking(_BEGUN + text if begun else text) for text in texts]
    if not special:
        return found
    # The marks had to stay in the text until now; no other special token is part of a caption.
    others = re.compile("|".join(map(re.escape, sorted(tokenizer.all_special_tokens, key=len, reverse=True))))
    return [(others.sub("", text), unended) for text, unended in found]


def thinks_at_end(prompt: str) -> bool:
    """Whether a prompt ends inside thinking, which the answer then goes on with."""
    return without_thinking(prompt)[1]
