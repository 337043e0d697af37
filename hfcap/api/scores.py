"""Scores and comparisons from Python: of files, or of captions in memory; no torch unless a metric looks at images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcap.errors import UserError, shown
from hfcap.metrics.shared.caption_files import each_once, normalised_image_id, warn_on_terminal
from hfcap.metrics.suite import DEFAULT_METRICS
from hfcap.progress import reported
from hfcap.schema import Caption, ScoreReport

if TYPE_CHECKING:
    from hfcap.comparison import Comparison, LanguageComparison, System
    from hfcap.judgments import AgreementReport
    from hfcap.scoring.score import Predictions, References

PathLike = str | os.PathLike[str]
Captions = PathLike | Mapping[Any, str | Caption] | Sequence[str | Caption]
"""A file of captions, image id -> caption, or captions in the order of the references."""
HumanCaptions = PathLike | Mapping[Any, str | Sequence[str]] | Sequence[str | Sequence[str]]
"""A file of human captions, image id -> captions, or captions in the order of the predictions."""


def score(
    predictions: Captions,
    references: HumanCaptions,
    *,
    metrics: Sequence[str] | str = DEFAULT_METRICS,
    document_frequencies: str = "corpus",
    metric_options: Mapping[str, Mapping[str, Any]] | None = None,
    language: str | None = None,
    split: str | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    allow_missing: bool = False,
    by: Sequence[str] | str = (),
    find_slices: bool = False,
    output: PathLike | None = None,
    progress: bool = False,
) -> ScoreReport:
    """Score captions against human captions, as `hfcap score` does.

    Args:
        predictions: a file (JSON lines, COCO results, a JSON mapping, CSV), image id -> caption, or a list.
        references: a file (COCO JSON, Karpathy JSON, JSON lines, a JSON mapping, CSV), image id -> captions, or a
            list in the order of the predictions.
        metrics: names; `hfcap list metrics` describes them.
        document_frequencies: CIDEr-D's n-gram weights: "corpus", "coco-train", "coco-val" or a file.
        metric_options: metric name -> its options.
        language: of the captions, an ISO 639 code; None = English, or found where words have no spaces between them.
        split: which images of a reference file with splits.
        n_resamples: bootstrap resamples of the intervals; 0 = none. seed: of the bootstrap.
        allow_missing: score only the images with a prediction.
        by: columns of the files whose values are also scored apart, or length, people, counts, colours, relations.
        find_slices: also find words, colours, counts and the like whose images score significantly worse than all
            others; see `ScoreReport.error_slices`.
        output: score file to write.
        progress: warnings go to the terminal; otherwise to the logger "hfcap".

    Raises:
        UserError: a file, metric or option is wrong, or predictions and references are not about the same images.
    """
    from hfcap.scoring import score_files

    predicted, human = _matching(predictions, references)
    with reported(progress):
        return score_files(
            predicted,
            human,
            metrics=_names(metrics),
            document_frequencies=document_frequencies,
            metric_options=metric_options,
            language=language,
            split=split,
            n_resamples=n_resamples,
            seed=seed,
            allow_missing=allow_missing,
            by=_names(by),
            find_slices=find_slices,
            output=None if output is None else Path(output),
        )


def compare(
    systems: PathLike | Iterable[PathLike] | Mapping[str, ScoreReport | Captions],
    *,
    references: HumanCaptions | None = None,
    metrics: Sequence[str] | str = DEFAULT_METRICS,
    document_frequencies: str = "corpus",
    metric_options: Mapping[str, Mapping[str, Any]] | None = None,
    language: str | None = None,
    split: str | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
    allow_missing: bool = False,
    output: PathLike | None = None,
    images: bool | PathLike = False,
    n_examples: int = 6,
    progress: bool = False,
) -> Comparison:
    """Compare captioners by their scores: intervals and paired differences to the best, as `hfcap compare` does.

    `print` shows the result as a leaderboard.

    Args:
        systems: run directories, score files or, with `references`, prediction files; or name -> one of these, the
            report of `score`, or captions as `score` takes them. A run is what `hfcap.train` returned, or its folder.
        references: human captions, to score predictions.
        metrics, document_frequencies, metric_options, language, allow_missing: of that scoring; see `score`.
        split: which split of runs and of the human captions.
        n_resamples: of the bootstrap and the permutation test, at least 100. seed: of both.
        output: folder for leaderboard.md, .json and .html.
        images: True = small copies of the runs' images in leaderboard.html; a folder = from there.
        n_examples: wins and losses shown for each pair.
        progress: warnings go to the terminal; otherwise to the logger "hfcap".

    Raises:
        UserError: something cannot be read, or the systems were scored on different images or human captions.
    """
    from hfcap.comparison import ImageSource, write_leaderboard

    options = {
        "metrics": metrics,
        "document_frequencies": document_frequencies,
        "metric_options": metric_options,
        "language": language,
    }
    score_one = None if references is None else _scorer(references, split, allow_missing, options)
    with reported(progress):
        comparison = _leaderboard(_read(systems, split, score_one), n_resamples, seed)
        if output is not None:
            source = ImageSource(None if images is True else Path(images)) if images is not False else None
            human = Path(references) if isinstance(references, str | os.PathLike) else None
            write_leaderboard(comparison, Path(output), references=human, images=source, n_examples=n_examples)
    return comparison


def compare_languages(
    systems: PathLike | Iterable[PathLike] | Mapping[str, Iterable[PathLike | ScoreReport]],
    *,
    split: str | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
    output: PathLike | None = None,
    progress: bool = False,
) -> LanguageComparison:
    """Compare captioners that were scored in several languages: a column for each, as `hfcap compare` does.

    Tests are within each language; its mean is the plain one of the columns. `print` shows the tables.

    Args:
        systems: score files (or run directories, or folders of score files), which are one system where their names
            without the language are the same; or name -> its score files, folders of them, or reports of `score`.
        split: which split of runs.
        n_resamples: of the bootstrap and the permutation test, at least 100. seed: of both.
        output: folder for leaderboard.md, .json and .html.
        progress: warnings go to the terminal; otherwise to the logger "hfcap".

    Raises:
        UserError: something cannot be read or does not say its language, a system has two score files in one language,
            or within a language images, human captions or tokenisers differ.
    """
    from hfcap.comparison import named_by_files

    with reported(progress):
        if isinstance(systems, Mapping):
            read = [one for name, given in systems.items() for one in _in_languages(name, given, split)]
        else:
            read = named_by_files(_read(systems, split, None))
        return _languages(read, n_resamples, seed, output)


def compare_files(
    systems: Sequence[Path], *, split: str | None, n_resamples: int, seed: int
) -> Comparison | LanguageComparison:
    """Compare runs and score files, in one language or in several; see `compare` and `compare_languages`.

    Raises:
        UserError: see there.
    """
    from hfcap.comparison import in_several_languages, named_by_files

    with reported(True):
        read = _read(systems, split, None)
        if in_several_languages(read):
            return _languages(named_by_files(read), n_resamples, seed, None)
        return _leaderboard(read, n_resamples, seed)


def judge_metrics(
    dataset: PathLike,
    *,
    references: PathLike | Sequence[PathLike] = (),
    metrics: Sequence[str] | str = DEFAULT_METRICS,
    document_frequencies: str = "corpus",
    metric_options: Mapping[str, Mapping[str, Any]] | None = None,
    language: str = "en",
    split: str | None = None,
    config_name: str | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    output: PathLike | None = None,
    progress: bool = False,
) -> AgreementReport:
    """Find out how well metrics agree with human judgments of captions, as `hfcap judge-metrics` does.

    Args:
        dataset: file, folder or Hub id of judged captions; docs/scoring.md describes the layouts.
        references: file or files of human captions, for layouts that hold none (FOIL, Composite).
        metrics, document_frequencies, metric_options, language: of the scoring; see `score`.
        split, config_name: of a dataset.
        n_resamples: of the bootstrap over images, at least 100. seed: of it.
        output: folder for agreement.json and agreement.html.
        progress: warnings go to the terminal; otherwise to the logger "hfcap".

    Raises:
        UserError: the judgments cannot be read or do not differ, a metric or option is wrong, or no metric orders them.
        WorkError: the Hub cannot be reached.
    """
    from hfcap.judgments import judge_metrics as judge
    from hfcap.judgments import read_judgments, write_agreement

    files = [references] if isinstance(references, str | os.PathLike) else references
    with reported(progress):
        judgments = read_judgments(
            os.fspath(dataset), references=[Path(file) for file in files], split=split, config_name=config_name
        )
        report = judge(
            judgments,
            metrics=_names(metrics),
            metric_options=metric_options,
            document_frequencies=document_frequencies,
            language=language,
            n_resamples=n_resamples,
            seed=seed,
        )
        if output is not None:
            write_agreement(report, Path(output))
    return report


def _scorer(
    references: HumanCaptions, split: str | None, allow_missing: bool, options: Mapping[str, Any]
) -> Callable[[Any], ScoreReport]:
    """Return what scores one system, without intervals: a comparison makes its own."""
    from hfcap.scoring import score_files

    # The human captions are read for each system, and what is to be said of them is the same.
    warn = each_once(warn_on_terminal)
    options = {**options, "metrics": _names(options["metrics"])}

    def score_one(predictions: Any) -> ScoreReport:
        predicted, human = _matching(predictions, references)
        return score_files(
            predicted, human, split=split, allow_missing=allow_missing, n_resamples=0, warn=warn, **options
        )

    return score_one


def _names(metrics: Sequence[str] | str) -> list[str]:
    return [metrics] if isinstance(metrics, str) else list(metrics)


def _read(systems: Any, split: str | None, score_one: Any) -> list[System]:
    from hfcap.comparison import read_systems

    if isinstance(systems, Mapping):
        return [_named_system(name, given, split, score_one) for name, given in systems.items()]
    paths = [Path(path) for path in ([systems] if isinstance(systems, str | os.PathLike) else systems)]
    return read_systems(paths, split, score_one)


def _leaderboard(systems: Sequence[System], n_resamples: int, seed: int) -> Comparison:
    from hfcap.comparison import compare_systems
    from hfcap.comparison.rendering import PrintableComparison

    return PrintableComparison(**vars(compare_systems(systems, n_resamples=n_resamples, seed=seed)))


def _languages(systems: Sequence[System], n_resamples: int, seed: int, output: PathLike | None) -> LanguageComparison:
    from hfcap.comparison import compare_languages as compare_read
    from hfcap.comparison import write_language_table
    from hfcap.comparison.languages import PrintableLanguages

    found = compare_read(systems, n_resamples=n_resamples, seed=seed)
    if output is not None:
        write_language_table(found, Path(output))
    return PrintableLanguages(**vars(found))


def _in_languages(name: str, given: Any, split: str | None) -> list[System]:
    """The score files of one system under its name."""
    from hfcap.comparison import System, read_systems

    entries = [given] if isinstance(given, str | os.PathLike | ScoreReport) else list(given)
    found = [System(name, Path(name), one) for one in entries if isinstance(one, ScoreReport)]
    paths = [Path(one) for one in entries if not isinstance(one, ScoreReport)]
    return found + [replace(one, name=name) for one in read_systems(paths, split)]


def _named_system(name: str, given: Any, split: str | None, score_one: Any) -> System:
    from hfcap.comparison import System, read_system

    if isinstance(given, ScoreReport):
        return System(name, Path(name), given)
    if isinstance(given, str | os.PathLike):
        return replace(read_system(Path(given), split, score_one), name=name)
    if score_one is None:
        raise UserError(f"{name}: to compare captions, give their human captions (references)")
    return System(name, Path(name), score_one(given))


def _matching(predictions: Captions, references: HumanCaptions) -> tuple[Predictions, References]:
    """Return both as paths or mappings; lists become mappings by their order.

    Raises:
        UserError: a list beside something without order, lists of different lengths, or what is no caption.
    """
    listed = [_is_list(predictions), _is_list(references)]
    if any(listed):
        if not all(listed):
            raise UserError("predictions and references: give both as lists in the same order, or both by image id")
        assert isinstance(predictions, Sequence) and isinstance(references, Sequence)
        if len(predictions) != len(references):
            raise UserError(f"{len(predictions):,} predictions and {len(references):,} references; give one for each")
        predictions, references = dict(enumerate(predictions)), dict(enumerate(references))
    return _predicted(predictions), _human(references)


def _is_list(given: object) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str)


def _predicted(predictions: Any) -> Predictions:
    if isinstance(predictions, str | os.PathLike):
        return Path(predictions)
    captions: dict[str, str] = {}
    for image_id, caption in _mapping(predictions, "predictions").items():
        text = caption.text if isinstance(caption, Caption) else caption
        if not isinstance(text, str):
            raise UserError(
                f"predictions: the caption of image {image_id!r} must be text or a Caption, not {shown(caption)}"
            )
        captions[normalised_image_id(image_id, "predictions")] = text
    return captions


def _human(references: Any) -> References:
    if isinstance(references, str | os.PathLike):
        return Path(references)
    captions: dict[str, tuple[str, ...]] = {}
    for image_id, group in _mapping(references, "references").items():
        texts = [group] if isinstance(group, str) else list(group)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"references: image {image_id!r} needs a text or a list of texts, not {shown(group)}")
        captions[normalised_image_id(image_id, "references")] = tuple(texts)
    return captions


def _mapping(given: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(given, Mapping):
        raise UserError(f"{what}: give a file, a mapping from image id, or a list, not {type(given).__name__}")
    return given
