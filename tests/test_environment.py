"""environment.json: what a run ran on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from hfcap.captioners.base import BaseModel
from hfcap.data.source import load_split
from hfcap.data.sources import hub
from hfcap.environment import (
    bfloat16_gain,
    dataset_fingerprint,
    default_device,
    describe_datasets,
    describe_environment,
    git_commit,
    hardware,
    package_versions,
    slow_bfloat16,
)
from hfcap.schema import CaptionedImage
from tests.training.harness import tiny_recipe

DATA = hub.HubOptions(dataset=str(Path(__file__).parent))  # on this disk: it has no commit


def records(tmp_path: Path) -> Sequence[CaptionedImage]:
    return load_split(tiny_recipe("blip", tmp_path).data, "train")


def test_the_fingerprint_changes_with_ids_names_captions_and_order(tmp_path: Path) -> None:
    first, *others = records(tmp_path)
    same = dataset_fingerprint([first, *others])
    assert same == dataset_fingerprint(records(tmp_path)) and len(same) == 64
    changes = [
        [*others, first],
        others,
        [replace(first, image_id="x"), *others],
        [replace(first, file_name="x"), *others],
        [replace(first, captions=("x", *first.captions[1:])), *others],
        [replace(first, captions=first.captions[:-1]), *others],
    ]
    assert len({same, *map(dataset_fingerprint, changes)}) == len(changes) + 1


def test_counts(tmp_path: Path) -> None:
    described = describe_datasets(DATA, {"train": records(tmp_path)})
    assert (described["train"]["n_images"], described["train"]["n_captions"]) == (7, 35)


def test_versions_are_those_installed() -> None:
    versions = package_versions()
    assert {"hfcap", "torch", "transformers", "accelerate", "peft"} <= versions.keys()
    assert all(metadata.version(name) == version for name, version in versions.items())


def test_hardware() -> None:
    found = hardware()
    assert found["cpu"] and found["cores"] >= 1 and found["memory_bytes"] > 2**28


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_package_and_of_nothing_around_it(tmp_path: Path) -> None:
    package, installed = tmp_path / "package", tmp_path / "environment" / "hfcap"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "file.py").write_text("")
    assert git_commit(package) is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-q", "-m", "first")
    assert git_commit(package) == git(tmp_path, "rev-parse", "HEAD")
    # A virtual environment inside a person's own project: its commit says nothing about hfcap.
    assert git_commit(installed) is None


def test_everything_together(tmp_path: Path) -> None:
    models = [BaseModel(str(tmp_path), None, "vision"), BaseModel("someone/model", "abc", "text")]
    described = describe_environment(3, models, DATA, {"train": records(tmp_path)})
    assert described["seed"] == 3
    assert [(model["local"], model["revision"]) for model in described["base_models"]] == [(True, None), (False, "abc")]


def test_each_split_names_the_commit_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(hub.REGISTERED, revision=lambda options, split_name: f"commit of {split_name}")
    monkeypatch.setattr(hub, "REGISTERED", source)
    data = hub.HubOptions(dataset="a/b", validation_split="val")
    described = describe_datasets(data, {"train": records(tmp_path), "validation": records(tmp_path)})
    assert {name: facts["revision"] for name, facts in described.items()} == {
        "train": "commit of train",
        "validation": "commit of val",
    }


def test_models_run_on_the_accelerator_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert default_device() == torch.device("mps")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert default_device() == torch.device("cpu")


def test_without_an_accelerator_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert default_device() == torch.device("cpu")


FAULTS = """
import resource, sys
from hfcap.environment import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
def faults():
    import torch
    for _ in range(20):
        torch.ones(16_000_000)  # until the C library has laid out its memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
"""

with_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")


def outcome(choice: str, **environment: str) -> tuple[str, int]:
    """What `keep_freed_memory` says, and how many pages ten tensors of 64 MB needed once there had been one."""
    result = subprocess.run(
        [sys.executable, "-c", FAULTS, choice],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    said, faults = result.stdout.split()
    return said, int(faults)


@with_glibc
def test_next_tensor_takes_freed_memory() -> None:
    said, faults = outcome("keep")
    assert said == "True"
    # Ten tensors have 156,250 pages of 4 KiB, or 300 of 2 MiB.
    assert faults < 30 < outcome("leave")[1]


@with_glibc
@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072")]
)
def test_choice_of_the_environment_stays(name: str, value: str) -> None:
    said, faults = outcome("keep", **{name: value})
    assert said == "False"
    assert faults > 30


def test_products_in_bfloat16_are_timed_where_a_processor_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    measured = bfloat16_gain()
    assert measured > 0 and bfloat16_gain() == measured  # once in a process
    assert (slow_bfloat16(cpu) is None) is (measured > 0.5)
    monkeypatch.setattr("hfcap.environment.bfloat16_gain", lambda: 0.1)
    assert "10 times" in str(slow_bfloat16(cpu)) and slow_bfloat16(gpu) is None
