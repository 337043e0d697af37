"""Human judgments of captions, from whatever file they came."""

from __future__ import annotations

from dataclasses import dataclass

from hfcap.schema import ImageBytes


@dataclass(frozen=True, slots=True)
class JudgedCaption:
    """A caption that people judged.

    Attributes:
        image: names the image; captions of one image are resampled together.
        text: the caption.
        references: the human captions it is scored against, without itself.
        source: where the image's bytes are, where the file holds them.
    """

    image: str
    text: str
    references: tuple[str, ...]
    source: ImageBytes | None = None


@dataclass(frozen=True, slots=True)
class Rating:
    """One person's, or several people's mean, score of a caption.

    Attributes:
        caption: its position among the judged captions.
        score: higher is better.
    """

    caption: int
    score: float


@dataclass(frozen=True, slots=True)
class Preference:
    """People preferred one caption of an image to another one.

    Attributes:
        better, worse: their positions among the judged captions.
        group: kind of pair that is also reported by itself (Pascal-50S: HC, HI, HM, MM); empty = none.
    """

    better: int
    worse: int
    group: str = ""


@dataclass(frozen=True)
class Judgments:
    """A set of judgments: ratings or preferences, never both.

    Attributes:
        layout: name of the layout it was read by, for example `flickr8k_cf`.
        captions: the judged captions; each is one item of the corpus that is scored, as in the published evaluations.
        ratings, preferences: what people said of them.
        notes: what was left out, in sentences.
    """

    layout: str
    captions: tuple[JudgedCaption, ...]
    ratings: tuple[Rating, ...] = ()
    preferences: tuple[Preference, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert bool(self.ratings) != bool(self.preferences), "ratings or preferences"

    def __len__(self) -> int:
        return len(self.ratings) or len(self.preferences)


def tidy(text: str) -> str:
    """Return a caption with single blanks between its words, as the published evaluations read them."""
    return " ".join(text.split())
