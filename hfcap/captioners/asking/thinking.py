"""What a model writes for itself before its answer ("<think> ... </think>"): never part of a caption."""

from __future__ import annotations

import re

_TAGS = "think|thinking|thought|reasoning"
MARKS: tuple[tuple[str, str], ...] = (
    (rf"<(?:{_TAGS})>", rf"</(?:{_TAGS})>"),  # Qwen, GLM, DeepSeek, InternVL
    (r"\[think\]", r"\[/think\]"),  # Mistral
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|channel>thought", r"<channel\|>"),  # Gemma
    (r"<\|channel\|>(?:analysis|commentary)<\|message\|>", r"<\|end\|>"),  # gpt-oss
)
"""Patterns of what begins and what ends thinking."""

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


def thinks_at_end(prompt: str) -> bool:
    """Whether a prompt ends inside thinking, which the answer then goes on with."""
    return without_thinking(prompt)[1]
