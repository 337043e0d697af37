"""What the doctor found wrong: each problem with the recipe key that causes it and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


def not_yours(captioner: object, what: str) -> str:
    """Return the remedy of a fault that no recipe can mend, with the place for who maintains the captioner family."""
    return (
        "this is no fault of the recipe: start from another base model, or take another captioner, and report it with "
        f"doctor.json (for the maintainers: {what} of {type(captioner).__module__})"
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem; an error makes the training wrong or impossible, a warning makes it doubtful."""

    level: Literal["error", "warning"]
    key: str
    message: str
    remedy: str


@dataclass
class Findings:
    """Problems in the order in which they were found."""

    problems: list[Problem] = field(default_factory=list)

    def error(self, key: str, message: str, remedy: str) -> None:
        """Add a problem that makes the training wrong or impossible."""
        self.problems.append(Problem("error", key, message, remedy))

    def warning(self, key: str, message: str, remedy: str) -> None:
        """Add a problem that makes the training doubtful."""
        self.problems.append(Problem("warning", key, message, remedy))

    @property
    def has_errors(self) -> bool:
        """Whether anything is an error."""
        return any(problem.level == "error" for problem in self.problems)
