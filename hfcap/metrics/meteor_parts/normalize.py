"""Text normalisation of METEOR 1.5 for English (its option -norm): punctuation, hyphens, clitics, final dots.

Written from the functional description in docs/metrics.md and checked against the jar as a black box.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hfcap.metrics.meteor_parts.resources import NonBreakingPrefixes

# What the jar takes for letters: Latin, Cyrillic and phonetic symbols; all others are split like punctuation.
_LETTERS = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0400-\u0527\u1d00-\u1d7f\ua640-\ua66e\ua67e-\ua697"
_WORD = _LETTERS + "0-9"
_UNICODE_SPACES = "\u00a0\u2000-\u200a\u202f\u205f\u3000"

# One line per caption: a line separator inside a caption must not look like the next caption.
_SEPARATORS = re.compile("[\n\r\v\f\x1c-\x1f\x85\u2028\u2029]")
_PUNCTUATION = re.compile(f"([^{_WORD} \t\n.'`,\\-‘’])")
_RUN_OF_DOTS = re.compile(r"(\.{2,})")
_SINGLE_QUOTES = str.maketrans({"`": "'", "‘": "'", "’": "'"})
_DOUBLE_QUOTES = str.maketrans({"“": '"', "”": '"', "–": "-"})
_COMMAS = (
    (re.compile("([^0-9]),([^0-9])"), r"\1 , \2"),
    (re.compile("([0-9]),([^0-9])"), r"\1 , \2"),
    (re.compile("([^0-9]),([0-9])"), r"\1 , \2"),
)
_APOSTROPHES = (
    (re.compile(f"([^{_LETTERS}])'([^{_LETTERS}])"), r"\1 ' \2"),
    (re.compile(f"([^{_WORD}])'([{_LETTERS}])"), r"\1 ' \2"),
    (re.compile(f"([{_LETTERS}])'([^{_LETTERS}])"), r"\1 ' \2"),
    (re.compile(f"([{_LETTERS}])'([{_LETTERS}])"), r"\1 '\2"),
    (re.compile("([0-9])'s"), r"\1 's"),
)
_HYPHEN = re.compile(f"([{_WORD}.])-([{_WORD}])")
_FINAL_DOT = re.compile(r"(?<![^ \t\n])([^ \t\n]+)\.(?![^ \t\n])(?=(?:[ \t]+([^ \t\n]))?)")
_LETTER = re.compile(f"[{_LETTERS}]")
_NO_RULE_APPLIES = re.compile("[A-Za-z0-9 ]*").fullmatch
_IS_PLAIN = re.compile("[a-z0-9]+").fullmatch
_SPACES = re.compile(f"[ \t{_UNICODE_SPACES}]+")


def _final_dots(text: str, prefixes: NonBreakingPrefixes) -> str:
    """Split the dot off the last word of a sentence; abbreviations with inner dots lose all dots."""

    def replacement(match: re.Match[str]) -> str:
        word, following = match.group(1), match.group(2) or ""
        if not word.strip("."):
            return match.group()
        if "." in word and _LETTER.search(word):
            return word.replace(".", "")
        keeps_dot = (
            word in prefixes.always
            or "a" <= following <= "z"
            or (word in prefixes.before_numbers and "0" <= following <= "9")
        )
        return match.group() if keeps_dot else f"{word} ."

    return _FINAL_DOT.sub(replacement, text)


def _normalize_together(captions: Sequence[str], prefixes: NonBreakingPrefixes) -> list[list[str]]:
    """Apply the rules to many captions as one text, which is several times faster than one by one.

    Every caption stands between blanks on a line of its own; no rule reaches across a blank and a line feed.
    """
    text = "\n".join(f" {_SEPARATORS.sub(' ', caption)} " for caption in captions)
    text = _PUNCTUATION.sub(r" \1 ", text)
    text = _RUN_OF_DOTS.sub(r" \1 ", text)
    text = text.translate(_SINGLE_QUOTES).replace("''", ' " ').translate(_DOUBLE_QUOTES)
    for pattern, written in _COMMAS:
        text = pattern.sub(written, text)
    text = text.replace("--", "-")
    for pattern, written in _APOSTROPHES:
        text = pattern.sub(written, text)
    text = _final_dots(_HYPHEN.sub(r"\1 \2", text), prefixes)
    lines = _SPACES.sub(" ", text.lower()).split("\n")
    return [stripped.split(" ") if (stripped := line.strip(" ")) else [] for line in lines]


def is_plain(token: str) -> bool:
    """Whether a lower-case token of a caption is a word as it is, whatever stands around it."""
    return _IS_PLAIN(token) is not None


def normalize(captions: Sequence[str], prefixes: NonBreakingPrefixes) -> list[list[str]]:
    """Return the words of each caption, lower-cased."""
    words: list[list[str]] = []
    others: list[int] = []
    for position, caption in enumerate(captions):
        if _NO_RULE_APPLIES(caption):
            words.append(caption.lower().split())
        else:
            others.append(position)
            words.append([])
    if others:
        rest = _normalize_together([captions[position] for position in others], prefixes)
        for position, found in zip(others, rest, strict=True):
            words[position] = found
    return words
