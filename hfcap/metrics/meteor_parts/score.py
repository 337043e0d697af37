"""METEOR's score of summed statistics, and what their columns are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.meteor_parts.matching import N_MODULES

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MODULE_WEIGHTS = np.asarray([1.0, 0.6, 0.8, 0.6])

# Columns of the statistics; CANDIDATE + k and REFERENCE + k belong together.
LENGTHS, FUNCTION_WORDS = slice(0, 2), slice(2, 4)
CONTENT_MATCHES, FUNCTION_MATCHES = slice(4, 12), slice(12, 20)  # module by module, candidate before reference
CHUNKS = 20
MATCHED = slice(21, 23)
N_STATISTICS = 23


def scores_of(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return METEOR for summed statistics: (..., 23) -> (...).

    With P and R the weighted precision and recall, F = 1 / ((1 - 0.85) / P + 0.85 / R), and f = chunks / mean number
    of matched words: F * (1 - 0.6 * f ** 0.2).
    """
    content = statistics[..., CONTENT_MATCHES].reshape(*statistics.shape[:-1], N_MODULES, 2)
    function = statistics[..., FUNCTION_MATCHES].reshape(*statistics.shape[:-1], N_MODULES, 2)
    matched = (MODULE_WEIGHTS[:, None] * (DELTA * content + (1 - DELTA) * function)).sum(axis=-2)
    function_words = statistics[..., FUNCTION_WORDS]
    total = DELTA * (statistics[..., LENGTHS] - function_words) + (1 - DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(np.where(total > 0, matched / total, 0.0), -1, 0)
        mean = 1.0 / ((1.0 - ALPHA) / precision + ALPHA / recall)
        fragmentation = statistics[..., CHUNKS] / (statistics[..., MATCHED].sum(axis=-1) / 2.0)
        score = mean * (1.0 - GAMMA * fragmentation**BETA)
    return np.where((precision > 0) & (recall > 0), score, 0.0)
