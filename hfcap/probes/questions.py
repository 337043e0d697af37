"""Yes-no questions about objects, made of annotations as POPE makes them (Li et al. 2023, arXiv:2305.10355)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from hfcap.errors import UserError

KINDS = ("random", "popular", "adversarial")
"""How the objects that are not there are chosen: at random; the most frequent ones of all images; those that occur most
often together with what is there."""

TEMPLATE = "Is there {a} {object} in the image? Please answer yes or no."
"""POPE's question, with the request that keeps answers short."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image.

    Attributes:
        image_id: whose image. object: what is asked for. text: as the captioner gets it.
        present: whether the object is there.
        kinds: of KINDS; a question about what is there belongs to all, and one object may be popular and adversarial.
    """

    image_id: str
    object: str
    text: str
    present: bool
    kinds: tuple[str, ...]

    @property
    def key(self) -> str:
        """What tells it from other questions."""
        return f"{self.image_id}|{self.object}"


def object_questions(
    objects: Mapping[str, frozenset[str]],
    names: Sequence[str],
    *,
    n_images: int = 500,
    n_questions: int = 3,
    kinds: Sequence[str] = KINDS,
    template: str = TEMPLATE,
    seed: int = 0,
) -> list[Question]:
    """Return questions about some images: of each as many about what is there as, of each kind, about what is not.

    Equal arguments give equal questions, in any order of `objects`. Of objects that are equally frequent, or occur
    together equally often, the first by name is asked for.

    Args:
        objects: image id -> names of what is there.
        names: of all objects.
        n_images: so many images at most, drawn at random from those with enough objects.
        n_questions: about what is there, and of each kind; half of POPE's l = 6.
        template: with {object}, and {a} for its article.

    Raises:
        UserError: the template has no {object}, or no image has enough objects that are and are not there.
    """
    if "{object}" not in template:
        raise UserError(f"question {template!r}: names no object; write {{object}} where its name stands")
    usable = sorted(
        key for key, there in objects.items() if len(there) >= n_questions and len(names) - len(there) >= n_questions
    )
    if not usable:
        raise UserError(
            f"annotations: no image has {n_questions} objects, and {n_questions} that are not there; ask fewer "
            "questions (n_questions), or give other annotations"
        )
    generator = np.random.default_rng(seed)
    frequency = Counter(name for there in objects.values() for name in there)
    together = Counter(pair for there in objects.values() for pair in permutations(sorted(there), 2))
    questions = []
    for number in sorted(generator.permutation(len(usable))[:n_images].tolist()):
        image_id, there = usable[number], objects[usable[number]]
        absent = sorted(name for name in names if name not in there)
        company = {name: sum(together[name, other] for other in there) for name in absent}
        ranked = {
            "random": [absent[place] for place in generator.permutation(len(absent))],
            "popular": sorted(absent, key=lambda name: (-frequency[name], name)),
            "adversarial": sorted(absent, key=company.__getitem__, reverse=True),
        }
        asked: dict[str, list[str]] = {}
        for kind in kinds:
            for name in ranked[kind][:n_questions]:
                asked.setdefault(name, []).append(kind)
        drawn = sorted(there)
        drawn = [drawn[place] for place in sorted(generator.permutation(len(drawn))[:n_questions].tolist())]
        questions += [Question(image_id, name, _text(template, name), True, tuple(kinds)) for name in drawn]
        questions += [Question(image_id, name, _text(template, name), False, tuple(of)) for name, of in asked.items()]
    return questions


def _text(template: str, name: str) -> str:
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return template.replace("{a}", article).replace("{object}", name)
