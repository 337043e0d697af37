"""`rouge_l` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class RougeL(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/rouge_l.py."""

    metric_names = ("rouge_l",)
