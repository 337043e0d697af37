"""Captions that are none: canned sentences, markup, addresses, prompts, several captions in one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hfcap.text import printable

_FEWEST, _SHARE = 10, 0.01
"""Found in fewer captions than both, it is a person's slip and no habit of the data."""
_SHARE_OF_PROMPT = 0.8
"""Captions that begin alike in that share were written to a prompt, or carry one."""
_FEWEST_FOR_PROMPT = 30
_WORDS_OF_PROMPT = (3, 4)
_EXAMPLES = 2
_SHOWN = 60

_PATTERNS = {
    "hold web addresses": (r"https?://|\bwww\.", "take the addresses out"),
    "hold marks of a model's prompt": (
        r"<(image|img|video)>|<\|[a-z_]+\|>|\[/?INST\]|<s>|</s>|^(user|assistant|human)\s*:",
        "take the prompts out, or name their column with data.prompt_column",
    ),
    "are canned": (
        r"^(quality issues are too severe|no (caption|description|image|alt text)\b|\(?no description available"
        r"|image (unavailable|not available|not found)|untitled$|n/?a$|as an ai\b|i('m| am) sorry\b|i (cannot|can't) )",
        "leave them out, with data.filter or in the table",
    ),
    "look like several captions in one": (
        r"\s\|\|?\s|\|\|\||<sep>|\[sep\]|\s;;\s",
        "take them apart with data.caption_separator",
    ),
    "hold HTML": (r"</?[a-z][a-z0-9]*(\s[^<>]*)?/?>|&(amp|nbsp|quot|lt|gt|#\d+|#x[0-9a-f]+);", "take the markup out"),
}
"""In this order: a caption counts once, and `<image>` is a mark of a prompt and no HTML."""
_COMPILED = {kind: (re.compile(pattern, re.IGNORECASE), remedy) for kind, (pattern, remedy) in _PATTERNS.items()}


@dataclass(frozen=True, slots=True)
class Trap:
    """One habit of the captions.

    Attributes:
        kind: what they do, after "N captions".
        count: how many do.
        examples: of them, shortened and harmless for a terminal.
        remedy: what to do.
    """

    kind: str
    count: int
    examples: tuple[str, ...]
    remedy: str

    def sentence(self, n_captions: int) -> str:
        """Return what was found as a sentence."""
        examples = " and ".join(map(repr, self.examples))
        return f"{self.count:,} of {n_captions:,} captions {self.kind}, for example {examples}"


def caption_traps(captions: Sequence[str]) -> list[Trap]:
    """Return the habits of captions that a captioner would learn and nobody wants."""
    found = []
    left = list(captions)
    for kind, (pattern, remedy) in _COMPILED.items():
        hits = [caption for caption in left if pattern.search(caption)]
        left = [caption for caption in left if not pattern.search(caption)] if hits else left
        if _is_habit(len(hits), len(captions)):
            found.append(Trap(kind, len(hits), _examples(hits), remedy))
    prompt = _common_beginning(captions)
    return [*found, prompt] if prompt else found


def repeated_in_images(captions: Sequence[Sequence[str]]) -> Trap | None:
    """Return the images that have the same caption twice, as copies and joined tables make them.

    Args:
        captions: those of each image.
    """
    twice = [text for texts in captions for text, count in Counter(texts).items() if count > 1]
    if not _is_habit(len(twice), sum(map(len, captions))):
        return None
    return Trap("stand twice at their image", len(twice), _examples(twice), "keep each caption of an image once")


def _is_habit(count: int, n_captions: int) -> bool:
    return count > 0 and (count >= _FEWEST or count >= _SHARE * n_captions)


def _common_beginning(captions: Sequence[str]) -> Trap | None:
    if len(captions) < _FEWEST_FOR_PROMPT:
        return None
    for n_words in _WORDS_OF_PROMPT:
        beginnings = Counter(" ".join(caption.split()[:n_words]) for caption in captions)
        text, count = beginnings.most_common(1)[0]
        is_prompt = n_words == max(_WORDS_OF_PROMPT) or text.endswith(":")
        if is_prompt and count >= _SHARE_OF_PROMPT * len(captions) and len(set(captions)) > 1:
            remedy = "take the words out, or give them to the captioner as model.prompt"
            hits = [caption for caption in captions if caption.startswith(text)]
            return Trap(f"begin with {printable(text)!r}", count, _examples(hits), remedy)
    return None


def _examples(captions: Sequence[str]) -> tuple[str, ...]:
    chosen = list(dict.fromkeys(captions))[:_EXAMPLES]
    return tuple(printable(one if len(one) <= _SHOWN else f"{one[:_SHOWN]}...") for one in chosen)
