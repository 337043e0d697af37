"""The layouts that hfcap knows, as a table: which files, which columns, what does not count.

The table of docs/data.md is written from this one (`python -m scripts.layouts_table`).
"""

from __future__ import annotations

from hfcap.data.tables.layout import Layout
from hfcap.data.tables.published import PUBLISHED
from hfcap.data.tables.sidecars import file_name_rows, sidecar_rows

_ANY_TABLE = ("*.csv", "*.tsv", "*.jsonl", "*.jsonlines", "*.ndjson", "*.json", "*.parquet")

OWN: tuple[Layout, ...] = (
    Layout(
        name="metadata",
        whole_folder=True,
        title="metadata file, as `datasets` calls it: imagefolder",
        tables=("metadata.jsonl", "metadata.csv", "metadata.parquet"),
        shows="`file_name,caption`",
    ),
    Layout(
        name="sidecar_txt",
        whole_folder=True,
        title="a text file next to each image",
        shows="`001.png` and `001.txt`",
        image=("file_name",),
        captions=("caption",),
        rows=sidecar_rows(".txt"),
    ),
    Layout(
        name="sidecar_caption",
        whole_folder=True,
        title="a .caption file next to each image",
        shows="`001.png` and `001.caption`",
        image=("file_name",),
        captions=("caption",),
        rows=sidecar_rows(".caption"),
    ),
    Layout(
        name="sidecar_json",
        whole_folder=True,
        title="a JSON file next to each image",
        shows='`001.png` and `001.json`: `{"caption": ...}`',
        image=("file_name",),
        rows=sidecar_rows(".json"),
    ),
)
"""Forms in which people keep captions of their own images."""

ANY: tuple[Layout, ...] = (
    Layout(
        name="coco_format",
        title="COCO's format, as tools for annotation write it",
        tables=("*.json", "*/*.json"),
        shows='`{"images": [...], "annotations": [...]}`',
        needs=("annotations", "file_name"),
        image=("file_name",),
        captions=("annotations[].caption",),
        image_id="id",
        drops_captions=True,
    ),
    Layout(
        name="table",
        whole_folder=True,
        title="any other table with a column that names the image and one of captions",
        tables=_ANY_TABLE,
        one_kind=True,
        shows="`photo;description`",
    ),
    Layout(
        name="file_names",
        whole_folder=True,
        title="captions in the file names",
        shows="`012_a_red_rose.jpg`",
        image=("file_name",),
        captions=("caption",),
        rows=file_name_rows,
        automatic=False,
    ),
)
"""What nothing else fits."""

LAYOUTS = (*OWN, *PUBLISHED, *ANY)
BY_NAME = {layout.name: layout for layout in LAYOUTS}
COLUMNS_ONLY = BY_NAME["table"]
"""Says nothing but what columns are called."""


def markdown_table() -> str:
    """Return the layouts as the table of docs/data.md."""
    lines = ["| `layout` | what it is | files | for example |", "|---|---|---|---|"]
    for layout in LAYOUTS:
        files = ", ".join(f"`{pattern}`" for pattern in layout.tables) or "next to the images"
        named = "" if layout.automatic else "; only where it is named"
        lines.append(f"| `{layout.name}` | {layout.title}{named} | {files} | {layout.shows} |")
    return "\n".join(lines)
