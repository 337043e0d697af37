"""Images that are there more than once: the first in the plan is captioned, whoever works on it and dies meanwhile."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

from hfcap.captioners.base import Captioner
from hfcap.captioning.sharded import Place, ShardedJob, caption_shards
from hfcap.captioning.sharded.claims import BEAT_SECONDS, Worker, effort_of
from hfcap.captioning.sharded.duplicates import first_of_each
from hfcap.captioning.sharded.folder import OutputFolder
from hfcap.captioning.sharded.speed import Speed
from hfcap.schema import CaptionedImage
from tests.captioners.helpers import write_image
from tests.captioning.sharded.conftest import contents, manifest, rows
from tests.captioning.sharded.test_sharded import job
from tests.captioning.test_shards import samples

Model = tuple[Captioner, str]
SEEDS = (0, 1, 0, 2, 1, 1, 3, 0, 4)
"""What the images show; equal numbers are equal bytes."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, seed in enumerate(SEEDS):
        write_image(tmp_path / "images" / f"{number}.png", seed=seed)
    for name in ("97.png", "98.png"):
        (tmp_path / "images" / name).write_bytes(b"damaged")
    return tmp_path / "images"


def first_with_these_bytes(folder: Path) -> dict[str, str]:
    """Name -> the first name with these bytes, by looking at every file."""
    seen: dict[str, str] = {}
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    return {name: seen.setdefault(value, name) for name, value in hashes.items()}


def test_the_first_in_the_plan_counts(model: Model, images: Path, tmp_path: Path) -> None:
    tally = caption_shards(job(model, tmp_path / "out", images, dedup=True))
    whole = {}
    caption_shards(job(model, tmp_path / "all", images))
    for row in rows(tmp_path / "all"):
        whole[Path(row["file_name"]).name] = row["caption"]
    expected = first_with_these_bytes(images)
    found = rows(tmp_path / "out")
    assert [Path(row["file_name"]).name for row in found] == list(expected)
    for row in found:
        name = Path(row["file_name"]).name
        first = expected[name]
        assert (row["duplicate_of"] and Path(row["duplicate_of"]).name) == (None if first == name else first)
        assert row["caption"] == (whole[name] if first == name else None)
    assert (tally.images, tally.duplicates, len(tally.failures)) == (5, 5, 1)
    noted = [one for row in manifest(tmp_path / "out") for one in row["duplicates"]]
    assert noted == [{key: row[key] for key in ("image_id", "duplicate_of")} for row in found if row["duplicate_of"]]
    # Without the option nothing is said of duplicates.
    assert "duplicate_of" not in rows(tmp_path / "all")[0] and "duplicates" not in manifest(tmp_path / "all")[0]


def test_tars_hold_each_image_once(model: Model, images: Path, tmp_path: Path) -> None:
    for place in (Place(), Place(rank=1, count=3)):
        caption_shards(job(model, tmp_path / f"{place.rank}", images, dedup=True, form="webdataset"), place)
    assert contents(tmp_path / "0") == contents(tmp_path / "1")
    read = [one for path in sorted((tmp_path / "0").glob("*.tar")) for one in samples(path).values()]
    kept = [name for name, first in first_with_these_bytes(images).items() if name == first and name < "9"]
    assert [one["png"] for one in read] == [(images / name).read_bytes() for name in kept]


def test_prompts_tell_images_apart(model: Model, tmp_path: Path) -> None:
    """The same photo under two names of products has two captions."""
    for number in range(3):
        write_image(tmp_path / "in" / f"{number}.png", seed=7)
    lines = [
        f'{{"file_name": "{number}.png", "name": "{name}"}}\n' for number, name in enumerate(("cup", "mug", "cup"))
    ]
    (tmp_path / "in/metadata.jsonl").write_text("".join(lines))
    caption_shards(job(model, tmp_path / "out", tmp_path / "in", dedup=True, prompt="a {name}", images_per_shard=1))
    found = rows(tmp_path / "out")
    assert [row["duplicate_of"] for row in found] == [None, None, found[0]["image_id"]]
    assert [row["caption"] is None for row in found] == [False, False, True]


def test_first_of_each_by_looking_at_all_pairs() -> None:
    numbers = np.random.default_rng(0)
    digests = numbers.integers(0, 3, (60, 2)).astype(np.uint64)
    expected = []
    for place, row in enumerate(digests):
        equal = [earlier for earlier in range(place + 1) if (digests[earlier] == row).all()]
        expected.append(equal[0] if row.any() else place)
    assert first_of_each(digests).tolist() == expected
    assert first_of_each(np.zeros((0, 2), np.uint64)).tolist() == []


def test_what_was_spent_and_what_it_will_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers: one has been at work for an hour, one died 30 minutes after it began, two hours ago."""
    folder = OutputFolder(tmp_path)
    alive, dead = Worker(folder.workers), Worker(folder.workers)
    for worker, begun, last in ((alive, 3600, 0), (dead, 9000, 7200)):
        folder.workers.mkdir(parents=True, exist_ok=True)
        worker.path.write_text(f'{{"machine": "x", "pid": 1, "begun": {time.time() - begun}}}')
        os.utime(worker.path, (time.time() - last, time.time() - last))
    effort = effort_of(folder.workers)
    assert effort.seconds == pytest.approx(5400, abs=5) and effort.alive == 1
    assert BEAT_SECONDS * 3 < 7200
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    folder.done.mkdir(parents=True)
    with Speed(folder, n_shards=3, quiet=False, price=2.0) as speed:
        (folder.done / "shard-00000.json").write_text('{"images": 90, "failures": [], "duplicates": [{}]}')
        clock[0] = 1800.0
        speed.show()
    said = capsys.readouterr().err
    # One shard in half an hour: two more take one more hour of the one worker that is alive.
    assert "1 of 3 shards, 0.1 images/s, 3.00 spent of about 5.00, about 60 minutes left" in said
    assert "Until now 1.500 hours of processes, which cost 3.00" in said


def test_hashes_that_are_there_are_not_computed_again(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfcap.captioning.sharded import duplicates

    counted: list[str] = []
    original = duplicates._hash

    def counting(image: tuple[CaptionedImage, str]) -> bytes | None:
        counted.append(image[0].image_id)
        return original(image)

    monkeypatch.setattr(duplicates, "_hash", counting)
    given = job(model, tmp_path / "out", images, dedup=True)
    with monkeypatch.context() as patch:
        patch.setattr(duplicates.Duplicates, "compare", interrupted)
        with pytest.raises(RuntimeError, match="killed here"):
            caption_shards(given)
    assert len(counted) == len(SEEDS) + 2
    caption_shards(given)
    assert len(counted) == len(SEEDS) + 2


def interrupted(*_: object) -> None:
    raise RuntimeError("killed here")


def test_dedup_is_part_of_what_was_begun(model: Model, images: Path, tmp_path: Path) -> None:
    caption_shards(job(model, tmp_path / "out", images))
    with pytest.raises(ValueError, match=r"with other dedup \(false, now true\)"):
        caption_shards(ShardedJob(model[1], (str(images),), tmp_path / "out", "parquet", 4, batch_size=2, dedup=True))
