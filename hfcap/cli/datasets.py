"""Commands for datasets: hfcap data ..."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hfcap.cli.common import app, say

data_app = typer.Typer(help="Get datasets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("coco")
def data_coco(
    root: Annotated[Path, typer.Option(help="folder for the archives and pictures")],
    year: Annotated[Literal["2014", "2017"], typer.Option(help="layout of the official archives")] = "2014",
) -> None:
    """Download COCO's official archives and the Karpathy split (about 19 GB); an interrupted download continues."""
    from hfcap.data.download import download_coco

    download_coco(root, year)
    say(f"COCO {year}: {root}")
