"""The command line: thin commands over functions; exit code 0 done, 1 the work failed, 2 the input is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hfcap import __version__
from hfcap.errors import StoppedError, UserError, WorkError
from hfcap.progress import console, error_console

if TYPE_CHECKING:
    from hfcap.recipe import Recipe
    from hfcap.stages import Run, StageName

app = typer.Typer(
    help="Compare, cheaply fine-tune and publish image captioners on the Hugging Face stack.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Get datasets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

RecipeOrRun = Annotated[str, typer.Argument(help="recipe file, or run directory", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="recipe keys to change, key=value", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="do this stage again although its output is there")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that comes with the model; only if you trust its author")
]


def _recipe(target: str, overrides: list[str] | None) -> Recipe:
    from hfcap.recipe_loading import load_recipe
    from hfcap.run_directory import RunDirectory

    path = Path(target)
    if path.is_dir():
        path = RunDirectory.existing(path).recipe
    return load_recipe(path, overrides or [])


def _say(text: str) -> None:
    """Print a result as it is: paths are neither wrapped nor read as markup."""
    console.print(text, markup=False, soft_wrap=True)


def _execute(target: str, overrides: list[str] | None, last: StageName, force: bool = False) -> Run:
    from hfcap.captioners.parts import quiet_loading
    from hfcap.stages import Run

    quiet_loading()
    run = Run(_recipe(target, overrides))
    run.execute(last, force)
    return run


@app.command()
def run(recipe: RecipeOrRun, overrides: Overrides = None) -> None:
    """Do every stage: train, caption, score, write the card, publish. Finished stages are skipped."""
    done = _execute(recipe, overrides, "publish")
    if done.accelerator.is_main_process:
        done.print_scores()
        _say(f"Run directory: {done.directory.path}")
        _say(f"Card:          {done.directory.card}")
        _say(f"To publish:    {done.directory.publish}")
        trust = " --trust-remote-code" if done.recipe.model.trust_remote_code else ""
        _say(f"Next, caption a picture of your own:  hfcap caption {done.directory.path} PICTURE.jpg{trust}")


@app.command()
def train(recipe: RecipeOrRun, overrides: Overrides = None, force: Force = False) -> None:
    """Train, or continue training, up to the finished model."""
    done = _execute(recipe, overrides, "train", force)
    if done.accelerator.is_main_process:
        _say(f"Model: {done.directory.model}")


@app.command()
def caption(
    model: Annotated[str, typer.Argument(help="run directory, model folder, Hub id, or a recipe file")],
    inputs: Annotated[list[str] | None, typer.Argument(help="pictures: files, folders, patterns")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="FILE.jsonl or FILE.csv")] = None,
    prompt: Annotated[str | None, typer.Option(help="text that every caption starts with")] = None,
    num_beams: Annotated[int | None, typer.Option(min=1)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    num_return_sequences: Annotated[int | None, typer.Option(min=1, help="captions per picture")] = None,
    do_sample: Annotated[bool | None, typer.Option("--sample", help="draw captions instead of searching")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.01)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1.0)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures at a time")] = 16,
    revision: Annotated[str | None, typer.Option(help="commit, tag or branch on the Hub")] = None,
    trust_remote_code: TrustRemoteCode = False,
    force: Force = False,
) -> None:
    """Caption pictures with a trained captioner; without pictures, the scored split of a run."""
    if not inputs:
        done = _execute(model, None, "caption", force)
        if done.accelerator.is_main_process:
            _say(f"Predictions: {done.directory.predictions(done.recipe.score.split)}")
        return
    from pydantic import ValidationError

    from hfcap.captioners.parts import quiet_loading
    from hfcap.captioning import caption_pictures

    quiet_loading()
    given: dict[str, Any] = {
        "num_beams": num_beams,
        "max_new_tokens": max_new_tokens,
        "num_return_sequences": num_return_sequences,
        "do_sample": do_sample,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    if num_return_sequences is not None and num_beams is None and not do_sample:
        given["num_beams"] = max(num_return_sequences, 3)
    try:
        caption_pictures(
            model,
            inputs,
            output,
            overrides={name: value for name, value in given.items() if value is not None},
            prompt=prompt,
            batch_size=batch_size,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    except ValidationError as error:
        raise UserError("; ".join(str(problem["msg"]) for problem in error.errors())) from None
    if output is not None:
        _say(f"Captions: {output}")


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="result file with image_id and caption, or a run or recipe")],
    references: Annotated[Path | None, typer.Argument(help="human captions (COCO JSON, JSON lines, mapping)")] = None,
    metrics: Annotated[str, typer.Option(help="comma-separated; see 'hfcap list metrics'")] = "bleu,rouge_l,cider",
    document_frequencies: Annotated[
        str, typer.Option(help="CIDEr-D: corpus, coco-train, coco-val or a file")
    ] = "corpus",
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
        done = _execute(str(predictions), None, "score", force)
        if done.accelerator.is_main_process:
            done.print_scores()
        return
    from hfcap.score_table import score_table
    from hfcap.scoring import score_files, signature_line

    report = score_files(
        predictions,
        references,
        metrics=[name.strip() for name in metrics.split(",") if name.strip()],
        document_frequencies=document_frequencies,
        output=output,
        split=split,
        n_resamples=n_resamples,
        seed=seed,
        allow_missing=allow_missing,
    )
    console.print(score_table({predictions.name: report}, f"Scores x 100 on {report.n_images:,} pictures"))
    _say(signature_line(report.signature))
    if output is not None:
        _say(f"Scores: {output}")


@app.command()
def card(
    recipe: RecipeOrRun,
    check: Annotated[
        bool, typer.Option("--check", help="only list facts that the card lacks; exit code 1 if any")
    ] = False,
) -> None:
    """Write the model card of a run."""
    if check:
        from hfcap.publishing.card import missing_facts
        from hfcap.run_directory import RunDirectory

        missing = missing_facts(RunDirectory.existing(Path(recipe)))
        for fact in missing:
            _say(f"missing: {fact}")
        if missing:
            raise typer.Exit(1)
        console.print("The card has every fact.")
        return
    done = _execute(recipe, None, "card", force=True)
    if done.accelerator.is_main_process:
        _say(f"Card: {done.directory.card}")


@app.command()
def publish(
    run_directory: Annotated[Path, typer.Argument(help="run directory")],
    repo_id: Annotated[str | None, typer.Option("--repo-id", help="namespace/name; default: the recipe's")] = None,
    private: Annotated[bool | None, typer.Option("--private/--public")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="open a pull request instead of committing")] = False,
    revision: Annotated[str | None, typer.Option(help="branch to commit to")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="publish merged weights instead of the adapter")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only stage and list the files")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace a published model whose scores are better")] = False,
) -> None:
    """Stage a run and push it to the Hub."""
    from hfcap.captioners.parts import quiet_loading
    from hfcap.publishing.push import publish as push
    from hfcap.run_directory import RunDirectory
    from hfcap.stages import merged_model

    quiet_loading()
    directory = RunDirectory.existing(run_directory)
    result = push(
        directory,
        repo_id=repo_id,
        private=private,
        create_pr=create_pr,
        dry_run=dry_run,
        revision=revision,
        force=force,
        model=merged_model(directory, wanted=merged),
    )
    _say(str(result))


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="run directory or adapter folder")],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder to write")],
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Fold a LoRA adapter into its base model and save a plain model folder."""
    from hfcap.captioners.loading import save_merged
    from hfcap.captioners.parts import quiet_loading

    quiet_loading()
    save_merged(adapter, output, trust_remote_code)
    _say(f"Merged model: {output}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run directories or score files")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="folder for the leaderboard")] = None,
) -> None:
    """Compare runs or score files: a leaderboard with intervals and paired differences."""
    from hfcap.comparison import compare as compare_runs

    console.print(compare_runs(runs, output))


