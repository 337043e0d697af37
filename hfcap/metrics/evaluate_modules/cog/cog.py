"""`cog` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class Cog(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/cog/__init__.py."""

    metric_names = ("cog",)
