"""How often bootstrap intervals of N images hold the value of a whole split.

python -m scripts.interval_coverage PREDICTIONS REFERENCES --images 100 --samples 600

Samples of N images are drawn from the split with replacement, an interval is computed of each, and it is counted how
often it holds the value of the whole split: for the percentile interval, which hfcap shows, and for BCa
(Efron 1987, doi:10.1080/01621459.1987.10478410).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from hfcap.comparison.systems import System
from hfcap.metrics.base import CaptionMetric
from hfcap.metrics.shared.bootstrap import Columns, percentile_intervals, resampled_sums
from hfcap.metrics.suite import metric_for_statistics
from hfcap.scoring import score_files

_NORMAL = NormalDist()
METHODS = ("percentile", "bca")


def bca_levels(bias: float, acceleration: float, confidence_level: float) -> tuple[float, float]:
    """Return which quantiles of the resampled values a BCa interval ends at; without correction 0.025 and 0.975.

    Args:
        bias: z0, the normal quantile of the share of resampled values below the value.
        acceleration: from the skewness of the values with one image left out.
    """
    tail = (1 - confidence_level) / 2
    shifted = [bias + _NORMAL.inv_cdf(level) for level in (tail, 1 - tail)]
    lower, upper = (_NORMAL.cdf(bias + one / (1 - acceleration * one)) for one in shifted)
    return lower, upper


def bca_interval(
    value: float, resampled: NDArray[np.float64], left_out: NDArray[np.float64], confidence_level: float
) -> tuple[float, float]:
    """Return the BCa interval of a value, from values of resamples (R,) and with each image left out (N,)."""
    below = np.clip(np.mean(resampled < value), 1 / len(resampled), 1 - 1 / len(resampled))
    deviations = left_out.mean() - left_out
    spread = float((deviations**2).sum())
    acceleration = float((deviations**3).sum()) / (6 * spread**1.5) if spread else 0.0
    lower, upper = np.quantile(resampled, bca_levels(_NORMAL.inv_cdf(float(below)), acceleration, confidence_level))
    return float(lower), float(upper)


def coverage(
    metric: CaptionMetric,
    statistics: NDArray[np.float64],
    n_images: int,
    n_samples: int,
    n_resamples: int = 1000,
    seed: int = 0,
    confidence_level: float = 0.95,
) -> dict[str, dict[str, float]]:
    """Return output -> method -> share of samples whose interval holds the value of all rows (N, S) of statistics."""
    generator = np.random.default_rng(seed)
    truth = metric.from_sums(statistics.sum(0, keepdims=True), len(statistics))[0]
    held = {output: dict.fromkeys(METHODS, 0) for output in metric.outputs}
    for number in range(n_samples):
        rows = statistics[generator.integers(0, len(statistics), n_images)]
        resampled = metric.from_sums(resampled_sums(Columns([rows]), n_resamples, seed + number), n_images)
        value = metric.from_sums(rows.sum(0, keepdims=True), n_images)[0]
        left_out = metric.from_sums(rows.sum(0) - rows, n_images - 1)
        for position, output in enumerate(metric.outputs):
            column = resampled[:, position]
            ends = {
                "percentile": percentile_intervals({output: column}, confidence_level)[output],
                "bca": bca_interval(float(value[position]), column, left_out[:, position], confidence_level),
            }
            for method, (lower, upper) in ends.items():
                held[output][method] += bool(lower <= truth[position] <= upper)
    return {output: {method: n / n_samples for method, n in counts.items()} for output, counts in held.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.interval_coverage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("predictions", type=Path)
    parser.add_argument("references", type=Path)
    parser.add_argument("--metrics", default="bleu,cider,rouge_l", help="names with commas between them")
    parser.add_argument("--images", type=int, default=100, help="of a sample")
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    names = options.metrics.split(",")
    report = score_files(options.predictions, options.references, metrics=names, n_resamples=0)
    system = System(options.predictions.name, options.predictions, report)
    print(f"{options.samples} samples of {options.images} of {report.n_images} images, 95 % intervals")
    print(f"{'':<12} {METHODS[0]:>10} {METHODS[1]:>10}")
    for metric in map(metric_for_statistics, names):
        statistics = system.statistics(metric)
        if statistics is None:
            parser.error(f"{metric.name}: its values do not follow from single images; leave it out of --metrics")
        found = coverage(metric, statistics, options.images, options.samples, options.resamples, options.seed)
        for output, shares in found.items():
            print(f"{output:<12} " + " ".join(f"{100 * shares[method]:>8.1f} %" for method in METHODS))


if __name__ == "__main__":
    main()
