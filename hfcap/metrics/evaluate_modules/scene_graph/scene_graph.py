"""`scene_graph` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class SceneGraph(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/scene_graph/__init__.py."""

    metric_names = ("scene_graph",)
