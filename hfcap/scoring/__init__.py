"""Scoring from files: no model, no torch, and no images unless a metric looks at them."""

from hfcap.metrics.shared.caption_files import read_predictions, read_references
from hfcap.metrics.suite import score_captions
from hfcap.scoring.report_files import is_score_file, read_scores, write_scores
from hfcap.scoring.score import score_files
from hfcap.scoring.signature import signature_line

__all__ = [
    "is_score_file",
    "read_predictions",
    "read_references",
    "read_scores",
    "score_captions",
    "score_files",
    "signature_line",
    "write_scores",
]
