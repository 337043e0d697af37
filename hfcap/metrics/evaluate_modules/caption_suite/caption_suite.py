"""`caption_suite` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class CaptionSuite(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/suite.py."""

    metric_names = ("bleu", "rouge_l", "cider")
