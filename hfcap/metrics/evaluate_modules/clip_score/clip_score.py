"""`clip_score` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class ClipScore(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/clip_score/__init__.py."""

    metric_names = ("clip_score",)
