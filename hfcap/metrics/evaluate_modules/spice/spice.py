"""`spice` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class Spice(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/spice.py."""

    metric_names = ("spice",)
