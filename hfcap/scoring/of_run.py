"""Scoring of a run: the recipe's options, and what only the run knows (images, training captions, n-best lists)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hfcap.metrics.shared.caption_files import each_once, warn_on_terminal
from hfcap.metrics.shared.images import Images
from hfcap.metrics.suite import CaptionSuite, metric_class
from hfcap.recipe.blocks import Recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import CaptionedImage
from hfcap.scoring.columns import groups_by
from hfcap.scoring.error_slices import directions_of
from hfcap.scoring.images import images_of_records
from hfcap.scoring.score import found_language, score_files

Records = Callable[[Literal["train", "validation", "test"]], Sequence[CaptionedImage]]


@dataclass(frozen=True)
class RunScoring:
    """How a run's predictions are scored.

    Attributes:
        recipe: its `score` block says what is computed.
        directory: where predictions and references lie and score files go.
        records: the images and captions of a split of the run's data.
    """

    recipe: Recipe
    directory: RunDirectory
    records: Records

    @property
    def other_splits(self) -> list[Literal["train"]]:
        """Splits besides the scored one that metrics read."""
        given = self.recipe.score.metric_options.get("diversity", {})
        return ["train"] if "diversity" in self.recipe.score.metrics and "training_captions" not in given else []

    def check(self) -> None:
        """Make the metrics once: what they lack is better known before hours of training.

        Raises:
            UserError: the resources of a metric are missing (word lists, annotations, a Java program).
        """
        options = self._metric_options()
        for name in self._looking():
            options[name]["image_source"] = self._image_source()
        score, language = self.recipe.score, self.recipe.caption_language
        if language is None:
            human = {record.image_id: record.captions for record in self.records(score.split)}
            language = found_language(human, lambda message: None)  # scoring says it
        suite = CaptionSuite(score.metrics, score.document_frequencies, options, language)
        if score.find_slices:
            directions_of(suite.metrics)
        if score.by:
            records = self.records(score.split)
            human = {record.image_id: record.captions for record in records}
            rows = {record.image_id: {"group": record.group} for record in records}
            groups_by(score.by, rows, human, suite.tokenizer.words, lambda message: None)

    def score(self, names: Sequence[str], signature: Mapping[str, Any]) -> None:
        """Write the score file of each prediction file.

        Args:
            names: of prediction files: the split, and baselines on it.
            signature: conditions only the run knows.

        Raises:
            UserError: a metric's resources are missing, or an image cannot be read.
        """
        options = self.recipe.score
        metric_options, image_source = self._metric_options(), self._image_source() if self._looking() else None
        # What is to be said of the images and human captions is the same for the baselines.
        warn = each_once(warn_on_terminal)
        for name in names:
            predictions = self.directory.predictions(name)
            if "diversity" in metric_options and "candidates" not in options.metric_options.get("diversity", {}):
                metric_options["diversity"]["candidates"] = predictions
            score_files(
                predictions,
                self.directory.references(options.split),
                metrics=options.metrics,
                document_frequencies=options.document_frequencies,
                language=self.recipe.caption_language,
                metric_options=metric_options,
                image_source=image_source,
                output=self.directory.scores(name),
                split=options.split,
                confidence_level=options.confidence_level,
                n_resamples=options.n_resamples,
                seed=options.seed,
                signature=signature,
                by=options.by,
                # Where baselines are worse says nothing of the captioner.
                find_slices=options.find_slices and name == options.split,
                warn=warn,
            )

    def _metric_options(self) -> dict[str, dict[str, Any]]:
        score = self.recipe.score
        options = {name: dict(score.metric_options.get(name, {})) for name in score.metrics}
        for split in self.other_splits:
            captions = (caption for record in self.records(split) for caption in record.captions)
            options["diversity"]["training_captions"] = tuple(captions)
        return options

    def _looking(self) -> list[str]:
        """Metrics that look at the run's images: the recipe names no other folder."""
        score = self.recipe.score
        looking = [name for name in score.metrics if metric_class(name).looks_at_images]
        return [name for name in looking if "images" not in score.metric_options.get(name, {})]

    def _image_source(self) -> Images:
        """The images of the scored split."""
        score, data = self.recipe.score, self.recipe.data
        folder = None if data.feature_store_folder is None else Path(data.feature_store_folder)
        stored, workers = data.may_store_features, self.recipe.train.loading_workers
        return images_of_records(self.records(score.split), folder, stored=stored, num_workers=workers)
