"""Commands that score and compare captions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import hfcap
from hfcap.cli.common import (
    AcceptChanges,
    Force,
    TrustRemoteCode,
    app,
    execute,
    output_file,
    output_folder,
    refuse_idle,
    say,
)
from hfcap.errors import UserError
from hfcap.files import no_folder
from hfcap.progress import console
from hfcap.schema import ScoreReport

if TYPE_CHECKING:
    from hfcap.comparison import Comparison, ImageSource, LanguageComparison

DEFAULT_METRICS = "bleu,rouge_l,cider"

Metrics = Annotated[
    str | None, typer.Option(help=f"comma-separated; see 'hfcap list metrics'; default: {DEFAULT_METRICS}")
]
DocumentFrequencies = Annotated[
    str | None, typer.Option(help="CIDEr-D: corpus, coco-train, coco-val or a file; default: corpus")
]
MetricOption = Annotated[
    list[str] | None, typer.Option(help="metric.option=value, e.g. clip_score.images=FOLDER; may be repeated")
]
Language = Annotated[
    str | None,
    typer.Option(help="of the captions (ISO 639: de, zh, ...), which says how they are split into words; default: en"),
]
By = Annotated[
    list[str] | None,
    typer.Option(
        help="also score the images of each value of a column (domain, source, ...) apart; without such a column: "
        "length, people, counts, colours or relations of the human captions; may be repeated"
    ),
]
FindSlices = Annotated[
    bool,
    typer.Option(
        "--find-slices", help="find words, colours, counts, ... whose images score significantly worse than all others"
    ),
]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="score only the images with a prediction")]


def _scoring(metrics: str | None, document_frequencies: str | None, option: list[str] | None) -> dict[str, Any]:
    """Arguments of score_files that say what is computed."""
    from hfcap.recipe.loading import metric_options_from

    names = [name.strip() for name in (metrics or DEFAULT_METRICS).split(",") if name.strip()]
    return {
        "metrics": names,
        "document_frequencies": document_frequencies or "corpus",
        "metric_options": metric_options_from(option or [], names),
    }


def _refuse_options_of_files(run: Path, of_output: dict[str, object], **of_scoring: object) -> None:
    """Refuse what a run's recipe says, and what only scores of files have.

    Raises:
        UserError: names every option that is given.
    """
    refuse_idle(
        "a run is scored as its recipe says: change score.metrics, score.document_frequencies, "
        "score.metric_options, score.language, score.by, score.find_slices, score.split, score.n_resamples or "
        f"score.seed, as in: hfcap run {run} score.n_resamples=500",
        **of_scoring,
    )
    refuse_idle(
        "does not apply to a run, whose scores are in its folder; to score its predictions otherwise, give the "
        "files: hfcap score PREDICTIONS REFERENCES",
        **of_output,
    )


def _show(report: ScoreReport, name: str) -> None:
    """Print what scores mean, their table, their slices and their conditions."""
    from hfcap.scoring import signature_line
    from hfcap.scoring.score_table import print_slices, score_table
    from hfcap.scoring.signature import agreement_lines
    from hfcap.scoring.verdict import main_score

    if (main := main_score(report)) is not None:
        say(f"{main}.")
    console.print(score_table({name: report}, f"Scores x 100 on {report.n_images:,} images"))
    print_slices(report)
    for line in agreement_lines(report.signature):
        say(line)
    say(signature_line(report.signature))


def _refuse_what_is_no_run(path: Path) -> None:
    if path.suffix in (".json", ".jsonl", ".csv"):
        raise UserError(f"{path}: give the human captions after it, as in: hfcap score {path} REFERENCES")
    if path.is_dir() and not (path / "recipe.yaml").is_file():
        raise UserError(
            f"{path}: no run directory (no recipe.yaml); give one that 'hfcap run' made, or two files: "
            "hfcap score PREDICTIONS REFERENCES"
        )


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="result file with image_id and caption, or a run or recipe")],
    references: Annotated[Path | None, typer.Argument(help="human captions (COCO JSON, JSON lines, mapping)")] = None,
    metrics: Metrics = None,
    document_frequencies: DocumentFrequencies = None,
    option: MetricOption = None,
    language: Language = None,
    output: Annotated[Path | None, output_file("score file to write")] = None,
    split: Annotated[str | None, typer.Option(help="which images of a reference file with splits")] = None,
    n_resamples: Annotated[
        int | None, typer.Option(min=0, help="bootstrap resamples for the intervals; 0 = none; default: 1000")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of the bootstrap; default: 0")] = None,
    allow_missing: AllowMissing = False,
    by: By = None,
    find_slices: FindSlices = False,
    force: Force = False,
    accept_changes: AcceptChanges = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score any caption file against human captions; with one argument, a run."""
    if references is None:
        _refuse_what_is_no_run(predictions)
        _refuse_options_of_files(
            predictions,
            {"output": output, "allow_missing": allow_missing},
            metrics=metrics,
            document_frequencies=document_frequencies,
            option=option,
            language=language,
            split=split,
            n_resamples=n_resamples,
            seed=seed,
            by=by or None,
            find_slices=find_slices,
        )
        done = execute(str(predictions), None, "score", force, trust_remote_code, accept_changes)
        if done.accelerator.is_main_process:
            done.print_scores()
        return
    report = hfcap.score(
        predictions,
        references,
        **_scoring(metrics, document_frequencies, option),
        language=language,
        output=output,
        progress=True,
        split=split,
        n_resamples=1000 if n_resamples is None else n_resamples,
        seed=seed or 0,
        allow_missing=allow_missing,
        by=by or (),
        find_slices=find_slices,
    )
    _show(report, predictions.name)
    if output is not None:
        say(f"Scores: {output}")


