"""Commands that look at runs: status, plot, watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfcap.cli.common import app, output_file, say

Runs = Annotated[list[Path], typer.Argument(help="run directories")]


@app.command()
def status(runs: Runs) -> None:
    """Say how far runs are: stage, step, remaining time, last values, sample captions, scores."""
    from hfcap.run.status import runs_status

    for one in runs_status(runs):
        for line in one.lines():
            say(line)


@app.command()
def plot(runs: Runs, output: Annotated[Path, output_file("FILE.html or FILE.png")]) -> None:
    """Draw the training curves of one or several runs."""
    from hfcap.run.curves import check_plot, write_curves
    from hfcap.run.status import runs_status

    check_plot(output)
    write_curves(runs_status(runs), output)
    say(f"Curves: {output}")


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="run directory")],
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="default: any free one")] = None,
) -> None:
    """Open a page that follows a training and can stop it; only this machine can reach it."""
    from hfcap.pages.local_server import serving_locally
    from hfcap.run.live import LivePage

    with serving_locally(LivePage(run), port) as server:
        say(f"Open this address, Ctrl-C ends the page and not the training: {server.address}")
        server.wait()
