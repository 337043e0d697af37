"""`bad_endings` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class BadEndings(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/bad_endings.py."""

    metric_names = ("bad_endings",)
