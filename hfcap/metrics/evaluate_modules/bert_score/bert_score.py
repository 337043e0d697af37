"""`bert_score` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class BertScore(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/bert_score.py."""

    metric_names = ("bert_score",)
