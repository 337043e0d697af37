"""How varied the captions are: distinct n-grams, vocabulary, novelty, and how much the n-best captions differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfcap.errors import UserError
from hfcap.files import read_json_lines
from hfcap.metrics.base import CaptionMetric, CaptionSet, MetricOptions, ReferenceSet
from hfcap.metrics.bleu import Bleu
from hfcap.metrics.shared.caption_files import normalised_image_id, read_references
from hfcap.metrics.shared.tokenizer import TokenSequences
from hfcap.places import LocalPath

_NOVEL, _MUTUAL_BLEU = 0, 1


def _distinct_share(tokens: TokenSequences, n_words: int, order: int) -> float:
    """Different n-grams per n-gram of all captions; NaN where there is none."""
    positions = np.arange(len(tokens.tokens) - order + 1)
    ends = np.repeat(tokens.offsets[1:], tokens.lengths)[: len(positions)]
    positions = positions[positions + order <= ends]
    if len(positions) == 0:
        return float("nan")
    codes = np.zeros(len(positions), dtype=np.int64)
    for shift in range(order):
        _, codes = np.unique(codes * n_words + tokens.tokens[positions + shift], return_inverse=True)
    return (int(codes.max()) + 1) / len(positions)


def _normal_forms(captions: Sequence[str], words: Callable[[str], str] | None = None) -> list[str]:
    return ReferenceSet({"": captions}, words=words).tokenized[0]


def mutual_bleu(
    candidates: Mapping[str, Sequence[str]],
    tokenized: bool = False,
    words: Callable[[str], str] | None = None,
) -> dict[str, float]:
    """Return for each image the mean BLEU-4 of each of its captions against its others; low = diverse.

    Images with fewer than two captions are left out. Source: Shetty et al. (2017), Wang and Chan (2019).
    """
    several = {image_id: captions for image_id, captions in candidates.items() if len(captions) > 1}
    single: dict[str, str] = {}
    others: dict[str, list[str]] = {}
    for image_id, captions in several.items():
        for number, caption in enumerate(captions):
            key = f"{number} {image_id}"
            single[key] = caption
            others[key] = [*captions[:number], *captions[number + 1 :]]
    if not single:
        return {}
    bleu = Bleu()
    references = ReferenceSet(others, tokenized=tokenized, words=words)
    scores = bleu.per_image(bleu.statistics(CaptionSet(single, references)))["bleu_4"]
    counts = [len(captions) for captions in several.values()]
    owner = np.repeat(np.arange(len(counts)), counts)
    means = np.bincount(owner, weights=scores) / np.asarray(counts)
    return dict(zip(several, means.tolist(), strict=True))


def _read_candidates(path: Path) -> dict[str, list[str]]:
    """The n-best captions of a predictions file."""
    found: dict[str, list[str]] = {}
    for line, row in read_json_lines(path, "predictions file"):
        captions = row.get("candidates", [])
        if "image_id" not in row or not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
            raise UserError(f"{path}: line {line} needs 'image_id' and 'candidates', a list of captions")
        found[normalised_image_id(row["image_id"], f"{path}: line {line}")] = captions
    return found


class DiversityOptions(MetricOptions):
    """Options of the diversity measures."""

    candidates: LocalPath | Path | dict[str, tuple[str, ...]] | None = Field(
        None, description="for m_bleu_4: a predictions file with n-best captions; in Python also id -> captions"
    )
    training_captions: LocalPath | Path | tuple[str, ...] | None = Field(
        None, description="for novel_captions: file of the captions that were trained on; in Python also a list of them"
    )


class Diversity(CaptionMetric):
    """Distinct 1- and 2-grams (Li et al. 2016), vocabulary size, share of novel captions, mutual BLEU-4.

    The first three describe all captions together and grow or shrink with their number: compare systems on the same
    images only, and expect no interval.

    Raises:
        UserError: a file is missing or has another layout.
    """

    name = "diversity"
    outputs = ("distinct_1", "distinct_2", "vocabulary_size", "novel_captions", "m_bleu_4")
    summary = "distinct n-grams, vocabulary, novel captions, likeness of the n-best captions"
    summable = False
    higher_is_better = None
    plain_outputs = ("vocabulary_size",)
    citation = (
        "Li et al. (2016): A Diversity-Promoting Objective Function for Neural Conversation Models. NAACL; "
        "Shetty et al. (2017): Speaking the Same Language: Matching Machine to Human Captions by Adversarial Training. "
        "ICCV"
    )

    options_class = DiversityOptions

    def __init__(self, options: DiversityOptions | None = None) -> None:
        options = options or DiversityOptions()
        self._candidates: Mapping[str, Sequence[str]] | None = (
            _read_candidates(Path(options.candidates))
            if isinstance(options.candidates, str | Path)
            else options.candidates
        )
        known = options.training_captions
        if isinstance(known, str | Path):
            known = tuple(chain.from_iterable(read_references(Path(known)).values()))
        self._training_captions = known
        # As their tokens, so that neither case nor a final dot makes a caption new.
        self._known = None if known is None else frozenset(_normal_forms(known))

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return whether the caption is novel, and the mutual BLEU-4; -1 where not known, (N, 2)."""
        result = np.full((len(captions), 2), -1.0)
        if self._known is not None:
            words = captions.reference_set.words
            seen = self._known if words is None else frozenset(_normal_forms(self._training_captions or (), words))
            result[:, _NOVEL] = [line not in seen for line in captions.tokenized_candidates]
        if self._candidates is not None:
            several = {key: self._candidates[key] for key in captions.image_ids if key in self._candidates}
            mutual = mutual_bleu(several, words=captions.reference_set.words)
            result[:, _MUTUAL_BLEU] = [mutual.get(image_id, -1.0) for image_id in captions.image_ids]
        return result

    def values(self, captions: CaptionSet, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values of all captions together; NaN where n-best or training captions are not given."""
        tokens, n_words = captions.candidate_tokens, len(captions.vocabulary)
        means = [float(np.mean(column[column >= 0])) if (column >= 0).any() else np.nan for column in statistics.T]
        return np.asarray(
            [
                _distinct_share(tokens, n_words, 1),
                _distinct_share(tokens, n_words, 2),
                len(np.unique(tokens.tokens)),
                *means,
            ]
        )

    def per_image(self, statistics: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return novelty and mutual BLEU-4, which are about single images; NaN = not known."""
        known = np.where(statistics >= 0, statistics, np.nan)
        return {"novel_captions": known[:, _NOVEL], "m_bleu_4": known[:, _MUTUAL_BLEU]}

    def signature(self) -> dict[str, Any]:
        """Return how many training captions were known and whether n-best captions were given."""
        n_candidates = None if self._candidates is None else len(list(chain.from_iterable(self._candidates.values())))
        return {"training_captions": None if self._known is None else len(self._known), "candidates": n_candidates}


REGISTERED = Diversity
