"""A judge that a server runs: OpenAI's chat completions, grades from the probabilities that it tells."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hfcap.errors import UserError, WorkError
from hfcap.metrics.judging.judge import Grade, JudgeOptions, Question, SeesImages
from hfcap.progress import track
from hfcap.served.client import Client
from hfcap.served.images import data_url, encoded
from hfcap.served.threads import all_of
from hfcap.text import printable

_MOST_TOKENS = 10
_ALTERNATIVES = 20
"""Tokens whose probability is asked for at each place: the most that OpenAI's API gives."""


class ServedJudge:
    """A judge whose model a server runs.

    Raises:
        UserError: the server has several models, and none is named; or it refuses.
        WorkError: it cannot be reached.
    """

    def __init__(self, options: JudgeOptions, block: str) -> None:
        assert options.base_url is not None
        self._options, self._block = options, block
        self._client = Client(options.base_url, options.api_key_env, options.timeout, options.max_retries, block)
        self._client.require_key()
        self.name = options.model or self._only_model()

    def grades(self, questions: Sequence[Question], images: SeesImages, decimals: int) -> Iterator[Grade]:
        """See Judge: at most 20 tokens of each place are known, and the others count as impossible."""
        asked = {"max_tokens": _MOST_TOKENS, "logprobs": True, "top_logprobs": _ALTERNATIVES}
        for choice in self._choices(questions, images, asked):
            yield self._grade(choice, decimals)

    def answers(self, questions: Sequence[Question], images: SeesImages, max_new_tokens: int) -> Iterator[str]:
        """See Judge."""
        for choice in self._choices(questions, images, {"max_tokens": max_new_tokens}):
            yield _said(choice)

    def _choices(
        self, questions: Sequence[Question], images: SeesImages, fields: Mapping[str, Any]
    ) -> Iterator[Mapping[str, Any]]:
        """The first choice of the answer to each question; several are asked at a time."""
        size = self._options.max_concurrency
        for start in track(range(0, len(questions), size), f"{self._block}: judging"):
            bodies = [self._body(question, images, fields) for question in questions[start : start + size]]
            yield from all_of(self._choice, bodies, size)

    def _choice(self, body: dict[str, Any], stopping: threading.Event) -> Mapping[str, Any]:
        answer = self._client.request("/chat/completions", body, stopping)
        try:
            choice: Mapping[str, Any] = answer["choices"][0]
            choice["message"].get("content")
        except (LookupError, TypeError, AttributeError):
            raise WorkError(
                f"{self._client.base_url}: answers what is no chat completion ({printable(str(answer))[:120]!r}); "
                f"check {self._block}.base_url, which usually ends in /v1"
            ) from None
        return choice

    def _body(self, question: Question, images: SeesImages, fields: Mapping[str, Any]) -> dict[str, Any]:
        form = self._options.image_format
        image = data_url(encoded(images.decoded(question.image_id), self._options.max_side, form), form)
        content = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": question.text},
        ]
        messages = [{"role": "user", "content": content}]
        body = {"model": self.name, "messages": messages, "temperature": 0.0, **fields, **self._options.extra_body}
        return {name: value for name, value in body.items() if value is not None}

    def _only_model(self) -> str:
        names = self._client.models()
        if len(names) != 1:
            which = f"has {', '.join(names[:10])}" if names else "names no model"
            raise UserError(f"{self._client.base_url}: {which}; set {self._block}.model to the one that is to judge")
        return names[0]

    def _grade(self, choice: Mapping[str, Any], decimals: int) -> Grade:
        try:
            content = choice["logprobs"]["content"]
            places = [
                (str(place["token"]), {str(one["token"]): float(one["logprob"]) for one in place["top_logprobs"]})
                for place in content
            ]
        except (LookupError, TypeError, ValueError):
            places = []
        if not any(alternatives for _, alternatives in places):
            raise UserError(
                f"{self._block}.base_url: the server gives no probabilities of tokens (logprobs), which grades are "
                "made of; start it with them, as vLLM, SGLang and llama.cpp can, or compare captioners by "
                "'hfcap judge', which needs text alone"
            )
        score, certainty = grade_of(places, decimals) or (None, 0.0)
        return Grade(score, certainty, _said(choice))


def _said(choice: Mapping[str, Any]) -> str:
    content = choice["message"].get("content")
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def grade_of(places: Sequence[tuple[str, Mapping[str, float]]], decimals: int) -> tuple[float, float] | None:
    """Return the smoothed grade in an answer, and the probability of digits; None where the answer is no grade.

    Args:
        places: each token of the answer, with the logarithms of the probabilities of tokens that could stand there.
    """
    number, score, certainty = "", 0.0, 0.0
    for token, alternatives in places:
        written = number
        number = re.sub(r"^[^0-9]+", "", number + token) if not number else number + token.strip()
        chance = _digits(alternatives)
        if written == "" and number[:1] == "1" and len(number.rstrip(".")) == 1:
            return 0.9 * chance.get("0", 0.0) + chance.get("1", 0.0), chance.get("0", 0.0) + chance.get("1", 0.0)
        if written == "0." and re.fullmatch(r"0\.\d{1,2}", number):
            score = sum(p * int(digits) / 10 ** len(digits) for digits, p in chance.items())
            certainty = sum(chance.values())
        elif re.fullmatch(r"0\.\d", written):
            if decimals == 2 and re.fullmatch(r"0\.\d\d", number):
                score += sum(p * int(digits) / 100 for digits, p in chance.items() if len(digits) == 1)
            break
    return (score, certainty) if re.match(r"0\.\d", number) and certainty else None


def _digits(alternatives: Mapping[str, float]) -> dict[str, float]:
    """One or two digits -> their probability."""
    found: dict[str, float] = {}
    for token, logarithm in alternatives.items():
        text = token.strip()
        if re.fullmatch(r"[0-9]{1,2}", text) and logarithm <= 0:
            found[text] = found.get(text, 0.0) + math.exp(logarithm)
    return found
