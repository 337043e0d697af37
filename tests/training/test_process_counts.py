"""The same numbers from 1 process x 8 images, 2 x 4 and 4 x 2; and the end of all when one is killed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hfcap.files import read_json_lines
from hfcap.run_directory.paths import RunDirectory
from tests.training import process_counts
from tests.training.harness import Result, assert_same_path

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(forking: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of them trained."""
    place = tmp_path_factory.mktemp("counts")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [forking, process_counts.__file__, str(place)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    said = "\n".join(f"{path}: {path.read_text()[-2000:]}" for path in place.rglob("said-*"))
    assert done.returncode == 0, done.stderr[-3000:] + said
    return place


def result(folder: Path, name: str) -> Result:
    return Result(RunDirectory(folder / name))


@pytest.mark.parametrize("count", process_counts.COUNTS[1:])
def test_the_loss_curve_is_that_of_one_process(count: int, folder: Path) -> None:
    one, several = result(folder, "trained-1"), result(folder, f"trained-{count}")
    assert several.summary["processes"] == count and len(one.losses) == 5
    assert several.losses == pytest.approx(one.losses, rel=1e-5)
    keys = ("grad_norm", "validation_loss")
    ours, theirs = ([row[key] for row in run.rows for key in keys if key in row] for run in (several, one))
    assert len(ours) == 6 and ours == pytest.approx(theirs, rel=1e-4)
    assert_same_path(several, one, step=4, earlier=2)
    counted = ("images_seen", "captions_seen", "epoch", "window")
    assert {key: several.state(4)[key] for key in counted} == {key: one.state(4)[key] for key in counted}
    # Nothing twice, nothing lost: an epoch of 21 images is three updates.
    assert [run.state(3)[key] for run in (one, several) for key in ("images_seen", "window")] == [21, 0] * 2


@pytest.mark.parametrize("count", process_counts.COUNTS[1:])
def test_captions_are_those_of_one_process(count: int, folder: Path) -> None:
    one, several = (
        [row for _, row in read_json_lines(folder / name / "predictions/test.jsonl", "predictions")]
        for name in ("trained-1", f"captioned-{count}")
    )
    assert [row["image_id"] for row in several] == [row["image_id"] for row in one] and len(one) == 7
    assert [row["caption"] for row in several] == [row["caption"] for row in one]
    assert [row["score"] for row in several] == pytest.approx([row["score"] for row in one], abs=1e-5)


@pytest.mark.parametrize(("victim", "count"), process_counts.KILLED.items())
def test_a_killed_process_ends_all_with_one_message(victim: int, count: int, folder: Path) -> None:
    end: dict[str, Any] = json.loads((folder / "ends.json").read_text())[str(victim)]
    assert end["codes"] == [-9 if rank == victim else 1 for rank in range(count)]
    assert end["seconds"] < 60
    said = "".join(path.read_text() for path in sorted((folder / f"killed-{victim}").glob("said-*")))
    lines = [line for line in said.splitlines() if line.startswith(("failed:", "error:"))]
    assert len(lines) == 1 and "Traceback" not in said, said
    assert f"killed: one of {count} processes is gone" in lines[0] and "give the same command again" in lines[0]


def test_another_number_of_processes_goes_on(folder: Path) -> None:
    """Four processes were killed after the checkpoint of step 2; two with twice the batch end where one does."""
    assert "Continuing at step 2 of 5" in (folder / "again/said-0").read_text()
    one, continued = result(folder, "trained-1"), result(folder / "killed-2", "killed")
    assert continued.losses == pytest.approx(one.losses, rel=1e-5)
    assert_same_path(continued, one, step=4, earlier=2)


def test_hosts_agree_past_their_devices(folder: Path) -> None:
    """Sums that went over the devices would have no numbers."""
    for rank in range(2):
        assert json.loads((folder / f"agreed-{rank}.json").read_text()) == [1.5, 2.0**41 + 1, 1.0]
