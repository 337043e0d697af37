"""`bleu` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class Bleu(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/bleu.py."""

    metric_names = ("bleu",)
