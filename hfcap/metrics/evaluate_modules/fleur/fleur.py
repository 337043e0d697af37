"""`fleur` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class Fleur(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/fleur.py."""

    metric_names = ("fleur",)
