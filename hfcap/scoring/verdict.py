"""What scores mean, in one sentence: the main value, how sure it is, and whether a baseline does as well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hfcap.schema import ScoreReport
from hfcap.scoring.score_table import metric_name, shown_score

FEW_IMAGES = 100
"""Below so many images values are unstable, and CIDEr's document frequencies, counted in them, say little."""

BASELINE_NAMES = {"most_frequent_caption": "most frequent caption", "blank_images": "blank images"}

MAIN_METRICS = ("cider", "bleu_4")
"""Systems are ranked by the first of these that they have."""

Values = Mapping[str, float | None]
"""Metric -> value, raw scale."""


def few_images_problem(n_images: int, split: str) -> str | None:
    """Return that a split is too small for its scores to say much, None where it is not."""
    if n_images >= FEW_IMAGES:
        return None
    return (
        f"only {n_images:,} images are scored (split {split}): the intervals of their scores will be wide, and "
        "differences between captioners will hardly be more than chance"
    )


def main_metric(metrics: Iterable[str]) -> str | None:
    """Return the value that systems are ranked by: CIDEr-D, else BLEU-4, else the first; None of none."""
    known = list(metrics)
    return next((name for name in (*MAIN_METRICS, *known) if name in known), None)


def baseline_problem(metrics: Values, baselines: Mapping[str, Values]) -> str | None:
    """Return that a captioner is no better than baselines that ignore the image, as words after "scores"; else None.

    Args:
        metrics: of the captioner.
        baselines: name in `score.baselines` -> its values.
    """
    name = next((name for name in MAIN_METRICS if metrics.get(name) is not None), None)
    if name is None:
        return None
    ours = metrics[name]
    assert ours is not None
    beaten_by = [BASELINE_NAMES.get(key, key) for key, values in baselines.items() if (values.get(name) or 0) >= ours]
    if not beaten_by:
        return None
    return (
        f"no better than a baseline that ignores the image ({' and '.join(beaten_by)}). "
        "Its captions say little about what an image shows."
    )


def main_score(report: ScoreReport) -> str | None:
    """Return the main value with its interval and the images it is about; None where nothing was scored."""
    name = main_metric(key for key, value in report.metrics.items() if value is not None)
    if name is None:
        return None
    interval = report.intervals.get(name)
    level = report.signature.get("bootstrap", {}).get("confidence_level", 0.95)
    bounds = "" if interval is None else " to ".join(shown_score(name, bound) for bound in interval)
    between = f" ({100 * level:g} % interval {bounds})" if bounds else ""
    return f"{metric_name(name)} {shown_score(name, report.metrics[name])}{between} on {report.n_images:,} images"
