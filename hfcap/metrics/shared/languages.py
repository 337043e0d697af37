"""How captions are taken apart into words: English as COCO's evaluation does it, other languages as SacreBLEU does."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from typing import Any

from hfcap.errors import MissingPackageError, UserError
from hfcap.metrics.shared.tokenizer import TOKENIZER_VERSION

_TOKENIZERS = {
    "zh": ("tokenizer_zh", "TokenizerZh"),
    "ja": ("tokenizer_ja_mecab", "TokenizerJaMecab"),
    **dict.fromkeys(("th", "lo", "km", "my", "bo"), ("tokenizer_char", "TokenizerChar")),
}
"""Language -> module and class in sacrebleu.tokenizers. The last five write no spaces either, and SacreBLEU knows no
words of theirs: characters count."""
_OTHERS = ("tokenizer_intl", "TokenizerV14International")

CODES = {
    **{"Chinese": "zh", "Japanese": "ja", "Thai": "th", "Lao": "lo"},
    **{"Khmer": "km", "Burmese": "my", "Tibetan": "bo"},
}
"""What `unspaced_language` finds -> its code."""


@dataclass(frozen=True, slots=True)
class CaptionTokenizer:
    """Takes captions of one language apart.

    Attributes:
        language: ISO 639 code, lower-case, without region or script.
        name: for signatures; changes whenever any caption could be taken apart differently.
        words: caption -> its words joined by one space; None = COCO's own tokeniser, which the metrics bring.
    """

    language: str
    name: str
    words: Callable[[str], str] | None

    @property
    def is_english(self) -> bool:
        """Whether metrics with English word lists mean anything."""
        return self.words is None


def language_code(language: str) -> str:
    """Return the part of a language tag that chooses the tokeniser: "zh" of "zh-Hant".

    Raises:
        UserError: not a language tag.
    """
    code = re.split("[-_]", language.strip())[0].lower()
    if not re.fullmatch("[a-z]{2,3}", code):
        raise UserError(f"language {language!r}: give an ISO 639 code such as en, de or zh")
    return code


@cache
def tokenizer_of(language: str) -> CaptionTokenizer:
    """Return the tokeniser of a language.

    Chinese is taken apart into characters, Japanese into MeCab's words, languages with spaces by the rules of mteval
    v14; all lower-cased and without punctuation, as COCO's evaluation has it. Source: SacreBLEU (Post 2018, WMT).

    Raises:
        UserError: not a language tag, or the package for it is not installed.
    """
    code = language_code(language)
    if code == "en":
        return CaptionTokenizer(code, TOKENIZER_VERSION, None)
    module, name = _TOKENIZERS.get(code, _OTHERS)
    try:
        split: Any = getattr(import_module(f"sacrebleu.tokenizers.{module}"), name)()
    except ImportError as error:
        raise MissingPackageError("sacrebleu", f"scoring captions in {code!r}") from error
    except RuntimeError as error:  # MeCab or its dictionary is missing
        raise MissingPackageError("mecab-python3", f"scoring captions in {code!r}", " ipadic") from error

    def words(caption: str) -> str:
        return " ".join(token for token in split(" ".join(caption.lower().split())).split() if _is_word(token))

    return CaptionTokenizer(code, f"{split.signature()}-lower-sacrebleu-{metadata.version('sacrebleu')}", words)


def _is_word(token: str) -> bool:
    """Whether a token holds a letter, a digit or a mark that belongs to one."""
    return any(one.isalnum() or unicodedata.category(one)[0] == "M" for one in token)
