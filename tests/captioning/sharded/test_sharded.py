"""Captions in shards: the same as in one file, whatever the images are in, and nothing is lost or twice."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfcap.captioners.base import Captioner
from hfcap.captioning import Finishing, QualityGate, Wording, caption_images
from hfcap.captioning.inputs import DatasetChoice
from hfcap.captioning.sharded import Place, ShardedJob, caption_shards
from hfcap.errors import UserError
from tests.captioners.helpers import build, write_image
from tests.captioning.conftest import OPTIONS
from tests.captioning.sharded.conftest import contents, manifest, rows
from tests.captioning.test_shards import samples

Model = tuple[Captioner, str]
SAMPLING = {"do_sample": True, "num_beams": 1, "seed": 3}


def job(model: Model, output: Path, *inputs: Path, **options: Any) -> ShardedJob:
    given = {"images_per_shard": 4, "batch_size": 2, **options}
    return ShardedJob(model[1], tuple(map(str, inputs)), output, **given)


def test_the_same_captions_as_in_one_file(model: Model, folder: Path, tmp_path: Path) -> None:
    one = caption_images(model[1], [str(folder)], tmp_path / "one.jsonl", batch_size=2)
    tally = caption_shards(job(model, tmp_path / "out", folder))
    assert (tally.shards, tally.images, len(tally.failures)) == (3, 10, 1)
    found = rows(tmp_path / "out")
    assert [row["file_name"] for row in found] == [str(folder / f"{number:02d}.png") for number in range(11)]
    assert [row["caption"] for row in found if row["problem"] is None] == [prediction.caption for prediction in one]
    assert [row["score"] for row in found if row["problem"] is None] == pytest.approx([p.score for p in one], abs=1e-5)
    bad = found[3]
    assert bad["caption"] is None and "03.png: damaged" in bad["problem"]
    noted = manifest(tmp_path / "out")
    assert [(row["shard"], row["images"], len(row["failures"])) for row in noted] == [
        ("shard-00000.parquet", 3, 1),
        ("shard-00001.parquet", 4, 0),
        ("shard-00002.parquet", 3, 0),
    ]
    assert noted[0]["failures"] == [{"image_id": bad["image_id"], "problem": bad["problem"]}]
    for row in noted:
        content = (tmp_path / "out" / row["shard"]).read_bytes()
        assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    begun = json.loads((tmp_path / "out/captioning.json").read_text())
    assert (begun["model"], begun["decoding"]["num_beams"], begun["batch_size"]) == ("model", 2, 2)
    # Nothing of the work is left, and no name of this machine's folders besides those of the images.
    assert sorted(contents(tmp_path / "out")) == ["captioning.json", "manifest.jsonl", *(row["shard"] for row in noted)]
    assert str(tmp_path) not in (tmp_path / "out/captioning.json").read_text()


def test_tars_with_the_images_that_datasets_reads(model: Model, folder: Path, tmp_path: Path) -> None:
    caption_shards(job(model, tmp_path / "out", folder, form="webdataset"))
    caption_shards(job(model, tmp_path / "parquet", folder))
    captions = {row["file_name"]: row["caption"] for row in rows(tmp_path / "parquet") if row["problem"] is None}
    read = [sample for row in manifest(tmp_path / "out") for sample in samples(tmp_path / "out" / row["shard"]).items()]
    assert len(dict(read)) == len(read) == 10
    for _, sample in read:
        name = json.loads(sample["json"])["file_name"]
        assert sample["png"] == Path(name).read_bytes()
        assert sample["txt"].decode() == captions.pop(name)
    assert captions == {}
    loaded = datasets.load_dataset(
        "webdataset", data_files=str(tmp_path / "out/*.tar"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [row["txt"] for row in loaded] == [sample["txt"].decode() for _, sample in read]
    # And they are inputs again.
    tally = caption_shards(job(model, tmp_path / "again", tmp_path / "out"))
    assert (tally.shards, tally.images, tally.failures) == (3, 10, ())
    again = rows(tmp_path / "again")
    assert [row["image_id"] for row in again][:2] == ["shard-00000/000000000000", "shard-00000/000000000001"]
    assert [row["caption"] for row in again][:3] == [sample["txt"].decode() for _, sample in read][:3]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_tars_of_all_kinds_and_damaged_ones(model: Model, folder: Path, tmp_path: Path) -> None:
    image = [(folder / f"{number:02d}.png").read_bytes() for number in range(3)]
    members = {f"a/{number}.png": image[number] for number in range(3)}
    whole = write_tar(tmp_path / "in/x/0.tar", {"a/0.json": b"{}"} | members | {"a/9.txt": b"text alone"})
    write_tar(tmp_path / "in/y/0.tar", {"1.jpg": image[1], "1.seg.png": image[0], "2.png": b"no image", ".x.png": b"x"})
    content = whole.read_bytes()
    (tmp_path / "in/y/1.tar").write_bytes(content[:3000])
    (tmp_path / "in/y/2.tar").write_bytes(content[: content.index(b"a/1.png")] + b"\xff" * 4096)
    (tmp_path / "in/y/3.tar").write_bytes(b"no tar" * 200)
    os.mkfifo(tmp_path / "in/y/4.tar")
    tally = caption_shards(job(model, tmp_path / "out", tmp_path / "in/*/*.tar", batch_size=16))
    found = [(row["image_id"], row["problem"]) for row in rows(tmp_path / "out")]
    assert [name for name, problem in found if problem is None] == ["x/0/a/0", "x/0/a/1", "x/0/a/2", *["y/2/a/0"]]
    problems = [problem for _, problem in found if problem is not None]
    assert problems == list(tally.failures)
    for fragment in (
        "x/0/a/9: the sample must hold one image (found: none;",
        "y/0/1: the sample must hold one image (found: jpg, seg.png; --image-column names the ending)",
        "y/0.tar/2.png: damaged, or not an image",
        "y/1.tar: damaged after 0 samples (",
        "y/2.tar: damaged after 1 samples (bad header)",
        "y/3.tar: damaged after 0 samples (",
        "y/4.tar: not a file",
    ):
        assert [fragment in problem for problem in problems].count(True) == 1, (fragment, problems)
    assert len(problems) == 7
    chosen = job(model, tmp_path / "jpg", tmp_path / "in/y/0.tar", choice=DatasetChoice(image_column="jpg"))
    assert caption_shards(chosen).images == 1


def test_parquet_files_along_their_row_groups(model: Model, folder: Path, tmp_path: Path) -> None:
    images = [{"bytes": path.read_bytes(), "path": None} for path in sorted(folder.iterdir())]
    table = pa.table({"image": images, "text": ["x"] * len(images)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    pq.write_table(table.slice(0, 3), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"damaged")
    tally = caption_shards(job(model, tmp_path / "out", tmp_path / "?.parquet", images_per_shard=5))
    found = rows(tmp_path / "out")
    names = [f"a-{number}" for number in range(11)] + ["b-0", "b-1", "b-2", "c.parquet"]
    assert [row["image_id"] for row in found] == names
    assert [row["images"] + len(row["failures"]) for row in manifest(tmp_path / "out")] == [4, 4, 3, 3, 1]
    assert "a.parquet, row 3: damaged" in tally.failures[0] and "c.parquet: cannot be read" in tally.failures[1]
    caption_shards(job(model, tmp_path / "files", folder))
    expected = [row["caption"] for row in rows(tmp_path / "files")]
    assert [row["caption"] for row in found][:11] == expected
    assert [row["caption"] for row in found][11:14] == expected[:3]


def test_samples_do_not_depend_on_who_draws_them(model: Model, folder: Path, tmp_path: Path) -> None:
    outputs = []
    for number, place in enumerate((Place(), Place(rank=1, count=2), Place(rank=2, count=3))):
        output = tmp_path / str(number)
        caption_shards(job(model, output, folder, overrides=SAMPLING), place)
        outputs.append(contents(output))
    assert outputs[0] == outputs[1] == outputs[2]
    other = job(model, tmp_path / "other", folder, overrides=SAMPLING | {"seed": 4})
    caption_shards(other)
    assert contents(tmp_path / "other") != outputs[0]


def test_words_around_captions_and_marks_are_columns(model: Model, folder: Path, tmp_path: Path) -> None:
    finishing = Finishing(Wording(prefix="sks dog"), QualityGate(min_score=0.5))
    tally = caption_shards(job(model, tmp_path / "out", folder, finishing=finishing))
    found = [row for row in rows(tmp_path / "out") if row["problem"] is None]
    assert all(row["caption"].startswith("sks dog ") and "is below 0.5" in row["review"] for row in found)
    assert tally.marked == len(found) == 10


def test_another_job_is_not_mixed_in(model: Model, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = job(model, output, folder)
    caption_shards(first)
    before = contents(output)
    caption_shards(first)
    assert contents(output) == before
    again = r"; give another folder with -o, or start again with --force$"
    for changed, said in (
        ({"overrides": {"num_beams": 1}}, r"with other decoding \(\{\"num_beams\": 2.*, now \{\"num_beams\": 1"),
        ({"batch_size": 3}, r"with other batch_size \(2, now 3\)"),
        ({"form": "webdataset"}, r"with other form \(parquet, now webdataset\)"),
        ({"finishing": Finishing(Wording(suffix="."))}, r"with other suffix \(, now \.\)"),
        ({"images_per_shard": 5}, r"with other images, or how they are divided"),
    ):
        with pytest.raises(UserError, match=f"was begun {said}.*{again}"):
            caption_shards(job(model, output, folder, **changed))
    write_image(folder / "new.png", seed=50)
    with pytest.raises(UserError, match=f"was begun with other images, or how they are divided{again}"):
        caption_shards(first)
    assert contents(output) == before
    assert caption_shards(first, again=True).images == 11
    build("blip", seed=1).save(tmp_path / "larger", OPTIONS)
    with pytest.raises(UserError, match=rf"with other model \(model, now larger\){again}"):
        caption_shards(job((model[0], str(tmp_path / "larger")), output, folder))
    (output / "shard-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"shard-00001\.parquet: missing or changed; start again with --force"):
        caption_shards(first)


def test_wrong_inputs(model: Model, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.tar").write_bytes(b"x")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.png").write_bytes(b"damaged")
    for inputs, said in (
        ((tmp_path / "empty",), "empty: no image there"),
        ((tmp_path / "no/*.tar",), r"no/\*\.tar: no such file, and no file matches it"),
        ((tmp_path / "x.tar", folder), "images: tars, parquet files and images are captioned apart"),
        ((tmp_path / "bad",), "1.png: damaged"),
    ):
        with pytest.raises(UserError, match=said):
            caption_shards(job(model, tmp_path / "x" / said[:3], *inputs))
    with pytest.raises(UserError, match=r"images: holds other files \(00\.png\); give a new folder with -o"):
        caption_shards(job(model, folder, folder))
    with pytest.raises(UserError, match=r"--split does not apply to it"):
        caption_shards(job(model, tmp_path / "out", tmp_path / "x.tar", choice=DatasetChoice(split="train")))
    with pytest.raises(UserError, match=r"--force: would delete what the other processes write"):
        caption_shards(job(model, tmp_path / "out", folder), Place(launched=True), again=True)
    with pytest.raises(UserError, match=r"the first shard has no column for \{city\} \(columns: none\)"):
        caption_shards(job(model, tmp_path / "fields", folder, prompt="in {city}"))
