"""Two processes over six shards, one of them killed: the other finishes, and every byte is as without the kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hfcap.captioners.base import Captioner
from hfcap.captioning.sharded import ShardedJob, caption_shards
from tests.captioners.helpers import write_image
from tests.captioning.sharded.conftest import contents

Model = tuple[Captioner, str]
pytestmark = pytest.mark.usefixtures("forks")

WORKER = """
import os, signal, sys, time
from pathlib import Path
import torch
from hfcap.captioning.sharded import ShardedJob, caption_shards, own_place
from hfcap.captioning.sharded import duplicates, folder, work
from hfcap.captioning.sharded.claims import Claims
torch.set_num_threads(1)
model, images, output, form, moment, dedup = sys.argv[1:]
def killing(owner, name, before, call=2):
    original = getattr(owner, name)
    left = [call]
    def called(*arguments, **options):
        left[0] -= 1
        if before and left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, called)
if moment == "within a shard":
    killing(work.WRITERS[form], "add", before=False)
elif moment == "before it is renamed":
    killing(Claims, "holds", before=False)
elif moment == "before it is noted":
    killing(folder.OutputFolder, "note", before=True)
elif moment == "before its claim is given up":
    killing(folder.OutputFolder, "note", before=False)
elif moment == "while it hashes":
    killing(duplicates, "file_being_written", before=True)
elif moment == "before hashes are compared":
    killing(duplicates.Duplicates, "compare", before=True, call=1)
elif moment == "while they are compared":
    killing(duplicates, "write_json", before=True)
elif moment == "before the manifest":
    killing(folder.OutputFolder, "complete", before=True, call=1)
elif moment == "after the manifest":
    killing(folder, "write_json_lines", before=False, call=1)
while moment == "after another" and not list(Path(output).glob(".unfinished/claims/shard-*")):
    time.sleep(0.01)
given = ShardedJob(model, (images,), Path(output), form, 4, batch_size=2, dedup=dedup == "True")
caption_shards(given, own_place())
"""


def write_images(folder: Path) -> Path:
    for number in range(23):
        write_image(folder / f"{number:02d}.png", seed=number)
    (folder / "07.png").write_bytes(b"damaged")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("input") / "images")


@pytest.fixture(scope="module")
def whole(model: Model, images: Path) -> dict[str, bytes]:
    """What a worker writes that nobody kills."""
    output = images.parent / "whole"
    caption_shards(ShardedJob(model[1], (str(images),), output, "parquet", 4, batch_size=2))
    return contents(output)


def start(rank: int, *arguments: object, dedup: bool = False) -> subprocess.Popen[bytes]:
    places = {"HFCAP_RANK": str(rank), "HFCAP_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, *map(str, arguments), str(dedup)]
    return subprocess.Popen(command, env=os.environ | places)


def test_the_other_finishes(model: Model, images: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole", tmp_path / "output"
    caption_shards(ShardedJob(model[1], (str(images),), whole, "webdataset", 4, batch_size=2))
    dying = start(0, model[1], images, output, "webdataset", "within a shard")
    other = start(1, model[1], images, output, "webdataset", "after another")
    assert dying.wait(240) == -signal.SIGKILL
    assert other.wait(240) == 0
    assert contents(output) == contents(whole)
    assert len(contents(output)) == 6 + 2


@pytest.mark.parametrize(
    ("moment", "n_noted"),
    [
        ("before it is renamed", 1),
        ("before it is noted", 1),
        ("before its claim is given up", 2),
        ("before the manifest", 6),
        ("after the manifest", 6),
    ],
)
def test_the_same_command_goes_on(
    moment: str, n_noted: int, model: Model, images: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "output"
    assert start(0, model[1], images, output, "parquet", moment).wait(240) == -signal.SIGKILL
    assert (output / "manifest.jsonl").exists() == (moment == "after the manifest")
    kept = {path: path.stat().st_ino for path in output.glob("shard-*.parquet")}
    tally = caption_shards(ShardedJob(model[1], (str(images),), output, "parquet", 4, batch_size=2))
    assert (tally.shards, tally.images, len(tally.failures)) == (6, 22, 1)
    assert contents(output) == whole
    # What was noted is not done again; what was written and not noted is.
    assert sum(path.stat().st_ino == number for path, number in kept.items()) == n_noted


def test_each_image_once_whoever_dies_while_duplicates_are_looked_for(model: Model, tmp_path: Path) -> None:
    """One worker after another dies before the hashes are there, in their comparison, and in the captioning."""
    images = write_images(tmp_path / "images")
    for number in range(4, 23, 5):
        (images / f"{number:02d}.png").write_bytes((images / f"{number // 2:02d}.png").read_bytes())
    whole, output = tmp_path / "whole", tmp_path / "output"
    given = ShardedJob(model[1], (str(images),), whole, "parquet", 4, batch_size=2, dedup=True)
    tally = caption_shards(given)
    assert (tally.images, tally.duplicates, len(tally.failures)) == (18, 4, 1)
    found = output / ".unfinished"
    for moment, left in (
        ("while it hashes", "hashes/shard-00000.parquet"),
        ("before hashes are compared", "hashes/shard-00005.parquet"),
        ("while they are compared", "hashes/shard-00001.json"),
        ("before it is noted", "done/shard-00000.json"),
    ):
        dying = start(0, model[1], images, output, "parquet", moment, dedup=True)
        assert dying.wait(240) == -signal.SIGKILL, moment
        assert (found / left).is_file(), [path.relative_to(found) for path in found.rglob("*")]
        assert not (output / "manifest.jsonl").exists()
    dying = start(0, model[1], images, output, "parquet", "within a shard", dedup=True)
    other = start(1, model[1], images, output, "parquet", "after another", dedup=True)
    assert dying.wait(240) == -signal.SIGKILL
    assert other.wait(240) == 0
    assert contents(output) == contents(whole)
