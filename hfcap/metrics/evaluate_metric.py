"""Every caption metric as a Hugging Face `evaluate.Metric`, and as a folder for `evaluate.load(path)`.

    import evaluate
    from hfcap.metrics.evaluate_metric import evaluate_folder

    cider = evaluate.load(str(evaluate_folder("cider")))
    cider.compute(predictions=["a cat"], references=[["a cat sits", "one cat"]], image_ids=["17"])

`hfcap/metrics/evaluate_modules/<name>/<name>.py` are the folders; `python -m hfcap.metrics.evaluate_metric` writes
those of new metrics. Image ids travel with the captions, so that several processes may send their shares in any order
and with the duplicates that padded batches bring; each image counts once, and process 0 computes once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import evaluate

from hfcap import registry
from hfcap.errors import UserError
from hfcap.files import write_text
from hfcap.metrics.shared.caption_files import normalised_image_id
from hfcap.metrics.suite import DEFAULT_METRICS, CaptionSuite, metric_class

_FOLDER = Path(__file__).parent / "evaluate_modules"
_SUITE = "caption_suite"

_INPUTS = """
    predictions: one caption per image.
    references: for each image the list of its human captions (or one caption).
    image_ids: for each image its id. Optional in one process, where the rows are numbered instead; required in several
        processes and in `evaluate.combine(...).add_batch`.
"""

_TEMPLATE = '''"""`{name}` for `evaluate.load`; written by `python -m hfcap.metrics.evaluate_metric`."""

from hfcap.metrics import evaluate_metric


class {class_name}(evaluate_metric.CaptionEvaluation):
    """See hfcap/metrics/{source}."""

    metric_names = {metric_names!r}
'''


class CaptionEvaluation(evaluate.Metric):
    """Base of the evaluate metrics; a subclass names the metrics it computes.

    Options of a metric (`document_frequencies` of CIDEr-D) are keyword arguments of `evaluate.load` or of `compute`.
    """

    metric_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, metrics: Sequence[str] | None = None, **kwargs: Any) -> None:
        known = inspect.signature(evaluate.EvaluationModule.__init__).parameters
        self._names = tuple(metrics) if metrics is not None else self.metric_names
        self._options = {key: kwargs.pop(key) for key in list(kwargs) if key not in known}
        self._n_numbered = 0
        super().__init__(*args, **kwargs)

    def _info(self) -> Any:
        classes = [metric_class(name) for name in self._names]
        text, image_id = datasets.Value("string"), datasets.Value("string")
        return evaluate.MetricInfo(
            description="\n\n".join((metric.__doc__ or metric.name) for metric in classes),
            citation="\n".join(metric.citation for metric in classes if metric.citation),
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": references, "image_ids": image_id})
                for references in (datasets.Sequence(text), text)
            ],
        )

    def _numbered(self, n_rows: int) -> list[str]:
        if self.num_process > 1:
            raise UserError("image_ids: give them when several processes compute a metric together")
        first, self._n_numbered = self._n_numbered, self._n_numbered + n_rows
        return [f"row {number}" for number in range(first, first + n_rows)]

    def add_batch(
        self, *, predictions: Any = None, references: Any = None, image_ids: Any = None, **kwargs: Any
    ) -> None:
        """Add captions of some images.

        Args:"""
        if image_ids is None:
            image_ids = self._numbered(len(predictions))
        ids = [normalised_image_id(value, "image_ids") for value in image_ids]
        super().add_batch(predictions=predictions, references=references, image_ids=ids, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, image_ids: Any = None, **kwargs: Any) -> None:
        """Add the caption of one image.

        Args:"""
        value = self._numbered(1)[0] if image_ids is None else normalised_image_id(image_ids, "image_ids")
        super().add(prediction=prediction, reference=reference, image_ids=value, **kwargs)

    def compute(
        self, *, predictions: Any = None, references: Any = None, image_ids: Any = None, **kwargs: Any
    ) -> dict[str, float | None] | None:
        """Compute the values over everything that was added; None in all processes but the first.

        Args:"""
        if predictions is not None and image_ids is None:
            image_ids = self._numbered(len(predictions))
        result = super().compute(predictions=predictions, references=references, image_ids=image_ids, **kwargs)
        self._n_numbered = 0
        return result

    def _compute(self, *, predictions: Any, references: Any, image_ids: Any, **options: Any) -> dict[str, float | None]:
        captions: dict[str, str] = {}
        human: dict[str, tuple[str, ...]] = {}
        for image_id, caption, group in zip(image_ids, predictions, references, strict=True):
            human_captions = (group,) if isinstance(group, str) else tuple(group)
            if not human_captions:
                raise UserError(f"references: image {image_id} has no human caption; add one")
            if captions.setdefault(image_id, caption) != caption or human.setdefault(image_id, human_captions) != (
                human_captions
            ):
                raise UserError(f"image {image_id} was added twice with different captions; add it once")
        # Processes arrive interleaved; the order of images must not change the last bits of a sum.
        ordered = sorted(captions)
        suite = CaptionSuite(self._names, options=self._options_of_metrics({**self._options, **options}))
        return suite.compute({key: captions[key] for key in ordered}, {key: human[key] for key in ordered}).values

    def _options_of_metrics(self, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Give each option to the metrics that have it; with one metric, `build_metric` names unknown ones."""
        if len(self._names) == 1:
            return {self._names[0]: dict(options)}
        fields = {name: metric_class(name).options_class.model_fields for name in self._names}
        known = {key for keys in fields.values() for key in keys}
        for key in options:
            if key not in known:
                raise UserError(f"unknown option {key!r}{registry.did_you_mean(key, known)}")
        return {name: {key: options[key] for key in keys if key in options} for name, keys in fields.items()}


def evaluate_folder(name: str) -> Path:
    """Return the folder for evaluate.load of a metric, or of "caption_suite": BLEU, ROUGE-L and CIDEr-D at once.

    Raises:
        UserError: there is no such metric.
    """
    known = (*registry.names("metrics"), _SUITE)
    if name not in known:
        raise UserError(f"unknown metric {name!r}{registry.did_you_mean(name, known)}")
    return _FOLDER / name


def evaluate_sources() -> dict[str, str]:
    """Return the content of every module file: path below evaluate_modules -> text."""
    sources = {}
    for name in (*registry.names("metrics"), _SUITE):
        metric_names = DEFAULT_METRICS if name == _SUITE else (name,)
        class_name = "".join(part.capitalize() for part in name.split("_"))
        folder = Path(__file__).parent / name
        source = "suite.py" if name == _SUITE else f"{name}/__init__.py" if folder.is_dir() else f"{name}.py"
        text = _TEMPLATE.format(name=name, class_name=class_name, source=source, metric_names=metric_names)
        sources[f"{name}/{name}.py"] = text.replace("'", '"') if "'" in text else text
    return sources


if __name__ == "__main__":
    for relative_path, text in evaluate_sources().items():
        write_text(_FOLDER / relative_path, text)
