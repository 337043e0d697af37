"""The command that lets a model judge captioners."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import hfcap
from hfcap.cli.common import app, given_options, output_folder, refuse_idle, say
from hfcap.errors import UserError
from hfcap.progress import console

Systems = Annotated[
    list[Path] | None, typer.Argument(help="two or more run directories or prediction files", show_default=False)
]
Model = Annotated[
    str | None, typer.Option(help="the judge: folder or Hub id of a vision-language model; or a server's name for it")
]
BaseUrl = Annotated[str | None, typer.Option(help="address of an OpenAI-compatible server: http://HOST:PORT/v1")]
Output = Annotated[
    Path | None, output_folder("folder for answers.jsonl, where a stopped command goes on, and the result")
]
People = Annotated[
    str | None, typer.Option(help="preferences of people, to measure the judge's agreement in place of ranking systems")
]
Agreement = Annotated[Path | None, typer.Option(help="agreement.json of this judge, made by --people")]
NImages = Annotated[int | None, typer.Option(min=2, help="that many images, drawn at random; default: all")]
Split = Annotated[str | None, typer.Option(help="of runs, or of a dataset of --people")]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="compare on the images that all systems have captions of")
]
Prompt = Annotated[str | None, typer.Option(help="the question, with {caption_1} and {caption_2}")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="longest answer; default: 256")]
Option = Annotated[
    list[str] | None,
    typer.Option(
        help="name=value: revision, dtype, device, batch_size; of a server images_may_leave, api_key_env, "
        "max_concurrency, timeout, max_retries, max_side, image_format, extra_body; may be repeated"
    ),
]
Resamples = Annotated[int, typer.Option(min=100, help="bootstrap resamples of the images")]
Seed = Annotated[int, typer.Option(min=0, help="of the bootstrap, and of --n-images")]


@app.command()
def judge(
    systems: Systems = None,
    model: Model = None,
    base_url: BaseUrl = None,
    images: Annotated[Path | None, typer.Option(help="folder of the images; runs know theirs")] = None,
    output: Output = None,
    people: People = None,
    agreement: Agreement = None,
    n_images: NImages = None,
    split: Split = None,
    allow_missing: AllowMissing = False,
    prompt: Prompt = None,
    max_new_tokens: MaxNewTokens = None,
    option: Option = None,
    n_resamples: Resamples = 1000,
    seed: Seed = 0,
) -> None:
    """Let a vision-language model say which captions are better: every pair in both orders, Bradley-Terry ranking."""
    asked = given_options(model=model, base_url=base_url, prompt=prompt, max_new_tokens=max_new_tokens)
    common: dict[str, Any] = {
        **_named(option or []),
        **asked,
        "images": images,
        "output": output,
        "split": split,
        "n_resamples": n_resamples,
        "seed": seed,
        "progress": True,
    }
    if people is None:
        _rank(systems or [], {**common, "agreement": agreement, "n_images": n_images, "allow_missing": allow_missing})
        return
    if systems:
        raise UserError(f"--people: measures the judge itself; leave out {systems[0]}, or give --people alone")
    why = "has no effect with --people, which measures the judge; leave it out"
    refuse_idle(why, agreement=agreement, n_images=n_images, allow_missing=allow_missing)
    _measure(people, common)


def _named(assignments: Sequence[str]) -> dict[str, Any]:
    """Options of the judge that are given as name=value; values are YAML."""
    from hfcap.recipe import strict_yaml

    found: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator:
            raise UserError(f"--option {assignment!r}: write name=value, e.g. dtype=bfloat16")
        try:
            found[name.strip()] = strict_yaml.parse(value).value
        except strict_yaml.YamlProblem as error:
            raise UserError(f"--option {assignment!r}: {error}; correct the value") from None
    return found


def _rank(systems: Sequence[Path], options: dict[str, Any]) -> None:
    from hfcap.arena import ranking_table
    from hfcap.arena.ranking import sentences
    from hfcap.arena.showing import conditions_line

    ranking = hfcap.judge(systems, **options)
    console.print(ranking_table(ranking))
    for line in sentences(ranking):
        say(line)
    say(conditions_line(ranking))
    if options["output"] is not None:
        say(f"Ranking: {options['output'] / 'ranking.md'}")


def _measure(people: str, options: dict[str, Any]) -> None:
    from hfcap.judgments import agreement_table

    report = hfcap.measure_judge(people, **options)
    console.print(agreement_table(report))
    for note in report.notes:
        say(note)
    if options["output"] is not None:
        say(f"Agreement: {options['output'] / 'agreement.json'}")
