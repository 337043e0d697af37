"""What a judge is asked about two captions of an image, and what its answers mean."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from hfcap.captioners.asking.thinking import without_thinking
from hfcap.metrics.judging.judge import JudgeOptions, filled

Verdict = Literal["first", "second", "tie"]

PROMPT = """\
You see an image and two captions of it. Which caption is better?

Weigh these, with your own judgment where they disagree:
- Precision: what the caption says is true of the image (objects, colours, numbers, positions, actions).
- Informativeness: it names what matters in the image, specifically.
- Hallucination: naming things that are not in the image weighs heavily against a caption.
- Detail: of two correct captions, the one that tells more of what is there. Length alone is no merit.
- Usefulness: somebody who cannot see the image would imagine it rightly.
Call it a tie only if neither is better after careful comparison.

Caption 1: {caption_1}

Caption 2: {caption_2}

Answer in two lines:
Reason: your reasons, in one or two sentences
Judgment: Caption 1 is better, or: Caption 2 is better, or: Tie"""
"""After the guidelines of CapArena's annotators (Cheng et al. 2025, arXiv:2503.12329), in hfcap's words."""


class PairwiseOptions(JudgeOptions):
    """The judge, and what it is asked about two captions."""

    prompt: str = Field(PROMPT, description="the question, with {caption_1} and {caption_2}")
    max_new_tokens: Annotated[int, Field(gt=0)] = Field(256, description="longest answer")


def question(template: str, first: str, second: str) -> str:
    """Return the question about two captions in this order."""
    return filled(template, {"caption_1": first.strip(), "caption_2": second.strip()})


_JUDGMENT = re.compile(r"judge?ment\s*:", re.IGNORECASE)
_BETTER = re.compile(r"\bcaption\s*([12])\s+is\s+(?:clearly\s+|slightly\s+|much\s+)?better\b", re.IGNORECASE)
_NAMED = re.compile(r"\bcaption\s*([12])\b|^\W*([12])\W*$", re.IGNORECASE)
_TIE = re.compile(r"\btie\b", re.IGNORECASE)
_OF_NUMBER: dict[str, Verdict] = {"1": "first", "2": "second"}


def verdict_of(answer: str) -> Verdict | None:
    """Return what an answer says; None where it says nothing, or two things.

    What counts is the line after the last "Judgment:", or in an answer without that word all of it.
    """
    text, thinking = without_thinking(answer)
    if thinking:
        return None
    pieces = _JUDGMENT.split(text.replace("*", ""))
    said = pieces[-1].strip().partition("\n")[0] if len(pieces) > 1 else text.strip()
    better = {found[1] for found in _BETTER.finditer(said)}
    tie = _TIE.search(said) is not None
    if not better and len(pieces) > 1:
        better = {found[1] or found[2] for found in _NAMED.finditer(said)}
    elif not better and (alone := _NAMED.fullmatch(said)):
        better = {alone[1] or alone[2]}
    if len(better) == 1 and not tie:
        return _OF_NUMBER[better.pop()]
    return "tie" if tie and not better else None
