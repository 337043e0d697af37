"""Whether captions survive the tokenizer: no model can learn what the tokenizer cannot write."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from hfcap.captioners.base import Captioner

_LOOKED_AT = 5000
_EXAMPLES = 2
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Captions encoded and decoded again.

    Attributes:
        n_captions: captions that were tried.
        changed: captions that come back with other characters (case and spaces left aside).
        examples: (caption, what comes back) of a few.
    """

    n_captions: int
    changed: int
    examples: list[tuple[str, str]]

    def problem(self) -> str:
        """Return the share of changed captions, with examples."""
        shown = "; ".join(f"{before[:_SHOWN]!r} becomes {after[:_SHOWN]!r}" for before, after in self.examples)
        return (
            f"{self.changed:,} of {self.n_captions:,} captions ({self.changed / self.n_captions:.1%}) lose accents, "
            f"emoji or other characters in the tokenizer: {shown}"
        )


def round_trip(captioner: Captioner, captions: Sequence[str]) -> RoundTrip:
    """Encode and decode the first captions."""
    tried = captions[:_LOOKED_AT]
    tokens = captioner.caption_token_ids(tried, 1_000_000)
    # Special tokens stay: an unknown character that vanished without a trace would be seen, too.
    texts = captioner.tokenizer.batch_decode(tokens)
    pairs = zip(tried, texts, strict=True)
    changed = [(before, after.strip()) for before, after in pairs if _characters(before) != _characters(after)]
    return RoundTrip(len(tried), len(changed), changed[:_EXAMPLES])


def _characters(text: str) -> str:
    return re.sub(r"\s", "", unicodedata.normalize("NFC", text).casefold())
