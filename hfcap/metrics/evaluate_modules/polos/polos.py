"""`polos` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class Polos(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/polos/__init__.py."""

    metric_names = ("polos",)
