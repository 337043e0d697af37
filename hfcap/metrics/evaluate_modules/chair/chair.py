"""`chair` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class Chair(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/chair.py."""

    metric_names = ("chair",)
