"""`meteor` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class Meteor(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/meteor.py."""

    metric_names = ("meteor",)
