"""The scores that a card's metadata (`model-index`) says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from hfcap.card.kept_sections import split_front_matter
from hfcap.errors import UserError
from hfcap.scoring.score_table import METRIC_NAMES, metric_name

_FIRST = ("cider", "bleu_4", "meteor", "spice", "clip_score")
"""Metrics that one line shows, those that papers look at first."""


def card_scores(card: str) -> dict[str, float]:
    """Return metric -> value as the card shows it (x 100 where papers do so), whatever else stands there.

    Raises:
        UserError: the card's metadata is no YAML.
    """
    try:
        values = yaml.safe_load(split_front_matter(card)[0])
    except (yaml.YAMLError, RecursionError):
        raise UserError("README.md: its metadata is no YAML; correct the card") from None
    return dict(_model_index(values))


def score_line(card: str) -> str:
    """Return the main scores of a card in one line, e.g. "CIDEr-D 112.3, BLEU-4 35.1"; empty where it shows none."""
    found = card_scores(card)
    chosen = [name for name in _FIRST if name in found] or [name for name in METRIC_NAMES if name in found]
    return ", ".join(f"{metric_name(name)} {found[name]:.1f}" for name in chosen[:3])


def _model_index(metadata: Any) -> Iterator[tuple[str, float]]:
    index = metadata.get("model-index") if isinstance(metadata, dict) else None
    for model in index if isinstance(index, list) else []:
        results = model.get("results") if isinstance(model, dict) else None
        for result in results if isinstance(results, list) else []:
            metrics = result.get("metrics") if isinstance(result, dict) else None
            for metric in metrics if isinstance(metrics, list) else []:
                if isinstance(metric, dict) and isinstance(metric.get("value"), int | float):
                    yield str(metric.get("type")), float(metric["value"])
