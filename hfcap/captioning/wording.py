"""Text in front of and after every caption: trigger words of image generators, credits, a full stop."""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hfcap.errors import UserError
from hfcap.schema import Prediction
from hfcap.text import has_controls

_CLOSING = frozenset(string.punctuation) - frozenset("([{<\"'#@$&")


@dataclass(frozen=True)
class Wording:
    """What is written around captions.

    A space stands between it and the caption, unless it brings white space of its own or, after the caption, begins
    with a mark such as a comma.

    Args:
        prefix: in front of every caption. suffix: after every caption.
    """

    prefix: str = ""
    suffix: str = ""

    def __post_init__(self) -> None:
        for name, text in (("--prefix", self.prefix), ("--suffix", self.suffix)):
            if text and (has_controls(text) or not text.strip()):
                raise UserError(f"{name} {text!r}: give text of one line")

    def of(self, caption: str) -> str:
        """Return a caption with both."""
        before, after = self.prefix, self.suffix
        if before and not before[-1].isspace():
            before += " "
        if after and not after[0].isspace() and after[0] not in _CLOSING:
            after = " " + after
        return f"{before}{caption}{after}".strip()

    def around(self, predictions: Iterable[Prediction]) -> list[Prediction]:
        """Return predictions with both around all their captions."""
        return [
            replace(one, caption=self.of(one.caption), candidates=tuple(map(self.of, one.candidates)))
            for one in predictions
        ]
