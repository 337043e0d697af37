"""What is said of captioners and captions, whatever the family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a model card says about a family, whatever the data."""

    title: str
    summary: str
    paper_title: str
    paper_url: str
    bibtex: str
    license: str | None = None
    paper_model_types: tuple[str, ...] = ()
    """The `model_type`s whose architecture the paper describes; empty = all of the family."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A pretrained model that a captioner was built from, for environment.json and the card."""

    id: str
    revision: str | None
    role: str

    @property
    def is_local(self) -> bool:
        """Whether the id is a folder on this machine."""
        return Path(self.id).exists()


@dataclass(frozen=True, slots=True)
class GeneratedCaption:
    """One caption with the log-probability that beam search ranked it by (None when greedy or sampled).

    Attributes:
        cut: whether it ends at the length limit (`max_new_tokens`) and not where the model ended it.
        usage: tokens that a server read and wrote for it (prompt_tokens, completion_tokens); None where none counted.
    """

    text: str
    score: float | None
    cut: bool = False
    usage: dict[str, int] | None = None


def shown_model(location: str) -> str:
    """Return how others are told of a captioner: a Hub id as it is, of a folder on this machine only its name."""
    path = Path(location)
    return path.resolve().name if path.exists() else location
