"""Scene graphs of captions, as FACTUAL (Li et al. 2023, arXiv:2305.17497) writes them, and how well two agree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.meteor_parts.resources import MeteorResources
from hfcap.metrics.meteor_parts.stemmer import stem

Phrase = tuple[str, ...]
"""Words of an object, an attribute or a relation, lower-cased."""

Element = tuple[Phrase, ...]
"""What is matched: an object or an attribute (one phrase), or a relation (subject, relation, object)."""

Alike = Callable[[Phrase, Phrase], bool]
Similar = Callable[[Sequence[Element], Sequence[Element]], NDArray[np.float64]]
"""Elements of a candidate and of a reference -> their similarities, (C, R)."""

WEIGHTS = np.array([0.5, 0.5, 0.2])
"""Of the F of objects, attributes and relations in CAPTURE (Dong et al. 2024, arXiv:2405.19092)."""

_FACT = re.compile(r"\(([^()]*)\)")


@dataclass(frozen=True, slots=True)
class Graph:
    """What a caption says.

    Attributes:
        objects, attributes, relations: each once, sorted; of attributes one for each object that has it.
    """

    objects: tuple[Element, ...] = ()
    attributes: tuple[Element, ...] = ()
    relations: tuple[Element, ...] = ()


def graph_of_texts(texts: Iterable[str]) -> Graph:
    """Return the graph of what the parser wrote for the sentences of a caption, or for several captions together.

    A text holds facts, `( man , hold , cup ) , ( cup , is , red )`: a relation, or with `is` an attribute; a number as
    an attribute is a quantity and left out. Facts that are not of three parts are skipped, unless there is no other:
    then its first part is an object. What is cut at the end, without a closing parenthesis, is skipped likewise.
    """
    objects: set[Phrase] = set()
    attributes: set[tuple[Phrase, Phrase]] = set()
    relations: set[tuple[Phrase, Phrase, Phrase]] = set()
    for text in texts:
        facts = [[_phrase(part) for part in fact.split(",")] for fact in _FACT.findall(text)]
        whole = [fact for fact in facts if len(fact) == 3 and all(fact)]
        for first, relation, second in whole:
            objects.add(first)
            if relation != ("is",):
                objects.add(second)
                relations.add((first, relation, second))
            elif not "".join(second).isdigit():
                attributes.add((first, second))
        alone = facts[0][0] if facts else _phrase(text.replace("(", " ").split(",")[0])
        if not whole and alone and len(facts) < 2:
            objects.add(alone)
    return Graph(
        tuple((phrase,) for phrase in sorted(objects)),
        tuple((attribute,) for _, attribute in sorted(attributes)),
        tuple(sorted(relations)),
    )


def _phrase(text: str) -> Phrase:
    return tuple(text.lower().split())


def same(first: Phrase, second: Phrase) -> bool:
    """Whether two phrases have the same words, up to inflection."""
    return _stems(first) == _stems(second)


@lru_cache(maxsize=100_000)
def _stems(phrase: Phrase) -> Phrase:
    return tuple(stem(word) for word in phrase)


class Synonyms:
    """Phrases that mean the same: one holds all words of the other, or word by word they share a WordNet synset.

    Raises:
        MissingPackageError: pycocoevalcap, whose METEOR brings WordNet's synsets, is not installed.
    """

    def __init__(self) -> None:
        resources = MeteorResources.installed()
        self._synsets, self._bases = resources.synsets(), resources.irregular_forms()
        self._known: dict[str, frozenset[str]] = {}

    def __call__(self, first: Phrase, second: Phrase) -> bool:
        """Whether two phrases mean the same."""
        one, other = set(_stems(first)), set(_stems(second))
        if one <= other or other <= one:
            return True
        pairs = zip(first, second, strict=True) if len(first) == len(second) else ()
        shared = [stem(a) == stem(b) or bool(self._senses(a) & self._senses(b)) for a, b in pairs]
        return bool(shared) and all(shared)

    def _senses(self, word: str) -> frozenset[str]:
        if word not in self._known:
            endings = (("ies", "y"), ("es", ""), ("s", ""), ("ing", ""), ("ing", "e"), ("ed", ""), ("ed", "e"))
            forms = [word, *self._bases.get(word, ())]
            forms += [word.removesuffix(end) + new for end, new in endings if word.endswith(end) and len(word) > 3]
            self._known[word] = frozenset(sense for form in forms for sense in self._synsets.get(form, ()))
        return self._known[word]


def matched(
    candidate: Sequence[Element], reference: Sequence[Element], alike: Alike | None, similar: Similar | None
) -> tuple[float, float]:
    """Return how much of the candidate and of the reference is matched, each element with one of the other side.

    Exact matches come first, then synonyms; what is left over counts with its largest similarity to what is left over
    on the other side (Dong et al. 2024, section 3.1).

    Args:
        alike: tells synonyms; None = exact matches alone. similar: None = no soft matches.
    """
    left, right = list(candidate), list(reference)
    count = 0
    for test in (same,) if alike is None else (same, alike):
        for element in list(left):
            partner = next((other for other in right if all(map(test, element, other))), None)
            if partner is not None:
                left.remove(element)
                right.remove(partner)
                count += 1
    if similar is None or not left or not right:
        return float(count), float(count)
    cosines = similar(left, right)
    return count + float(cosines.max(axis=1).sum()), count + float(cosines.max(axis=0).sum())


def agreement(
    candidate: Graph, reference: Graph, alike: Alike | None, similar: Similar | None = None
) -> NDArray[np.float64]:
    """Return the weighted F of CAPTURE, and precision, recall and F of objects, attributes and relations, (10,).

    Each is 0 where there is nothing on one side or on both, as with the authors.
    """
    values: list[float] = []
    for own, other in (
        (candidate.objects, reference.objects),
        (candidate.attributes, reference.attributes),
        (candidate.relations, reference.relations),
    ):
        of_candidate, of_reference = matched(own, other, alike, similar)
        precision = of_candidate / len(own) if own else 0.0
        recall = of_reference / len(other) if other else 0.0
        total = precision + recall
        values += [precision, recall, 2 * precision * recall / total if total else 0.0]
    score = float(WEIGHTS @ values[2::3] / WEIGHTS.sum())
    return np.array([score, *values])
