"""`diversity` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class Diversity(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/diversity.py."""

    metric_names = ("diversity",)
