"""Prompts with fields in shards: each image is asked with what its own table, row or sample says."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfcap.captioners.base import Captioner
from hfcap.captioning import caption_images
from hfcap.captioning.sharded import caption_shards
from hfcap.errors import UserError
from tests.captioners.helpers import write_image
from tests.captioning.sharded.conftest import rows
from tests.captioning.sharded.test_sharded import job, write_tar

Model = tuple[Captioner, str]
NAMES: list[str | None] = ["red cup", "dog", None, "a boat", "x"]
PROMPT = "this {name} is"


@pytest.fixture
def images(tmp_path: Path) -> list[bytes]:
    return [write_image(tmp_path / "in" / f"{n}.png", seed=n).read_bytes() for n in range(len(NAMES))]


@pytest.fixture
def expected(model: Model, images: list[bytes], tmp_path: Path) -> list[str | None]:
    """Each image asked alone, with its prompt written out."""
    found: list[str | None] = []
    for number, name in enumerate(NAMES):
        path = str(tmp_path / "in" / f"{number}.png")
        alone = caption_images(model[1], [path], prompt=f"this {name} is") if name else []
        found.append(alone[0].caption if alone else None)
    assert len(set(found)) > 2
    return found


def in_folder(folder: Path, images: list[bytes]) -> Path:
    lines = [json.dumps({"file_name": f"{n}.png", "name": name}) + "\n" for n, name in enumerate(NAMES)]
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def in_parquet(folder: Path, images: list[bytes]) -> Path:
    columns: dict[str, Any] = {"image": [{"bytes": one, "path": None} for one in images], "name": NAMES}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return folder / "a.parquet"


def in_tar(folder: Path, images: list[bytes]) -> Path:
    """JSON before and after its image, and one that is none."""
    members: dict[str, bytes] = {}
    for number, (image, name) in enumerate(zip(images, NAMES, strict=True)):
        said = json.dumps({"name": name}).encode() if name else b"[no JSON"
        both = [(f"{number}.json", said), (f"{number}.png", image)]
        members |= dict(both if number % 2 else reversed(both))
    return write_tar(folder / "a.tar", members)


def in_saved(folder: Path, images: list[bytes]) -> Path:
    features = datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")})
    values = {"image": [{"bytes": one, "path": None} for one in images], "name": NAMES}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(values, features=features)}).save_to_disk(
        folder / "saved"
    )
    return folder / "saved"


@pytest.mark.parametrize("write", [in_folder, in_parquet, in_tar, in_saved])
def test_each_image_is_asked_with_its_own_words(
    write: Any, model: Model, images: list[bytes], expected: list[str | None], tmp_path: Path
) -> None:
    source = write(tmp_path / "in", images)
    tally = caption_shards(job(model, tmp_path / "out", source, prompt=PROMPT, images_per_shard=3))
    found = rows(tmp_path / "out")
    assert [row["caption"] for row in found] == expected
    assert (tally.images, len(tally.failures)) == (4, 1)
    assert "has no value for {name}" in found[2]["problem"]


def test_tars_with_the_images_are_asked_as_well(
    model: Model, images: list[bytes], expected: list[str | None], tmp_path: Path
) -> None:
    source = in_folder(tmp_path / "in", images)
    caption_shards(job(model, tmp_path / "out", source, prompt=PROMPT, form="webdataset", images_per_shard=5))
    with tarfile.open(tmp_path / "out/shard-00000.tar") as archive:
        texts = [archive.extractfile(one) for one in archive if one.name.endswith(".txt")]
        assert [text.read().decode() for text in texts if text is not None] == [one for one in expected if one]


def test_the_first_image_may_lack_what_others_have(model: Model, images: list[bytes], tmp_path: Path) -> None:
    source = in_folder(tmp_path / "in", images)
    lines = (source / "metadata.jsonl").read_text().splitlines(keepends=True)
    (source / "metadata.jsonl").write_text("".join(lines[1:]))
    tally = caption_shards(job(model, tmp_path / "out", source, prompt=PROMPT))
    assert (tally.images, len(tally.failures)) == (3, 2)
    write_tar(tmp_path / "empty.tar", {})
    none = job(model, tmp_path / "none", tmp_path / "empty.tar", prompt=PROMPT)
    with pytest.raises(UserError, match="no image"):
        caption_shards(none)


@pytest.mark.parametrize("write", [in_folder, in_parquet, in_tar, in_saved])
def test_a_mistyped_field_is_told_before_any_captioning(
    write: Any, model: Model, images: list[bytes], tmp_path: Path
) -> None:
    source = write(tmp_path / "in", images)
    with pytest.raises(
        UserError, match=r"prompt 'this \{label\} is': .* has no column for \{label\} \(columns: .*name"
    ):
        caption_shards(job(model, tmp_path / "out", source, prompt="this {label} is"))
