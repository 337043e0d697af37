"""Grades from the probabilities of digits (FLEUR: Lee et al. 2024, arXiv:2406.06004, section 3.3).

A judge's answer "0.8" says less than what it nearly said: each digit counts with its probability. Where the grade
begins with 0, the score is the mean of the first decimal's digits, 0.1 * sum of d * p(d), and if the judge writes a
second decimal, 0.01 * sum of d * p(d) more. Where it begins with 1, the score is 0.9 * p(0) + 1.0 * p(1) of the first
digit. Probabilities are those of all tokens, not of digits alone, as with the authors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfcap.errors import UserError

_BEFORE = ("", " ", "\n", ":")
"""What may stand in front of a number: some tokenizers have other tokens for it there."""


@dataclass(frozen=True)
class DigitTokens:
    """How a tokenizer writes grades.

    Attributes:
        blanks: tokens that may stand before the number.
        first: token -> 0 or 1, the digit before the point.
        point: tokens of the point.
        decimals: token after the point -> (its digit or two digits as a number, how many digits).
    """

    blanks: frozenset[int]
    first: dict[int, int]
    point: frozenset[int]
    decimals: dict[int, tuple[int, int]]

    def allowed(self, written: Sequence[int]) -> frozenset[int] | None:
        """Return the tokens that may follow what is written, so that it becomes a grade; None = any."""
        number = self.without_blanks(written)
        if not number:
            return frozenset(self.first) | (self.blanks if not written else frozenset())
        if len(number) == 1:
            return self.point
        if len(number) == 2:
            ones = self.first[number[0]] == 1
            return frozenset(token for token, (value, _) in self.decimals.items() if not ones or value == 0)
        return None

    def without_blanks(self, written: Sequence[int]) -> list[int]:
        """Return what is written, without the blank before the number."""
        return list(written[1:] if written and written[0] in self.blanks else written)


def digit_tokens(tokenizer: Any, what: str) -> DigitTokens:
    """Find the tokens of digits, as the tokenizer writes them in numbers.

    Args:
        what: the model, for messages.

    Raises:
        UserError: it writes no digit as a token of its own.
    """

    def tokens(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def said(token: int) -> str:
        return str(tokenizer.decode([token])).strip()

    first: dict[int, int] = {}
    point: set[int] = set()
    blanks: set[int] = set()
    decimals: dict[int, tuple[int, int]] = {}
    for before in _BEFORE:
        for digit in (0, 1):
            for decimal in range(10):
                ids = tokens(f"{before}{digit}.{decimal}")
                if [said(token) for token in ids[-3:]] != [str(digit), ".", str(decimal)]:
                    written = " ".join(repr(tokenizer.decode([token])) for token in ids)
                    raise UserError(
                        f"{what}: its tokenizer does not write digits as tokens of their own ('{digit}.{decimal}' "
                        f"becomes {written}), so that no grade can be read from their probabilities; choose another "
                        "judge"
                    )
                first[ids[-3]], decimals[ids[-1]] = digit, (decimal, 1)
                point.add(ids[-2])
                if before in ("", " "):
                    blanks |= {token for token in ids[:-3] if not said(token)}
    for value in range(100):
        ids = tokens(f"0.{value:02d}")
        if len(ids) > 2 and ids[-2] in point and said(ids[-1]) == f"{value:02d}":
            decimals[ids[-1]] = (value, 2)
    return DigitTokens(frozenset(blanks), first, frozenset(point), decimals)


def smoothed(
    tokens: DigitTokens, written: Sequence[int], probabilities: Sequence[Mapping[int, float]], decimals: int
) -> tuple[float, float]:
    """Return a grade and the probability of digits where its deciding digit stands.

    Args:
        written: the tokens of a grade. probabilities: of each place, those of digits.
        decimals: how many are smoothed, 1 or 2.
    """
    number = tokens.without_blanks(written)
    start = len(written) - len(number)
    if tokens.first[number[0]] == 1:
        chance = {0: 0.0, 1: 0.0}
        for token, digit in tokens.first.items():
            chance[digit] += probabilities[start].get(token, 0.0)
        return 0.9 * chance[0] + chance[1], chance[0] + chance[1]
    place = probabilities[start + 2]
    score = sum(place.get(token, 0.0) * value / 10**digits for token, (value, digits) in tokens.decimals.items())
    certainty = sum(place.get(token, 0.0) for token in tokens.decimals)
    second = number[3] if len(number) > 3 else None
    one_digit = tokens.decimals[number[2]][1] == 1
    if decimals == 2 and one_digit and second in tokens.decimals and tokens.decimals[second][1] == 1:
        place = probabilities[start + 3]
        score += sum(
            place.get(token, 0.0) * value / 100 for token, (value, digits) in tokens.decimals.items() if digits == 1
        )
    return score, certainty
