"""Commands that score and compare captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfcap.cli.common import Force, app, execute, say
from hfcap.progress import console


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="result file with image_id and caption, or a run or recipe")],
    references: Annotated[Path | None, typer.Argument(help="human captions (COCO JSON, JSON lines, mapping)")] = None,
    metrics: Annotated[str, typer.Option(help="comma-separated; see 'hfcap list metrics'")] = "bleu,rouge_l,cider",
    document_frequencies: Annotated[
        str, typer.Option(help="CIDEr-D: corpus, coco-train, coco-val or a file")
    ] = "corpus",
    option: Annotated[
        list[str] | None, typer.Option(help="metric.option=value, e.g. clip_score.images=FOLDER; may be repeated")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="score file to write")] = None,
    split: Annotated[str | None, typer.Option(help="which images of a reference file with splits")] = None,
    n_resamples: Annotated[int, typer.Option(min=0, help="bootstrap resamples for the intervals; 0 = none")] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="score only the images with a prediction")
    ] = False,
    force: Force = False,
) -> None:
    """Score any caption file against human captions; with one argument, a run."""
    if references is None:
        done = execute(str(predictions), None, "score", force)
        if done.accelerator.is_main_process:
            done.print_scores()
        return
    from hfcap.recipe_loading import metric_options_from
    from hfcap.score_table import score_table
    from hfcap.scoring import score_files, signature_line

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    report = score_files(
        predictions,
        references,
        metrics=names,
        document_frequencies=document_frequencies,
        metric_options=metric_options_from(option or [], names),
        output=output,
        split=split,
        n_resamples=n_resamples,
        seed=seed,
        allow_missing=allow_missing,
    )
    console.print(score_table({predictions.name: report}, f"Scores x 100 on {report.n_images:,} pictures"))
    say(signature_line(report.signature))
    if output is not None:
        say(f"Scores: {output}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run directories or score files")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="folder for the leaderboard")] = None,
) -> None:
    """Compare runs or score files: a leaderboard with intervals and paired differences."""
    from hfcap.comparison import compare as compare_runs

    console.print(compare_runs(runs, output))
