"""Two real processes train what one process with twice the batch trains."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hfcap.files import read_json, read_json_lines
from hfcap.run_directory.paths import RunDirectory
from tests.training import two_processes
from tests.training.harness import Result, assert_same_path, forget_accelerator

REPOSITORY = Path(__file__).parents[2]


def launch(python: str, script: str, *arguments: object) -> None:
    """Run a script in two processes that talk over loopback, as `accelerate launch` or torchrun starts them."""
    command = [python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY)}
    # As in an accelerate configuration that says so: the recipe's number alone must count.
    environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
    done = subprocess.run(
        [*command, script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def folders(forking: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where two processes and one process trained."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    launch(forking, two_processes.__file__, two, 2)
    forget_accelerator()
    two_processes.train_cases(one, 4)
    return two, one


@pytest.mark.parametrize(("captioner", "method"), two_processes.CASES)
def test_same_weights_as_one_process_with_twice_the_batch(
    captioner: str, method: str, folders: tuple[Path, Path]
) -> None:
    two, one = (Result(RunDirectory(folder / f"{captioner}-{method}")) for folder in folders)
    assert two.summary["processes"] == 2 and one.summary["processes"] == 1
    for name in ("model", "average"):
        assert_same_path(two, one, step=4, earlier=2, name=name)
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    keys = ("validation_loss", "validation_cider")
    ours, theirs = ([row[key] for row in result.rows for key in keys if key in row] for result in (two, one))
    assert len(ours) == 4 and ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    counted = ("images_seen", "captions_seen", "step", "epoch", "window")
    assert {key: two.state(4)[key] for key in counted} == {key: one.state(4)[key] for key in counted}
    assert {path.name for path in two.checkpoint(4).iterdir()} >= {"random-0.safetensors", "random-1.safetensors"}
    assert len([row for row in two.rows if "loss" in row]) == 4  # only one process writes


def test_a_stop_during_the_last_checkpoint_stops_both(folders: tuple[Path, Path]) -> None:
    """One process heard of it, after the last update on which they could have agreed."""
    for rank in (0, 1):
        assert (folders[0] / f"stopped-{rank}").read_text().startswith("stopped at step 2 of 2; the same command")
    assert not RunDirectory(folders[0] / "stopped").model.exists()


def test_predictions_and_scores_are_written_once_and_complete(folders: tuple[Path, Path]) -> None:
    two, one = (RunDirectory(folder / "tiny") for folder in folders)
    for name in ("test", "test.blank_images", "test.most_frequent_caption"):
        ours = [row for _, row in read_json_lines(two.predictions(name), "predictions")]
        theirs = [row for _, row in read_json_lines(one.predictions(name), "predictions")]
        assert [row["image_id"] for row in ours] == [row["image_id"] for row in theirs]
        assert len(ours) == 5
        assert read_json(two.scores(name), "scores")["n_images"] == 5
    assert list(two.predictions("x").parent.glob("*.part-*")) == []
    assert sorted(path.name for path in two.path.iterdir()) == sorted(path.name for path in one.path.iterdir())
    assert sorted(path.name for path in two.publish.iterdir()) == sorted(path.name for path in one.publish.iterdir())
