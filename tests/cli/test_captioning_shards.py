"""Captions in shards from the command line: several processes, and every command of docs/scaling.md."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build, write_image
from tests.captioning.sharded.conftest import contents, rows
from tests.captioning.sharded.test_sharded import write_tar
from tests.cli.command_line import Hfcap, assert_refused
from tests.test_documentation import ROOT, code_blocks

pytestmark = pytest.mark.usefixtures("forks")
OPTIONS = GenerateOptions(num_beams=2, max_new_tokens=6)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and images in every form."""
    folder = tmp_path_factory.mktemp("place")
    build("blip").save(folder / "runs/mine", OPTIONS)
    paths = [write_image(folder / "photos" / f"{number}.png", seed=number) for number in range(7)]
    images = [path.read_bytes() for path in paths]
    write_tar(folder / "shards/0.tar", {f"{number}.png": image for number, image in enumerate(images)})
    (folder / "tables").mkdir()
    table = pa.table({"image": [{"bytes": image, "path": None} for image in images], "scan": images})
    pq.write_table(table, folder / "tables/0.parquet")
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_scaling_page(hfcap: Hfcap, here: Path) -> None:
    first, *_ = code_blocks(ROOT / "docs/scaling.md", "bash")  # others: tests/publishing, tests/hub, test_bench_scaling
    lines = first.splitlines()
    for line in lines:
        _, *arguments = shlex.split(line)
        output = here / arguments[arguments.index("-o") + 1]
        outcome = hfcap(*arguments)
        assert outcome.code == 0, outcome.err
        assert outcome.out == f"Captions of 7 images in 1 shard: {output.name}\n"
        assert (output / "manifest.jsonl").is_file()
    assert len(lines) == 4
    assert [row["caption"] for row in rows(here / "captions")] == [
        row["caption"] for row in rows(here / "captions_of_tables")
    ]


@pytest.fixture
def launched(hfcap: Hfcap, here: Path) -> dict[str, bytes]:
    """What the two other commands of the page must write."""
    assert hfcap(*COMMAND, "-o", "alone").code == 0
    return contents(here / "alone")


COMMAND = ("caption", "runs/mine", "photos", "--to-shards", "parquet")


def launcher_lines() -> list[str]:
    text = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.startswith(("    accelerate", "    sbatch"))]


def test_accelerate_launches_it(launched: dict[str, bytes], here: Path) -> None:
    _, _, *arguments = shlex.split(launcher_lines()[0])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu", *arguments]
    subprocess.run(command, check=True, env=ENVIRONMENT, timeout=300)
    assert contents(here / "captions") == launched


def array_task(**variables: str) -> dict[str, str]:
    venv = str(Path(sys.executable).parents[1])
    return {**ENVIRONMENT, "SLURM_SUBMIT_DIR": str(Path.cwd()), "SLURM_JOB_ID": "41", "HFCAP_VENV": venv, **variables}


