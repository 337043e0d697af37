"""Commands for cards, merged weights and the Hub."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Literal

import typer

import hfcap
from hfcap.cli.common import AcceptChanges, RecipeOrRun, TrustRemoteCode, app, execute, output_folder, recipe_of, say
from hfcap.errors import UserError
from hfcap.progress import console


@app.command()
def card(
    recipe: RecipeOrRun,
    check: Annotated[
        bool, typer.Option("--check", help="only list facts that the card lacks; exit code 1 if any")
    ] = False,
    accept_changes: AcceptChanges = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write the model card of a run."""
    if check:
        from hfcap.card.render import missing_facts
        from hfcap.run_directory.paths import RunDirectory

        run = RunDirectory.existing(recipe_of(recipe, None, trust_remote_code=True)[1].path)
        missing = missing_facts(run)
        for fact in missing:
            say(f"missing: {fact}")
        if missing:
            raise typer.Exit(1)
        console.print("The card has every fact.")
        return
    done = execute(recipe, None, "card", True, trust_remote_code, accept_changes)
    if done.accelerator.is_main_process:
        say(f"Card: {done.directory.card}")


@app.command()
def publish(
    run: Annotated[str, typer.Argument(help="run directory, or the recipe of a finished run")],
    repo_id: Annotated[str | None, typer.Option("--repo-id", help="namespace/name; default: the recipe's")] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="who sees a new repository; default: the recipe's publish.private, else public"
        ),
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="open a pull request instead of committing")] = False,
    revision: Annotated[str | None, typer.Option(help="branch to commit to")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="publish merged weights instead of the adapter")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only stage and list the files")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace a published model whose scores are better")] = False,
    skip_verification: Annotated[
        bool, typer.Option("--skip-verification", help="do not prove that it loads and captions as recorded")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Stage a run, push it to the Hub, and prove that a stranger can use it."""
    from hfcap.captioners.quiet import quiet_loading

    quiet_loading()
    result = hfcap.push_to_hub(
        run,
        repo_id,
        private=private,
        create_pr=create_pr,
        revision=revision,
        merged=merged,
        dry_run=dry_run,
        force=force,
        verify=not skip_verification,
        trust_remote_code=trust_remote_code,
        progress=True,
    )
    say(str(result))


@app.command()
def verify(
    repo_ids: Annotated[list[str], typer.Argument(help="namespace/name of models on the Hub", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="branch, tag, refs/pr/NUMBER or commit")] = None,
    references: Annotated[
        Path | None, typer.Option(help="human captions of the scored split, to score the predictions again")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Check published models as a stranger would: clean process, empty cache, no hfcap; exit code 1 if one fails.

    Card, score files and predictions are compared, and what can be computed again is.
    """
    from hfcap.publishing.verify import verify_all

    reports = verify_all(dict.fromkeys(repo_ids, revision), None, trust_remote_code, references)
    for report in reports:
        say(str(report))
    if any(report.failures for report in reports):
        raise typer.Exit(1)


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="run directory or adapter folder")],
    output: Annotated[Path, output_folder("folder to write")],
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Fold a LoRA adapter into its base model and save a plain model folder."""
    from hfcap.captioners.loading import save_merged
    from hfcap.captioners.quiet import quiet_loading

    quiet_loading()
    save_merged(adapter, output, trust_remote_code)
    say(f"Merged model: {output}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="run directory, model folder or Hub id")],
    output: Annotated[Path, output_folder("folder to write")],
    to: Annotated[Literal["onnx", "openvino", "gguf"], typer.Option(help="runtime; gguf is refused with the reason")],
    images: Annotated[
        list[str] | None, typer.Option(help="file, folder or pattern that the check captions; default: drawn scenes")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="commit, tag or branch on the Hub")] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write a captioner as ONNX or OpenVINO files that run without hfcap, and check that they caption the same."""
    from hfcap.captioners.quiet import quiet_loading
    from hfcap.export.writing import export_captioner

    quiet_loading()
    count = export_captioner(model, output, to, images or (), revision, trust_remote_code)
    say(f"Exported: {output} ({count:,} images checked: captions as from hfcap)")


Output = Annotated[Path | None, output_folder("folder to write; default: spaces/NAME")]


@app.command("publish-space")
def publish_space(
    models: Annotated[list[str], typer.Argument(help="namespace/name of published models", show_default=False)],
    repo_id: Annotated[str, typer.Option("--repo-id", help="namespace/name of the Space")],
    output: Output = None,
    title: Annotated[str, typer.Option(help="shown above the page")] = "Image captions",
    private: Annotated[bool, typer.Option("--private/--public", help="who sees a new Space")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only write the folder")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write a Space that captions with published models side by side, and push it."""
    from hfcap.app.space import stage_demo
    from hfcap.publishing.hub import check_repo_id

    check_repo_id(repo_id)
    folder = output or Path("spaces") / repo_id.split("/")[1]
    _push_space(stage_demo(models, folder, title, trust_remote_code), repo_id, private, dry_run)


@app.command("publish-metric")
def publish_metric(
    metric: Annotated[str, typer.Argument(help="name of a metric, or caption_suite (hfcap list metrics)")],
    repo_id: Annotated[str, typer.Option("--repo-id", help="namespace/name of the Space")],
    output: Output = None,
    private: Annotated[bool, typer.Option("--private/--public", help="who sees a new Space")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only write the folder")] = False,
) -> None:
    """Write a metric and hfcap itself as a Space for `evaluate.load("namespace/name")`, and push it."""
    from hfcap.publishing.hub import check_repo_id
    from hfcap.publishing.spaces import stage_metric

    check_repo_id(repo_id)
    if repo_id.split("/")[1] != metric:
        raise UserError(f"--repo-id: evaluate finds a module by its name; publish as {repo_id.split('/')[0]}/{metric}")
    _push_space(stage_metric(metric, output or Path("spaces") / metric, repo_id), repo_id, private, dry_run)


def _push_space(folder: Path, repo_id: str, private: bool, dry_run: bool) -> None:
    from hfcap.publishing.push import push_folder

    if dry_run:
        say(f"Space: {folder}")
        return
    result = push_folder(folder, repo_id, private, kind="space")
    done = f"Published {len(result.uploaded)} files" if result.uploaded else "Nothing to publish"
    say(f"{done}: {result.url} (from {folder})")


@app.command()
def demo(
    models: Annotated[list[str], typer.Argument(help="run directories, model folders or Hub ids", show_default=False)],
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="default: the first free one from 7860")] = None,
    accounts: Annotated[
        Path | None, typer.Option(help="FILE of lines 'name password'; without it whoever reaches the page may use it")
    ] = None,
    title: Annotated[str, typer.Option(help="shown above the page")] = "Image captions",
    examples: Annotated[Path | None, typer.Option(help="folder of images to try; default: drawn ones")] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Open a page that captions images with several models side by side."""
    from hfcap.app.demo import load_models, read_demo_accounts, served
    from hfcap.captioners.quiet import quiet_loading

    quiet_loading()
    allowed = None if accounts is None else read_demo_accounts(accounts)
    loaded = load_models(models, trust_remote_code)
    with served(loaded, host, port, accounts=allowed, title=title, examples=examples) as address:
        say(f"Open {address} in a browser; Ctrl-C ends.")
        threading.Event().wait()
