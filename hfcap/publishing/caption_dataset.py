"""Captioned images as a dataset of the Hub: a folder that `datasets` reads as imagefolder, with a card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hfcap
from hfcap.captioning.shards import captioned_files
from hfcap.files import write_bytes, write_json_lines, write_text
from hfcap.pages.markdown import code, escape
from hfcap.publishing.push import PublishResult, push_folder
from hfcap.publishing.secrets import refuse_secrets
from hfcap.recipe import strict_yaml
from hfcap.schema import CaptionedImage, Prediction

_PER_FOLDER = 5000
"""Files of one folder: the Hub takes 10,000."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def stage_caption_dataset(
    images: Iterable[CaptionedImage], predictions: Sequence[Prediction], folder: Path, model: str
) -> None:
    """Write image files, `metadata.jsonl` and the card into an empty folder.

    Args:
        images: those that were captioned, in the order of `predictions`; others between them are left out.
        model: what captioned, as the card names it: Hub id, or nothing of this machine but a name.

    Raises:
        UserError: a caption, name or address holds a secret or a path of this machine.
        WorkError: an image can no longer be read.
    """
    rows: list[dict[str, Any]] = []
    for number, (prediction, ending, content) in enumerate(captioned_files(images, predictions)):
        name = f"images/{number // _PER_FOLDER:04d}/{number:07d}.{ending}"
        write_bytes(folder / name, content)
        row = prediction.as_row()
        # A folder of this machine concerns nobody; of addresses and rows of datasets the whole name is kept.
        source = row["file_name"] if "://" in row["file_name"] else Path(row["file_name"]).name
        others = {"captions": row["candidates"]} if len(row["candidates"]) > 1 else {}
        marks = {"review": row["review"]} if "review" in row else {}
        rows.append(
            {"file_name": name, "caption": row["caption"], **others, "score": row["score"], **marks, "source": source}
        )
    write_json_lines(folder / "metadata.jsonl", rows)
    write_text(folder / "README.md", _card(rows, model))
    refuse_secrets(folder)


def _card(rows: Sequence[dict[str, Any]], model: str) -> str:
    marked = sum(bool(row.get("review")) for row in rows)
    values = {
        "pretty_name": "Captioned images",
        "task_categories": ["image-to-text"],
        "tags": ["image-captioning", "synthetic", "hfcap"],
        "size_categories": [next((text for most, text in _SIZES if len(rows) < most), "n>1M")],
    }
    review = f" {marked:,} are marked for review, with the reason under `review`." if marked else ""
    text = f"""\
# Captioned images

{len(rows):,} images with captions that a model wrote: {escape(model)}, with hfcap {hfcap.__version__}.{review}
Nobody has checked the captions: models describe what is not there, and guess age, sex and origin of people.

| column | what it holds |
|---|---|
| `image` | the image as it was given |
| `caption` | the caption that the model ranked first |
| `captions` | where several were asked for: all, best first |
| `score` | log-probability that beam search ranked by; null where captions are greedy or sampled |
| `source` | the file's name, or its web address |

An example: {code(rows[0]["caption"], in_table=False)}

No licence is named, because the images may be other people's: say here who made them and what may be done with them.
"""
    return f"---\n{strict_yaml.dump(values)}---\n\n{text}"


def push_caption_dataset(folder: Path, repo_id: str, private: bool) -> PublishResult:
    """Push a staged dataset in one commit.

    Raises:
        UserError, WorkError: as `publishing.push.push_folder`.
    """
    return push_folder(folder, repo_id, private, kind="dataset")