@app.command()
def compare(
    systems: Annotated[
        list[Path],
        typer.Argument(
            help="run directories, score files, also of several languages and in folders, or prediction files"
        ),
    ],
    references: Annotated[Path | None, typer.Option(help="human captions, to score prediction files")] = None,
    metrics: Metrics = None,
    document_frequencies: DocumentFrequencies = None,
    option: MetricOption = None,
    language: Language = None,
    output: Annotated[Path | None, output_folder("folder for the leaderboard")] = None,
    split: Annotated[str | None, typer.Option(help="which split of runs and of the human captions")] = None,
    n_resamples: Annotated[int, typer.Option(min=100, help="of the bootstrap and the permutation test")] = 10_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    allow_missing: AllowMissing = False,
    show_images: Annotated[
        bool, typer.Option("--show-images", help="small copies of the runs' images in leaderboard.html")
    ] = False,
    pictures: Annotated[bool, typer.Option("--pictures", hidden=True)] = False,
    images: Annotated[Path | None, typer.Option(help="the same, from this folder of images")] = None,
    examples: Annotated[int, typer.Option(min=0, max=100, help="wins and losses shown for each pair")] = 6,
) -> None:
    """Compare runs, score files or (with --references) prediction files: intervals and paired differences."""
    from hfcap.api.scores import compare_files
    from hfcap.comparison import ImageSource

    source = ImageSource(images) if show_images or pictures or images is not None else None
    if source is not None and output is None:
        raise UserError("--show-images and --images: the images are in leaderboard.html; give its folder with -o")
    if images is not None and not images.is_dir():
        raise UserError(f"--images: {no_folder(images, 'image folder', 'give the folder of the images')}")
    if references is None:
        refuse_idle(
            "runs and score files are compared by the scores they have; give --references to score prediction files",
            metrics=metrics,
            document_frequencies=document_frequencies,
            option=option,
            language=language,
            allow_missing=allow_missing,
        )
        found = compare_files(systems, split=split, n_resamples=n_resamples, seed=seed)
    else:
        found = hfcap.compare(
            systems,
            references=references,
            **_scoring(metrics, document_frequencies, option),
            language=language,
            split=split,
            n_resamples=n_resamples,
            seed=seed,
            allow_missing=allow_missing,
            progress=True,
        )
    _show_comparison(found)
    if output is not None:
        _write_comparison(found, output, references, source, examples)


def _show_comparison(found: Comparison | LanguageComparison) -> None:
    from hfcap.comparison import LanguageComparison, language_table, leaderboard_table

    with_warnings = not console.is_terminal  # there they were said on standard error
    if isinstance(found, LanguageComparison):
        console.print(language_table(found, with_warnings))
    else:
        console.print(leaderboard_table(found, with_warnings))


def _write_comparison(
    found: Comparison | LanguageComparison,
    folder: Path,
    references: Path | None,
    images: ImageSource | None,
    n_examples: int,
) -> None:
    from hfcap.comparison import LanguageComparison, write_language_table, write_leaderboard

    if isinstance(found, LanguageComparison):
        if images is not None:
            say("The page of several languages shows no images; compare the score files of one language to see them.")
        write_language_table(found, folder)
    else:
        write_leaderboard(found, folder, references=references, images=images, n_examples=n_examples)
    say(f"Leaderboard: {folder / 'leaderboard.html'}")


@app.command("judge-metrics")
def judge_metrics(
    dataset: Annotated[str, typer.Argument(help="human judgments of captions: file, folder or Hub id")],
    references: Annotated[
        list[Path] | None, typer.Option(help="human captions, where the judgments hold none; may be repeated")
    ] = None,
    metrics: Metrics = None,
    document_frequencies: DocumentFrequencies = None,
    option: MetricOption = None,
    language: Language = None,
    output: Annotated[Path | None, output_folder("folder for agreement.json and agreement.html")] = None,
    split: Annotated[str | None, typer.Option(help="of a dataset; default: test")] = None,
    config_name: Annotated[str | None, typer.Option(help="configuration (subset) of a dataset on the Hub")] = None,
    n_resamples: Annotated[int, typer.Option(min=100, help="bootstrap resamples of the images")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Compare metrics with human judgments: Kendall's tau or accuracy, intervals, paired tests, published values."""
    from hfcap.judgments import agreement_table
    from hfcap.scoring.signature import flattened

    report = hfcap.judge_metrics(
        dataset,
        references=references or (),
        **_scoring(metrics, document_frequencies, option),
        language=language or "en",
        output=output,
        split=split,
        config_name=config_name,
        n_resamples=n_resamples,
        seed=seed,
        progress=True,
    )
    console.print(agreement_table(report))
    say("|".join(f"{key}:{value}" for key, value in flattened(report.signature)))
    if output is not None:
        say(f"Agreement: {output / 'agreement.html'}")
