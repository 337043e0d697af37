"""Small pieces of Markdown that every part of the card is made from."""

from __future__ import annotations

from hfcap.card.run_facts import RunFacts
from hfcap.pages.markdown import Safe, escape
from hfcap.scoring.score_table import shown_score


def hub_link(repo_id: str, kind: str = "") -> Safe:
    """Return a link to a model (or `datasets/`) on the Hub."""
    return Safe(f"[{escape(repo_id)}](https://huggingface.co/{kind}{repo_id})")


def count(number: int | float) -> str:
    """Return 1234567 as 1,234,567."""
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"


def dataset_link(known: RunFacts) -> Safe:
    """Return the dataset's name, with a link where it is on the Hub."""
    dataset = known.recipe.publish.dataset
    if dataset is None:
        return escape(known.dataset_name)
    return Safe(f"[{escape(known.dataset_name)}](https://huggingface.co/datasets/{dataset})")


def shown_number(metric: str, value: float | None) -> str:
    """Return a score as the card prints it; a dash where it is undefined."""
    return shown_score(metric, value, undefined="–")
