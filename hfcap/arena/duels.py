"""Two captions of an image before a judge, in both orders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfcap.arena.kept_answers import KeptAnswers, answer_key
from hfcap.arena.questions import PROMPT, PairwiseOptions, Verdict, question, verdict_of
from hfcap.data.images import decode_image
from hfcap.errors import WorkError
from hfcap.metrics.judging.build import build_judge
from hfcap.metrics.judging.judge import Question, judge_signature, shown_prompt
from hfcap.metrics.shared.images import DecodedImages, check_present
from hfcap.schema import ImageBytes
from hfcap.text import printable

BLOCK = "judge"


@dataclass(frozen=True, slots=True)
class Duel:
    """Two captions of one image.

    Attributes:
        image_id: of the image. captions: the two. names: whose they are, for the file of answers.
    """

    image_id: str
    captions: tuple[str, str]
    names: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a judge says of a duel.

    Attributes:
        verdicts: in the order of the captions, and in the other order; None = the answer says nothing. Of equal
            captions nobody is asked: both are ties.
    """

    verdicts: tuple[Verdict | None, Verdict | None]
    asked: bool = True

    @property
    def is_read(self) -> bool:
        """Whether both answers say something."""
        return None not in self.verdicts

    @property
    def agree(self) -> bool:
        """Whether the judge says the same in both orders."""
        swapped = {"first": "second", "second": "first", "tie": "tie"}
        return self.is_read and self.verdicts[0] == swapped[str(self.verdicts[1])]

    @property
    def points(self) -> float:
        """What the first caption gets: 1, 0, or one half, also where the two orders disagree."""
        if not self.agree:
            return 0.5
        return {"first": 1.0, "second": 0.0, "tie": 0.5}[str(self.verdicts[0])]


def pairwise_signature(options: PairwiseOptions, served_name: str | None = None) -> dict[str, Any]:
    """Return the judge and what it is asked."""
    return {
        **judge_signature(options, served_name),
        "prompt": shown_prompt(options.prompt, PROMPT, "hfcap's, after CapArena (Cheng et al. 2025)"),
        "max_new_tokens": options.max_new_tokens,
        "orders": "both",
    }


def decide(
    duels: Sequence[Duel], options: PairwiseOptions, images: Mapping[str, ImageBytes], answers: KeptAnswers
) -> tuple[list[Outcome], dict[str, Any]]:
    """Ask the judge about each duel in both orders; return the outcomes, and the judge's signature.

    What `answers` holds already is not asked again.

    Raises:
        UserError: an image is missing or broken, or the judge cannot be asked.
        WorkError: the judge cannot be reached, or most of its answers say nothing.
    """
    image_ids = list(dict.fromkeys(duel.image_id for duel in duels))
    check_present(image_ids, images)
    hashes = {image_id: hashlib.sha256(images[image_id].read()).hexdigest() for image_id in image_ids}
    judge = build_judge(options, BLOCK)
    signature = pairwise_signature(options, judge.name)
    asked: list[tuple[str, Question, tuple[str, str]]] = []
    of_duel: list[tuple[str, str] | None] = []
    for duel in duels:
        if duel.captions[0].strip() == duel.captions[1].strip():
            of_duel.append(None)
            continue
        keys = []
        for order in ((0, 1), (1, 0)):
            text = question(options.prompt, duel.captions[order[0]], duel.captions[order[1]])
            key = answer_key({**signature, "prompt": options.prompt}, hashes[duel.image_id], text)
            asked.append((key, Question(duel.image_id, text), (duel.names[order[0]], duel.names[order[1]])))
            keys.append(key)
        of_duel.append((keys[0], keys[1]))
    new = {key: (one, names) for key, one, names in asked if answers.get(key) is None}
    said = judge.answers(
        [one for one, _ in new.values()], DecodedImages(images, decode_image, bar=False), options.max_new_tokens
    )
    for (key, (one, names)), answer in zip(new.items(), said, strict=True):
        answers.keep(key, answer, image_id=one.image_id, caption_1=names[0], caption_2=names[1])
    outcomes = [
        Outcome(("tie", "tie"), asked=False)
        if keys is None
        else Outcome((verdict_of(answers.get(keys[0]) or ""), verdict_of(answers.get(keys[1]) or "")))
        for keys in of_duel
    ]
    _require_verdicts(outcomes, [str(answers.get(key)) for key, _, _ in asked])
    return outcomes, signature


def _require_verdicts(outcomes: Sequence[Outcome], answers: Sequence[str]) -> None:
    unread = [answer for answer in answers if verdict_of(answer) is None]
    if 2 * len(unread) > len(answers):
        raise WorkError(
            f"judge: {len(unread):,} of {len(answers):,} answers say neither which caption is better nor that it is a "
            f"tie, for example {printable(unread[0])[:160]!r}; choose a model that follows instructions, give longer "
            "answers (--max-new-tokens), or change the prompt"
        )
