"""The scripts: what the shell ones say when they cannot work; the benchmark of image loading on tiny images."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from hfcap.errors import UserError
from scripts import bench_images, bench_shards, bench_starting

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci/run"]
PROGRAMS = [
    path
    for path in sorted((ROOT / "scripts").glob("*.py"))
    if {"argparse", "__main__"} <= set(re.findall(r"argparse|__main__", path.read_text(encoding="utf-8")))
]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def bash(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )


@pytest.fixture
def only_old_python(tmp_path: Path) -> str:
    """A PATH on which every Python says that it is too old, with the few tools that the scripts call."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "cksum", "grep"):
        found = shutil.which(tool)
        assert found
        (tools / tool).symlink_to(found)
    for name in ("python3.13", "python3.12", "python3.11", "python3", "python"):
        stub = tools / name
        stub.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n', encoding="utf-8")
        stub.chmod(0o755)
    return str(tools)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script: Path) -> None:
    result = bash("-n", str(script), PATH=os.environ["PATH"])
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_help(program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.setattr(sys, "argv", [program.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(program), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("script", ["test.sh", "quickstart.sh"])
def test_too_old_python_is_named_and_nothing_is_made(script: str, only_old_python: str, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    result = bash(str(ROOT / "scripts" / script), PATH=only_old_python, HFCAP_VENV=str(venv))
    assert result.returncode == 2
    assert "hfcap needs Python 3.11 or newer; found: Python 3.9.2." in result.stderr
    assert not venv.exists()


def test_an_environment_with_an_old_python_is_refused(only_old_python: str, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    old = venv / "bin" / "python"
    old.write_text('#!/bin/sh\n[ "$1" = -m ] && exit 0\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    result = bash(str(ROOT / "scripts/test.sh"), PATH=only_old_python, HFCAP_VENV=str(venv))
    assert result.returncode == 2
    assert "is older than Python 3.11; set HFCAP_VENV to another folder" in result.stderr
    assert sorted(path.name for path in venv.rglob("*")) == ["bin", "python"]


@pytest.fixture
def called(tmp_path: Path) -> Callable[..., list[str]]:
    """How scripts/test.sh calls Python: one line per call."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n', encoding="utf-8")
    python.chmod(0o755)

    def run(*arguments: str) -> list[str]:
        (tmp_path / "calls").write_text("", encoding="utf-8")
        result = bash(str(ROOT / "scripts/test.sh"), *arguments, PATH=os.environ["PATH"], HFCAP_VENV=str(venv))
        assert result.returncode == 0, result.stderr
        return (tmp_path / "calls").read_text(encoding="utf-8").splitlines()

    return run


def test_the_whole_suite_lints_and_passes_arguments_on(called: Callable[..., list[str]]) -> None:
    calls = called("tests/metrics", "-k", "cider")
    tools = [" ".join(call.split()[:3]) for call in calls if re.match(r"-m (ruff|mypy|codespell_lib)", call)]
    assert tools == ["-m ruff check", "-m ruff format", "-m codespell_lib ./CHANGELOG.md", "-m mypy hfcap"]
    assert calls[-1] == "-m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/metrics -k cider"


def test_the_quick_tests_exist(called: Callable[..., list[str]]) -> None:
    arguments = called("--quick", "-x")[-1].split()
    assert arguments[:6] == ["-m", "pytest", "-n", "2", "--dist", "loadfile"] and arguments[-1] == "-x"
    listed = arguments[7:-1]
    left_out = [one.removeprefix("--ignore=") for one in listed if one.startswith("--ignore=")]
    assert left_out and [one for one in listed if not (ROOT / one.removeprefix("--ignore=")).exists()] == []
    # Each one that is left out lies in a folder that is listed.
    assert [one for one in left_out if str(Path(one).parent) not in listed] == []


def test_the_documented_benchmark_of_images_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    [shown] = [line for line in page.splitlines() if line.startswith("python scripts/bench_images.py ")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    for number in range(4):
        image = Image.effect_noise((64 + number, 48), 60).convert("RGB")
        (tmp_path / "images").mkdir(exist_ok=True)
        image.save(tmp_path / "images" / f"{number}.jpg")
    threads = torch.get_num_threads()
    # In this process: workers would each take seconds to start.
    bench_images.main([*shlex.split(shown)[2:], "--workers", "0", "--repeats", "1"])
    torch.set_num_threads(threads)
    values = json.loads((tmp_path / "bench_images.json").read_text(encoding="utf-8"))
    [row] = values["results"]
    assert (row["processor"], row["photos"], row["first_size"]) == ("vit", 4, [64, 48])
    assert set(row["ratios"]) == set(row["photos_per_second"]) > {"hfcap", "processor in a DataLoader"}
    assert row["ratios"]["processor in a DataLoader"] == 1
    assert 0 <= row["levels_apart"]["mean"] < 0.06


def test_the_benchmark_of_images_needs_photos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no photos there"):
        bench_images.main([str(tmp_path)])


def test_the_benchmark_of_shards_compares_what_is_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("webdataset", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    for number in range(3):
        Image.effect_noise((64 + number, 48), 60).convert("RGB").save(tmp_path / f"{number}.jpg")
    threads = torch.get_num_threads()
    bench_shards.main([str(tmp_path), "--size", "32", "--repeats", "1", "--output", str(tmp_path / "found.json")])
    torch.set_num_threads(threads)
    assert "webdataset: left out: webdataset: cannot be used" in capsys.readouterr().err
    values = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    [row] = values["results"]
    assert values["photos"] == 3 and row["size"] == 32
    assert set(row["images_per_second"]) == {"hfcap, tar", "hfcap, parquet"}
    assert min(row["images_per_second"].values()) > 0


@pytest.mark.usefixtures("forks")
def test_the_benchmark_of_starting_writes_and_measures_each_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_starting, "_AGED", 0)
    folder, found = tmp_path / "data", tmp_path / "found.json"
    bench_starting.main(["--images", "40", "--source", "folder", "--folder", str(folder), "--output", str(found)])
    first, second = json.loads(found.read_text(encoding="utf-8"))
    assert (first["source"], first["images"], first["start"], second["start"]) == ("folder", 40, "first", "second")
    assert set(first["steps"]) == {"nothing", "load", "hashes", "description", "batches"}
    assert all(step["mib"] > 0 for step in second["steps"].values())


def test_simulated_records_are_arrays_alone(tmp_path: Path) -> None:
    """No Python object stays for a record: one in a list would take 36 bytes at least, a record hundreds."""
    count, found = 50_000, tmp_path / "found.json"
    bench_starting.main(["--simulate", "1000"])  # imports
    tracemalloc.start()
    bench_starting.main(["--simulate", str(count), "--output", str(found)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    [row] = json.loads(found.read_text(encoding="utf-8"))
    assert (row["source"], row["images"]) == ("simulated", count)
    assert set(row["steps"]) >= {"records", "a split", "tokens", "an epoch", "its second half"}
    # Numbers of records: given, drawn and sorted; where five captions begin; lengths of these and of images.
    assert peak / count < 3 * 8 + (5 * 8 + 8) + (5 * 1 + 5 * 8) + 3 * 8 + 100, peak / count


def declared() -> list[Requirement]:
    """What pyproject.toml asks for, extras included; without what one extra takes over from another."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    listed = map(Requirement, [*project["dependencies"], *extras])
    return [one for one in listed if one.name != "hfcap"]


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_pinned_versions_are_those_that_the_project_allows() -> None:
    """Every extra has its versions in constraints.txt, and so goes with every other one."""
    versions = pinned("constraints.txt")
    assert [str(one) for one in declared() if not one.specifier.contains(versions[canonicalize_name(one.name)])] == []


def test_every_lower_bound_is_a_version_that_is_run() -> None:
    """constraints-lowest.txt names exactly the lower bounds, those of the extras included."""
    bounds = {one.name: specifier.version for one in declared() for specifier in one.specifier}
    assert {specifier.operator for one in declared() for specifier in one.specifier} == {">="}
    assert pinned("constraints-lowest.txt") == bounds
    tools = {one.name for one in declared() if not one.specifier}
    # They run on the code, in constraints.txt.
    assert tools == {"codespell", "mypy", "ruff", "types-jsonschema", "types-pyyaml"}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """A cluster of two machines as a script sees it: commands that note how they were called, and a training."""
    tools, calls = tmp_path / "tools", tmp_path / "calls"
    tools.mkdir()
    commands = {
        "scontrol": f'[ "$1" = show ] && printf "node7\\nnode8\\n" || echo "scontrol $*" >>{calls}',
        "scancel": f'echo "scancel $*" >>{calls}; kill -TERM "$(cat {tmp_path}/pid)"',
        # A machine's part of the job, which starts what it was given.
        "srun": f'echo "$1 $2" >{tmp_path}/srun; shift 2; SLURM_NODEID=1 exec "$@"',
        "python": f'echo "$@" >>{calls}; echo $$ >{tmp_path}/pid; trap "exit 130" TERM; while [ -e {tmp_path}/long ]; '
        "do sleep 0.05; done",
    }
    for name, script in commands.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "bin").symlink_to(tools)
    job = {
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[7-8]",
    }
    place = {"SLURM_SUBMIT_DIR": str(tmp_path), "HFCAP_VENV": str(tmp_path / "venv")}
    return {**job, **place, "SLURM_GPUS_ON_NODE": "4", "PATH": f"{tools}:{os.environ['PATH']}"}


def test_slurm_launches_all_machines(slurm: dict[str, str], tmp_path: Path) -> None:
    result = bash(str(ROOT / "scripts/slurm.sh"), "a recipe.yaml", "data.root=x", **slurm)
    assert (result.returncode, result.stderr) == (0, "")
    [called] = (tmp_path / "calls").read_text().splitlines()
    assert called.startswith("-m accelerate.commands.launch --machine_rank 1 --num_machines 2 --num_processes 8 ")
    assert "--main_process_ip node7 --main_process_port 20041" in called and "--multi_gpu" in called
    assert called.endswith("-m hfcap run a recipe.yaml data.root=x")
    # Newer SLURMs do not hand the job's number on to its steps.
    assert (tmp_path / "srun").read_text() == "--kill-on-bad-exit=1 --cpus-per-task=8\n"


def test_slurm_launches_weights_in_pieces(slurm: dict[str, str], tmp_path: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    shutil.copy(ROOT / "recipes/accelerate/fsdp2.yaml", tmp_path / "mine.yaml")
    result = bash(str(ROOT / "scripts/slurm.sh"), "recipe.yaml", HFCAP_ACCELERATE="mine.yaml", **slurm)
    assert (result.returncode, result.stderr) == (0, "")
    called = (tmp_path / "calls").read_text().split()
    options = launch_command_parser().parse_args(called[2:])
    # Accelerate refuses --multi_gpu or --cpu next to a configuration with FSDP.
    assert (options.config_file, options.multi_gpu, options.cpu) == ("mine.yaml", False, False)
    assert (options.num_machines, options.num_processes, options.machine_rank) == (2, 8, 1)
    result = bash(str(ROOT / "scripts/slurm.sh"), "recipe.yaml", HFCAP_ACCELERATE="none.yaml", **slurm)
    assert result.returncode == 2 and "HFCAP_ACCELERATE: no file none.yaml; name a configuration" in result.stderr


def test_slurm_s_launch_is_understood_by_accelerate(slurm: dict[str, str], tmp_path: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    bash(str(ROOT / "scripts/slurm.sh"), "recipe.yaml", **slurm)
    called = (tmp_path / "calls").read_text().split()
    options = launch_command_parser().parse_args(called[2:])
    assert (options.num_machines, options.num_processes, options.machine_rank) == (2, 8, 1)
    assert options.module and options.training_script == "hfcap"


def test_slurm_job_that_is_stopped_queues_itself_again(slurm: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "long").touch()
    job = subprocess.Popen(["bash", str(ROOT / "scripts/slurm.sh"), "recipe.yaml"], env=slurm, cwd="/")
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    job.wait(timeout=30)
    assert (tmp_path / "calls").read_text().splitlines()[1:] == ["scancel --signal=TERM 41", "scontrol requeue 41"]


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"SLURM_JOB_ID": ""}, ["recipe.yaml"], "this script is for a SLURM cluster"),
        ({}, [], "which recipe?"),
        ({"HFCAP_VENV": "/nowhere"}, ["recipe.yaml"], "no /nowhere/bin/python; make the environment first"),
    ],
)
def test_slurm_says_what_is_missing(
    slurm: dict[str, str], changes: dict[str, str], arguments: list[str], message: str
) -> None:
    result = bash(str(ROOT / "scripts/slurm.sh"), *arguments, **{**slurm, **changes})
    assert result.returncode == 2 and message in result.stderr


@pytest.mark.usefixtures("forks")
def test_captioning_survives_kills() -> None:
    command = [sys.executable, "-m", "scripts.kill_captioning", "--kills", "3", "--shards", "6", "--processes", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    n_kills = re.search(r"^(\d+) kills in ", done.stdout, re.MULTILINE)
    assert n_kills is not None and int(n_kills[1]) >= 3
    assert done.stdout.endswith("each image exactly once, every byte as without kills\n")
