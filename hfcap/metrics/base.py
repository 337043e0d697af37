"""The interface of a caption metric, and the captions it is given.

A metric lives in `hfcap/metrics/<name>.py`, which defines the class and `REGISTERED = <the class>`; nothing else has to
be edited. It reduces every image to a row of sufficient statistics, and computes its values from the SUM of such rows.
That one rule gives corpus values (sum over all images), per-image values (the row of one image), bootstrap intervals
and permutation tests (weighted sums), for means and for corpus-level metrics such as BLEU or METEOR alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from hfcap.errors import UserError
from hfcap.metrics.shared.caption_table import CaptionGroups, CaptionTable
from hfcap.metrics.shared.ngrams import NgramTable, ReferenceNgrams, added_counts
from hfcap.metrics.shared.tokenizer import TokenSequences, Vocabulary, encode_captions

IMAGES_AT_ONCE = 8192
"""Images of a part: their n-grams fit the processor's cache, and memory does not grow with the images."""


class ReferenceSet:
    """Human captions of R images, tokenised and indexed once, reusable for any number of candidate sets.

    Args:
        keeps_parts: what is found out about parts of it is kept, for the next candidates; False bounds the memory of a
            large set that is scored against once.

    Attributes:
        image_ids: R ids as strings.
        captions: R tuples of raw captions, none empty; those of a CaptionTable stay in its buffer.
        is_tokenized: the captions are words joined by blanks already and are only split.
        words: caption -> its words joined by one space, for languages other than English; None = COCO's tokeniser.

    Raises:
        UserError: an image has a text in place of a list of captions.
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        *,
        tokenized: bool = False,
        words: Callable[[str], str] | None = None,
        keeps_parts: bool = True,
    ) -> None:
        self.image_ids: tuple[str, ...]
        self.captions: Sequence[tuple[str, ...]]
        if isinstance(references, CaptionTable):
            self.image_ids, self.captions = references.image_ids, references.groups
        else:
            for image_id, group in references.items():
                if isinstance(group, str):
                    raise UserError(f"references of image {image_id!r} are one text; give a list of human captions")
            self.image_ids, self.captions = tuple(references), tuple(map(tuple, references.values()))
        self.is_tokenized = tokenized or words is not None
        self.words = words
        self.vocabulary = Vocabulary()
        self._keeps_parts = keeps_parts
        self._kept_parts: list[ReferenceSet] = []
        self._whole: ReferenceSet | None = None
        self._ngrams: dict[int, ReferenceNgrams] = {}
        self._document_counts: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return len(self.image_ids)

    def parts(self) -> Iterator[ReferenceSet]:
        """Yield the set in parts of IMAGES_AT_ONCE images with the same vocabulary; a small set is its only part."""
        if len(self) <= IMAGES_AT_ONCE:
            yield self
            return
        if self._keeps_parts and not self._kept_parts:
            self._kept_parts = list(self._new_parts())
        yield from self._kept_parts or self._new_parts()

    def _new_parts(self) -> Iterator[ReferenceSet]:
        first_caption = np.concatenate([[0], np.cumsum(self.counts)])
        for start in range(0, len(self), IMAGES_AT_ONCE):
            end = min(start + IMAGES_AT_ONCE, len(self))
            images = zip(self.image_ids[start:end], self.captions[start:end], strict=True)
            part = ReferenceSet(dict(images), tokenized=self.is_tokenized, words=self.words)
            part.vocabulary, part._whole = self.vocabulary, self
            part.tokens = self.tokens.part(int(first_caption[start]), int(first_caption[end]))
            yield part

    @property
    def is_part(self) -> bool:
        """Whether it is one of several parts of a large set."""
        return self._whole is not None

    @property
    def n_documents(self) -> int:
        """Images that `document_counts` counts: those of the whole set."""
        return len(self if self._whole is None else self._whole)

    def document_counts(self, order: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the n-grams of `order` words that several images have, (U,) keys sorted, and how many have each, (U,).

        Of a part, those of the whole set: CIDEr-D weighs n-grams by all images. One that a single image has weighs as
        much as one that none has, and most n-grams of four words are such.
        """
        if self._whole is not None:
            return self._whole.document_counts(order)
        if order not in self._document_counts:
            tables = ((found.keys, found.document_counts()) for found in (part.ngrams(order) for part in self.parts()))
            keys, counts = added_counts(tables)
            several = counts > 1
            self._document_counts[order] = keys[several], counts[several]
        return self._document_counts[order]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(R,) captions per image."""
        groups = self.captions
        counts = groups.counts() if isinstance(groups, CaptionGroups) else map(len, groups)
        return np.fromiter(counts, dtype=np.int64, count=len(self))

    @cached_property
    def image_of_caption(self) -> NDArray[np.int64]:
        """(M,) position of the image that each of the M reference captions belongs to."""
        return np.repeat(np.arange(len(self)), self.counts)

    @cached_property
    def tokens(self) -> TokenSequences:
        """Token numbers of the M reference captions, image after image."""
        return self.encoded(chain.from_iterable(self.captions))

    def encoded(self, captions: Iterable[str]) -> TokenSequences:
        """Tokenise captions as the human ones are."""
        split = captions if self.words is None else map(self.words, captions)
        return encode_captions(split, self.vocabulary, tokenized=self.is_tokenized)

    @cached_property
    def tokenized(self) -> list[list[str]]:
        """R lists of tokenised captions, words joined by one space (what pycocoevalcap hands to METEOR)."""
        lines = self.tokens.as_strings(self.vocabulary)
        ends = np.cumsum(self.counts).tolist()
        return [lines[end - count : end] for end, count in zip(ends, self.counts.tolist(), strict=True)]

    def ngrams(self, order: int) -> ReferenceNgrams:
        """Index of the n-grams of `order` words, built at the first use."""
        if order not in self._ngrams:
            self._ngrams[order] = ReferenceNgrams(self.tokens, self.vocabulary, order, self.image_of_caption)
        return self._ngrams[order]


class CaptionSet:
    """One candidate caption and the human captions of each of N images, tokenised at most once.

    Attributes:
        image_ids: N ids as strings, the order of every per-image array.
        candidates: N raw captions.
        reference_set: the human captions in the same order of images.
    """

    def __init__(self, candidates: Mapping[str, str], references: ReferenceSet) -> None:
        assert tuple(candidates) == references.image_ids, "candidates and references must list the same images in order"
        self.image_ids: tuple[str, ...] = references.image_ids
        self.candidates: tuple[str, ...] = tuple(candidates.values())
        self.reference_set = references
        self._ngrams: dict[int, NgramTable] = {}
        self._matches: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return len(self.image_ids)

    def parts(self) -> Iterator[CaptionSet]:
        """Yield the captions of the parts of the reference set, one after another; a small set is its only part."""
        if len(self) <= IMAGES_AT_ONCE:
            yield self
            return
        start = 0
        for references in self.reference_set.parts():
            end = start + len(references)
            part = CaptionSet(dict(zip(references.image_ids, self.candidates[start:end], strict=True)), references)
            part.candidate_tokens = self.candidate_tokens.part(start, end)
            yield part
            start = end

    @property
    def references(self) -> Sequence[tuple[str, ...]]:
        """N tuples of raw human captions."""
        return self.reference_set.captions

    @property
    def vocabulary(self) -> Vocabulary:
        """Words after the token numbers of candidates and references."""
        return self.reference_set.vocabulary

    @cached_property
    def candidate_tokens(self) -> TokenSequences:
        """Token numbers of the N candidates."""
        return self.reference_set.encoded(self.candidates)

    @cached_property
    def tokenized_candidates(self) -> list[str]:
        """N tokenised candidates, words joined by one space."""
        return self.candidate_tokens.as_strings(self.vocabulary)

    @property
    def reference_tokens(self) -> TokenSequences:
        """Token numbers of the M human captions, image after image (`reference_set.image_of_caption` says whose)."""
        return self.reference_set.tokens

    def ngrams(self, order: int) -> NgramTable:
        """How often each n-gram of `order` words occurs in each candidate, counted at the first use."""
        if order not in self._ngrams:
            self._ngrams[order] = NgramTable.of(self.candidate_tokens, self.vocabulary, order)
        return self._ngrams[order]

    def ngram_matches(self, order: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Entries of `ngrams` and of `reference_set.ngrams` that hold the same n-gram of the same image."""
        if order not in self._matches:
            table = self.ngrams(order)
            self._matches[order] = self.reference_set.ngrams(order).join(table, np.arange(len(self)))
        return self._matches[order]

    @property
    def tokenized_references(self) -> list[list[str]]:
        """N lists of tokenised human captions."""
        return self.reference_set.tokenized


