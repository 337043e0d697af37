"""`objects` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class Objects(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/objects/__init__.py."""

    metric_names = ("objects",)
