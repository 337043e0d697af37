"""The table of tested versions, the bounds and the constant that warns about newer releases say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from hfcap.generation.verdicts import TESTED_TRANSFORMERS

PROJECT = Path(__file__).parents[1]


def rows() -> list[dict[str, str]]:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (PROJECT / "docs" / "tested_versions.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_every_cell_was_run_and_none_failed() -> None:
    found = {row["cell"]: row for row in rows()}
    assert list(found) == ["pinned", "lowest", "newest", "vision", "python3.12"]
    assert {row["failed"] for row in found.values()} == {"0"}
    assert all(int(row["passed"]) > 100 for row in found.values())
    assert {row["quick start"] for row in found.values()} == {"same"}
    assert {row["Python"].rpartition(".")[0] for row in found.values()} == {"3.11", "3.12", "3.13"}


def test_newer_releases_are_named_from_the_newest_tested_on() -> None:
    tested = sorted({row["transformers"] for row in rows()}, key=lambda text: [int(part) for part in text.split(".")])
    assert (tested[0], tested[-1]) == TESTED_TRANSFORMERS


def test_bounds_and_pins_are_those_of_the_table() -> None:
    found = {row["cell"]: row for row in rows()}
    dependencies = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    bound = next(re.fullmatch(r"transformers>=([\d.]+)", line) for line in dependencies if "transformers" in line)
    assert bound is not None and found["lowest"]["transformers"].startswith(bound[1])
    pins = (PROJECT / "constraints.txt").read_text(encoding="utf-8")
    for package in ("transformers", "peft", "accelerate", "datasets"):
        assert f"{package}=={found['pinned'][package]}\n" in pins
