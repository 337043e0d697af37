"""Which writing captions are in: the metrics split words at spaces, and some writings have none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

_LOOKED_AT = 2000
"""Captions that are looked at: languages do not change from line to line."""

_UNSPACED = {
    "Chinese": (re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"), 5),
    "Japanese": (
        re.compile("[\u3005\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"),
        5,
    ),
    "Thai": (re.compile("[\u0e01-\u0e3a\u0e40-\u0e4e]+"), 10),
    "Lao": (re.compile("[\u0e81-\u0ebd\u0ec0-\u0ece]+"), 10),
    "Khmer": (re.compile("[\u1780-\u17d3]+"), 10),
    "Burmese": (re.compile("[\u1000-\u109f\uaa60-\uaa7f]+"), 10),
    "Tibetan": (re.compile("[\u0f00-\u0fff]+"), 10),
}
"""Language -> its letters in a row, and how long words between spaces are at most on average."""

_KANA = re.compile("[\u3040-\u30ff]")
_LATIN_END = "\u024f"


def unspaced_language(captions: Iterable[str]) -> str | None:
    """Return the language of captions without spaces between words, None where they have some.

    Where words have been put apart, by a segmenter, there is nothing to warn of.
    """
    looked_at = list(islice(captions, _LOOKED_AT))
    if all(map(str.isascii, looked_at)):
        return None
    n_letters = sum(one.isalpha() for text in looked_at for one in text)
    japanese = any(_KANA.search(text) for text in looked_at)
    for language, (letters, longest) in _UNSPACED.items():
        if language == "Chinese" and japanese:
            continue
        rows = [row for text in looked_at for row in letters.findall(text)]
        in_rows = sum(map(len, rows))
        if 2 * in_rows > n_letters and in_rows > longest * len(rows):
            return language
    return None


def unspaced_problem(language: str) -> str:
    """Return what is wrong with captions of such a language, for a warning that begins with what they are."""
    return (
        f"{language} without spaces between words, but all metrics split captions at spaces: a whole sentence counts "
        "as one word, so BLEU, ROUGE-L and CIDEr-D are near 0 whatever the captions say"
    )


def is_latin(captions: Iterable[str]) -> bool:
    """Whether at least half of the letters are Latin; English is, though not alone."""
    looked_at = list(islice(captions, _LOOKED_AT))
    if all(map(str.isascii, looked_at)):
        return True
    letters = [one for text in looked_at for one in text if one.isalpha()]
    return 2 * sum(one <= _LATIN_END for one in letters) >= len(letters)


def has_words(caption: str) -> bool:
    """Whether a caption holds a letter or a digit; without, there is nothing that a metric could compare."""
    return any(one.isalnum() for one in caption)
