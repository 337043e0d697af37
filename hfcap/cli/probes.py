"""The command that asks captioners about objects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfcap.cli.common import TrustRemoteCode, app, output_folder, say
from hfcap.progress import console

Vocabulary = Annotated[
    Path | None, typer.Option(help="your own objects and their synonyms; default: COCO's 80 categories")
]
NImages = Annotated[int, typer.Option(min=1, help="images at most, drawn at random")]
NQuestions = Annotated[int, typer.Option(min=1, help="per image: about what is there, and of each kind")]
Kinds = Annotated[str, typer.Option(help="how objects that are not there are chosen, comma-separated")]
QuestionText = Annotated[str | None, typer.Option(help="with {object} and its article {a}; default: POPE's")]


@app.command("probe-objects")
def probe_objects(
    model: Annotated[str, typer.Argument(help="run directory, model folder, Hub id, or address of a server")],
    annotations: Annotated[Path, typer.Argument(help="which objects are in which image: COCO's instances, JSON")],
    images: Annotated[Path, typer.Argument(help="folder of the images")],
    output: Annotated[Path | None, output_folder("folder for questions, answers and probe.json")] = None,
    vocabulary: Vocabulary = None,
    n_images: NImages = 500,
    n_questions: NQuestions = 3,
    kinds: Kinds = "random,popular,adversarial",
    question: QuestionText = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="of an answer")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="questions at a time")] = 16,
    n_resamples: Annotated[int, typer.Option(min=0, help="bootstrap resamples of the images")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="of the questions and the bootstrap")] = 0,
    revision: Annotated[str | None, typer.Option(help="commit, tag or branch of the model on the Hub")] = None,
    trust_remote_code: TrustRemoteCode = False,
    force: Annotated[bool, typer.Option("--force", help="forget what a stopped probe has done")] = False,
) -> None:
    """Ask a captioner whether objects are in images (as POPE does): accuracy, precision, recall, F1, share of yes.

    With -o, a stopped probe goes on where it was.
    """
    from hfcap.api.probes import probe_objects as probe
    from hfcap.captioners.quiet import quiet_loading
    from hfcap.probes import probe_table
    from hfcap.scoring.signature import flattened

    quiet_loading()
    names = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    report = probe(
        model,
        annotations,
        images,
        output=output,
        vocabulary=vocabulary,
        n_images=n_images,
        n_questions=n_questions,
        kinds=names,
        question=question,
        seed=seed,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        n_resamples=n_resamples,
        revision=revision,
        trust_remote_code=trust_remote_code,
        again=force,
        progress=True,
    )
    console.print(probe_table(report))
    if report.unanswered:
        say(f"{report.unanswered:,} questions without an answer count as wrong.")
    say("|".join(f"{key}:{value}" for key, value in flattened(report.signature)))
    if output is not None:
        say(f"Probe: {output / 'probe.json'}")