def test_tasks_of_a_slurm_array(launched: dict[str, bytes], here: Path) -> None:
    _, _, script, *arguments = shlex.split(launcher_lines()[1])
    command = ["bash", str(ROOT / script), *arguments]
    for task in ("3", "0"):  # the second finds that everything is done
        subprocess.run(command, check=True, env=array_task(SLURM_ARRAY_TASK_ID=task), cwd="/", timeout=300)
        assert contents(here / "captions") == launched
    refused = subprocess.run(command, env=array_task(), capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "this script is a job array of a SLURM cluster" in refused.stderr


def write_many(here: Path, count: int) -> None:
    (here / "many").mkdir()
    for number in range(count):
        os.link((here / "photos/0.png").resolve(), here / "many" / f"{number:04d}.png")


def wait_for(folder: Path, pattern: str) -> list[Path]:
    until = time.monotonic() + 240
    while not (found := list(folder.glob(pattern))) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def test_a_task_that_is_stopped_gives_its_shard_up_and_queues_itself_again(
    hfcap: Hfcap, launched: dict[str, bytes], here: Path
) -> None:
    tools = here / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/usr/bin/env bash\necho "$*" >{here}/called\n')
    (tools / "scontrol").chmod(0o755)
    write_many(here, 4000)
    environment = array_task(SLURM_ARRAY_TASK_ID="0", PATH=f"{tools}:{os.environ['PATH']}")
    arguments = ["runs/mine", "many", "-o", "stopped", "--to-shards", "parquet", "--images-per-shard", "4000"]
    job = subprocess.Popen(["bash", str(ROOT / "scripts/slurm_caption.sh"), *arguments], env=environment, cwd="/")
    claims = here / "stopped/.unfinished/claims"
    assert wait_for(claims, "shard-*")
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 128 + signal.SIGTERM
    assert (here / "called").read_text() == "requeue 41\n"
    [claim] = claims.glob("shard-*")
    assert claim.read_text() == ""


def test_several_processes_and_what_they_are_told_once(hfcap: Hfcap, here: Path) -> None:
    arguments = (*COMMAND, "--images-per-shard", 2)
    assert hfcap(*arguments, "-o", "alone").code == 0
    # Only the first process deletes what is there.
    two = hfcap(*arguments, "-o", "two", "--num-processes", 2, "--force")
    assert (two.code, two.out) == (0, "Captions of 7 images in 4 shards: two\n"), two.err
    assert contents(here / "two") == contents(here / "alone")
    (here / "two/manifest.jsonl").unlink()
    other = hfcap(*arguments, "-o", "two", "--num-processes", 2, "--num-beams", 1)
    assert_refused(other, "was begun with other decoding")


def test_a_process_that_dies_and_the_end_of_all(here: Path) -> None:
    write_many(here, 200)
    arguments = ["runs/mine", "many", "-o", "out", "--to-shards", "parquet", "--images-per-shard", "10"]
    command = [sys.executable, "-m", "hfcap", "caption", *arguments, "--num-processes", "2"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    stopped = start()
    assert wait_for(here, "out/.unfinished/done/*")
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 130 and "stopped; finished shards are in out, and the same command goes on" in said
    known = set(here.glob("out/.unfinished/workers/*.json"))
    going_on = start()
    until = time.monotonic() + 240
    while not (new := set(here.glob("out/.unfinished/workers/*.json")) - known) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(int(new.pop().name.partition("-")[0]), signal.SIGKILL)
    out, said = going_on.communicate(timeout=300)
    assert (going_on.returncode, out) == (0, "Captions of 200 images in 20 shards: out\n"), said
    assert "1 process died on the way (exit code -9); others took over" in said
    assert [row["file_name"] for row in rows(here / "out")] == [f"many/{number:04d}.png" for number in range(200)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to-shards", "parquet"], "--to-shards: say which folder they go into: -o FOLDER"),
        (["-o", "x.csv", "--num-processes", 2], "--num-processes: has an effect only with --to-shards"),
        (["-o", "x.csv", "--images-per-shard", 2], "--images-per-shard: has an effect only with --to-shards"),
        (["-o", "x", "--to-shards", "parquet", "--sidecar", "txt"], "--sidecar: does not go with --to-shards"),
        (["-o", "x.csv", "--dedup"], "--dedup: has an effect only with --to-shards"),
        (["-o", "x.csv", "--price-per-hour", 2], "--price-per-hour: has an effect only with --to-shards"),
        (["-o", "photos/0.png", "--to-shards", "parquet"], "photos/0.png: is a file; give the name of a folder"),
        (["-o", "photos"], "photos: is a folder; give the name of a file"),
    ],
)
def test_what_does_not_go_together(arguments: list[Any], said: str, hfcap: Hfcap, here: Path) -> None:
    assert_refused(hfcap("caption", "runs/mine", "photos", *arguments), said)