class MetricOptions(BaseModel):
    """What a person can set of a metric, in a recipe (`score.metric_options`), with `--option` or in Python.

    A metric with options declares a subclass in its file; every field has a default and a description, which
    `hfcap list metrics` shows. Unknown names are errors.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )


class CaptionMetric(ABC):
    """A caption metric; all that its constructor takes has defaults.

    Shapes: N images, S statistics per image, O outputs.

    Attributes:
        name: the file name in hfcap/metrics.
        summary: what it measures, in a line.
        options_class: what a person can set; an instance is the first argument of the constructor if it has fields.
        outputs: names of the O values in score files (bleu -> bleu_1 .. bleu_4), in the order of the last axis.
        looks_at_images: the constructor takes `image_source` (see images.py), which `hfcap run` hands over.
        in_parts: statistics of an image depend on its captions alone, and on what is known of the whole reference set,
            so that large sets are worked on part by part.
        english_only: its word lists are English; the values of other languages mean nothing.
        summable: the values follow from the sum of the statistics rows. False only for metrics such as vocabulary
            size; they override `values` and get no intervals.
        n_statistics: S, where `from_sums` is not the mean over images (then S = O).
        higher_is_better: False for error rates; None where no direction is better (length).
        plain_outputs: outputs that tables show as they are (counts, lengths); all others are shown x 100.
        citation: BibTeX or a short reference to the paper that defines the metric.
    """

    name: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    summary: ClassVar[str]
    options_class: ClassVar[type[MetricOptions]] = MetricOptions
    looks_at_images: ClassVar[bool] = False
    in_parts: ClassVar[bool] = False
    english_only: ClassVar[bool] = False
    summable: ClassVar[bool] = True
    n_statistics: ClassVar[int | None] = None
    higher_is_better: ClassVar[bool | None] = True
    plain_outputs: ClassVar[tuple[str, ...]] = ()
    citation: ClassVar[str] = ""

    @abstractmethod
    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return the sufficient statistics of each image, (N, S) float64, finite."""

    def from_sums(self, sums: NDArray[np.float64], n_images: int) -> NDArray[np.float64]:
        """Return the values for summed statistics of `n_images` images: (..., S) -> (..., O); NaN = undefined.

        It uses class constants alone, never what the constructor sets: score files are compared without options.
        The default is the mean over images, for metrics whose statistics are the per-image values (S = O).
        """
        return sums / n_images if n_images else np.full_like(sums, np.nan)

    @property
    def is_mean(self) -> bool:
        """Whether the values are the mean over images of the statistics, so that per-image values hold everything."""
        return self.summable and type(self).from_sums is CaptionMetric.from_sums

    def check_width(self, statistics: NDArray[Any], where: str) -> None:
        """Refuse statistics read from a file that are not this metric's, (N, S), before they become wrong values.

        Raises:
            UserError: another number of columns; the message begins with `where`.
        """
        width = len(self.outputs) if self.is_mean else self.n_statistics
        if width is not None and statistics.shape[1] != width:
            raise UserError(
                f"{where}: statistics.{self.name} has {statistics.shape[1]:,} numbers for an image, and {self.name} "
                f"has {width:,}; score again"
            )

    def aggregate(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the corpus values for statistics of N images: (..., N, S) -> (..., O); NaN = undefined."""
        return self.from_sums(statistics.sum(axis=-2), statistics.shape[-2])

    def values(self, captions: CaptionSet, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the corpus values, (O,) float64; NaN = undefined."""
        return self.aggregate(statistics)

    def per_image(self, statistics: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return the values of each image alone: output name -> (N,) float64; NaN = undefined.

        The default treats each image as a corpus of one.
        """
        alone = self.from_sums(statistics, 1)
        return {output: alone[..., position] for position, output in enumerate(self.outputs)}

    def signature(self) -> dict[str, Any]:
        """Return the conditions of the values (parameters, resources with their hashes), as JSON values."""
        return {}

    def agreement(self) -> dict[str, str]:
        """Return for each value that is a model's opinion how well it agrees with people; empty where none is.

        Raises:
            UserError: the file that says it cannot be read.
        """
        return {}
