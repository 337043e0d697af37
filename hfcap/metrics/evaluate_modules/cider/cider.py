"""`cider` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class Cider(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/cider.py."""

    metric_names = ("cider",)
