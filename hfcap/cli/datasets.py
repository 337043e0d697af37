"""Commands for datasets (hfcap data ...) and for what is computed from their images once (hfcap features ...)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hfcap.cli.common import app, say
from hfcap.progress import console

data_app = typer.Typer(help="Get datasets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
features_app = typer.Typer(help="Feature stores and image caches on this disk.", no_args_is_help=True)
app.add_typer(features_app, name="features")

StoreFolder = Annotated[
    Path | None, typer.Option("--folder", help="default: HFCAP_CACHE or ~/.cache/hfcap, features/ and images/")
]


@data_app.command("coco")
def data_coco(
    root: Annotated[Path, typer.Option(help="folder for the archives and images")],
    year: Annotated[Literal["2014", "2017"], typer.Option(help="layout of the official archives")] = "2014",
) -> None:
    """Download COCO's official archives and the Karpathy split (about 20 GB); an interrupted download continues."""
    from hfcap.data.web.download import download_coco

    download_coco(root, year)
    say(f"COCO {year}: {root}")


@data_app.command("inspect")
def data_inspect(
    data: Annotated[str, typer.Argument(help="folder, table or dataset of the Hub", show_default=False)],
    layout: Annotated[str | None, typer.Option(help="read a folder as this ('hfcap list layouts')")] = None,
    images: Annotated[str | None, typer.Option(help="folder of a table's images")] = None,
    image_column: Annotated[str | None, typer.Option(help="column of file names, addresses or images")] = None,
    caption_columns: Annotated[
        list[str] | None, typer.Option(help="column of captions; may be given several times")
    ] = None,
    image_id_column: Annotated[str | None, typer.Option(help="rows with the same id are captions of one image")] = None,
    split_column: Annotated[str | None, typer.Option(help="column with each row's split")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="column with the prompt that a caption answers")] = None,
    caption_separator: Annotated[str | None, typer.Option(help="text between captions in one cell")] = None,
) -> None:
    """Say what a folder, table or dataset is, show examples, and print the data block of a recipe that reads it.

    Options other than --layout have the names of the recipe's keys (data.image_column, ...). The exit code is 2 where
    nothing can be read or images are missing.
    """
    from hfcap.data.inspection import inspect_data
    from hfcap.data.inspection_report import report

    keys = {
        "images": images,
        "image_column": image_column,
        "caption_columns": caption_columns or None,
        "image_id_column": image_id_column,
        "split_column": split_column,
        "prompt_column": prompt_column,
        "caption_separator": caption_separator,
    }
    inspection = inspect_data(data, layout, {key: value for key, value in keys.items() if value is not None})
    say(report(inspection))
    inspection.refuse_missing()


@features_app.command("list")
def features_list(folder: StoreFolder = None) -> None:
    """List feature stores and image caches: encoder, images, size, last use."""
    from datetime import datetime

    from rich.table import Table
    from rich.text import Text

    from hfcap.store.prune import kept_stores

    stores = kept_stores(folder)
    table = Table("key", "encoder", "per image", "images", "size", "last used")
    for store in stores:
        shape = " x ".join(map(str, store.shape))
        used = datetime.fromtimestamp(store.last_used).astimezone().strftime("%Y-%m-%d %H:%M")
        row = [store.folder.name[:12], store.encoder, f"{shape} {store.dtype}", f"{store.n_images:,}"]
        table.add_row(*map(Text, [*row, f"{store.n_bytes / 1e6:,.1f} MB", used]))
    if stores:
        console.print(table)
    say(f"{len(stores)} stores, {sum(store.n_bytes for store in stores) / 1e9:.2f} GB")


@features_app.command("prune")
def features_prune(
    older_than: Annotated[
        float | None, typer.Option("--older-than", min=0, help="delete what was not used for N days")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="delete what this encoder made: part of its name, or the beginning of the key")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="delete all")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    folder: StoreFolder = None,
) -> None:
    """Delete feature stores and image caches; what a later run needs is computed again."""
    from hfcap.store.prune import chosen_stores, kept_stores
    from hfcap.store.row_store import RowStore

    chosen = chosen_stores(kept_stores(folder), older_than, encoder, everything)
    for store in chosen:
        say(f"{store.folder}  {store.encoder}  {store.n_bytes / 1e6:,.1f} MB")
    if not chosen:
        say("Nothing to delete.")
        return
    if not yes:
        typer.confirm(f"Delete {len(chosen)} of them? Runs that use them now would stop", abort=True)
    for store in chosen:
        RowStore(store.folder).delete()
    say(f"Deleted {len(chosen)}, {sum(store.n_bytes for store in chosen) / 1e9:.2f} GB.")