@app.command()
def doctor(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="folder for doctor.json and contact_sheet.png")
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="training steps to measure; 0 = no memory and time estimate")] = 3,
) -> None:
    """Check labels, data, LoRA targets, memory and time of a recipe before any training; exit code 1 if wrong."""
    from hfcap.captioners.parts import quiet_loading
    from hfcap.doctor import examine

    quiet_loading()
    if not examine(_recipe(recipe, overrides), output, steps):
        raise typer.Exit(1)


@app.command("list")
def list_entries(
    kind: Annotated[
        Literal["captioners", "recipes", "metrics", "sources"] | None, typer.Argument(help="default: all")
    ] = None,
) -> None:
    """List captioners, recipes, metrics or data sources."""
    from hfcap.recipe_loading import find_recipes
    from hfcap.registry import names

    for one in (kind,) if kind else ("captioners", "sources", "metrics", "recipes"):
        entries = [str(path) for path in find_recipes(Path("recipes"))] if one == "recipes" else names(one)
        if kind is None:
            console.print(one, style="bold")
        for entry in entries:
            _say(entry if kind else f"  {entry}")


@app.command("recipe-schema")
def recipe_schema() -> None:
    """Print the JSON Schema of recipes, for completion in editors."""
    from hfcap.recipe_loading import recipe_json_schema

    sys.stdout.write(json.dumps(recipe_json_schema(), indent=2) + "\n")


@data_app.command("coco")
def data_coco(
    root: Annotated[Path, typer.Option(help="folder for the archives and pictures")],
    year: Annotated[Literal["2014", "2017"], typer.Option(help="layout of the official archives")] = "2014",
) -> None:
    """Download COCO's official archives and the Karpathy split (about 19 GB); an interrupted download continues."""
    from hfcap.data.download import download_coco

    download_coco(root, year)
    _say(f"COCO {year}: {root}")


def _show_version(value: bool) -> None:
    if value:
        console.print(f"hfcap {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print it")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and turn known errors into one message and an exit code."""
    try:
        app()
    except UserError as error:
        error_console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except (WorkError, OSError) as error:
        error_console.print(f"failed: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except StoppedError as error:
        error_console.print(str(error), style="yellow", markup=False, soft_wrap=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
