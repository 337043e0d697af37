"""`length` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class Length(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/length.py."""

    metric_names = ("length",)
