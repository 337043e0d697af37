"""What a comparison of systems found: data alone, without a way to show it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hfcap.comparison.significance import PairedDifference
from hfcap.comparison.systems import PublishedRow, System
from hfcap.schema import ErrorSlice


@dataclass(frozen=True)
class Difference:
    """A system's paired difference to the best system in one value.

    Attributes:
        paired: the system minus the best, with interval and p-value.
        corrected_p_value: after Holm's correction over every comparison of the leaderboard.
    """

    paired: PairedDifference
    corrected_p_value: float


@dataclass(frozen=True)
class AtEqualLength:
    """A system's difference to the best one where their captions are equally long.

    Attributes:
        words: mean words of the system's captions.
        words_of_best: of the best system's.
        difference: the system minus the best, raw scale.
        interval: (lower, upper) of the bootstrap.
    """

    words: float
    words_of_best: float
    difference: float
    interval: tuple[float, float]

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves no doubt about which system is better."""
        return not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class SliceComparison:
    """All systems on the images that have one value in a column, by the value that the leaderboard is ordered by.

    Attributes:
        column: what the images are told apart by.
        value: what these images have there.
        n_images: how many they are.
        values: system name -> value on the slice; intervals: likewise, of the bootstrap within the slice.
        best: name of the best system here.
        differences: name of another system -> its difference to the best here; Holm's correction is over all slices.
    """

    column: str
    value: str
    n_images: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    best: str
    differences: dict[str, Difference]


@dataclass(frozen=True)
class FoundSlice:
    """All systems on images that score significantly worse than all others for at least one of them.

    Attributes:
        comparison: the systems there; its column and value are kind and name of the slice.
        elsewhere: system name -> value on all other images.
        found: name of a system in whose score file the slice is -> what it says.
    """

    comparison: SliceComparison
    elsewhere: dict[str, float]
    found: dict[str, ErrorSlice]

    def image_ids_of_examples(self, count: int) -> list[str]:
        """Return the images of the worst captions, each once, at most `count` of each system."""
        ids = (image_id for found in self.found.values() for image_id, _ in found.examples[:count])
        return list(dict.fromkeys(ids))


@dataclass(frozen=True)
class Comparison:
    """The result of comparing systems: the rows of a leaderboard, which rendering.py shows.

    Attributes:
        systems: best first by CIDEr-D, else by BLEU-4, else by the first value that has a better direction.
        outputs: names of values, in the order of the score files.
        plain_outputs: those that are shown as they are, not x 100.
        intervals: system name -> output -> (lower, upper).
        ranking: the value that orders the systems; None where no value is comparable.
        directions: comparable output -> 1 where higher is better, -1 where lower is; others are left out.
        best: output -> name of the best system, for the outputs of `directions`.
        differences: output -> name of another system -> its difference to the best.
        published: target rows of the recipes, each once.
        warnings: everything that makes the comparison less than equal.
        settings: n_resamples, seed, confidence_level.
        slices: the systems on parts of the images, where the score files tell them apart.
        found_slices: the systems on the slices that were found for some of them, where score files hold such.
        at_equal_length: output -> name of another system -> its difference to the best without that of their lengths,
            for pairs whose captions differ notably in length.
    """

    systems: tuple[System, ...]
    outputs: tuple[str, ...]
    plain_outputs: frozenset[str]
    intervals: dict[str, dict[str, tuple[float, float]]]
    ranking: str | None
    directions: dict[str, float]
    best: dict[str, str]
    differences: dict[str, dict[str, Difference]]
    published: tuple[PublishedRow, ...]
    warnings: tuple[str, ...]
    settings: dict[str, Any]
    slices: tuple[SliceComparison, ...] = ()
    found_slices: tuple[FoundSlice, ...] = ()
    at_equal_length: dict[str, dict[str, AtEqualLength]] = field(default_factory=dict)


@dataclass(frozen=True)
class LanguageComparison:
    """Systems that were scored in several languages: compared within each language, never between two.

    Attributes:
        systems: their names, best mean of the ranking value first; those without a mean after them, as they were given.
        languages: codes, in alphabetical order.
        columns: language -> the systems that were scored in it; Holm's correction of their differences is over all
            languages, values and systems.
        outputs: names of values, in the order of the score files.
        ranking: the value that is shown first; None where no value is comparable.
        means: output -> name -> plain mean of its values in all languages; of systems alone that have all of them,
            and of values that were computed under the same conditions in all languages.
        warnings: everything that makes the comparison less than equal.
        settings: n_resamples, seed, confidence_level.
    """

    systems: tuple[str, ...]
    languages: tuple[str, ...]
    columns: dict[str, Comparison]
    outputs: tuple[str, ...]
    ranking: str | None
    means: dict[str, dict[str, float]]
    warnings: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def main_first(self) -> list[str]:
        """The outputs, those first that the systems are ordered by."""
        return sorted(self.outputs, key=lambda output: output != self.ranking)

    def value(self, name: str, language: str, output: str) -> float | None:
        """Return a system's value in a language, raw scale; None where it is undefined or was not computed."""
        system = self.system(name, language)
        return None if system is None else system.report.metrics.get(output)

    def system(self, name: str, language: str) -> System | None:
        """Return what is known of a system in a language; None where it has no scores there."""
        return next((one for one in self.columns[language].systems if one.name == name), None)

    def best(self, language: str, output: str) -> str | None:
        """Return the system that is best in a language; None where fewer than two can be compared."""
        column = self.columns[language]
        having = [one for one in column.systems if one.report.metrics.get(output) is not None]
        return column.best.get(output) if len(having) > 1 else None
