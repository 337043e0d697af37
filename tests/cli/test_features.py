"""hfcap features: what is kept, and deleting exactly what was asked for."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hfcap.store.row_store import RowStore
from tests.cli.command_line import Hfcap, assert_refused

DAY = 86400.0


def make_store(root: Path, key: str, encoder: str, n_images: int, days_ago: float) -> Path:
    store = RowStore(root / key)
    rows = torch.zeros(n_images, 3, 4, dtype=torch.float16)
    store.write_shard(rows, [f"{number:064x}" for number in range(n_images)])
    store.describe(encoder, rows[0])
    store.mark_used()
    then = time.time() - days_ago * DAY
    os.utime(store.folder / "last_used", (then, then))
    return store.folder


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path))
    return {
        "old": make_store(tmp_path / "features", "a" * 32, "BlipForConditionalGeneration, blip", 5, 40),
        "new": make_store(tmp_path / "features", "b" * 32, "openai/clip", 7, 1),
        "images": make_store(tmp_path / "images", "c" * 32, "resized images, 8 x 8", 2, 40),
    }


def test_list(hfcap: Hfcap, stores: dict[str, Path]) -> None:
    found = hfcap("features", "list")
    assert found.code == 0
    for word in ("aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc", "openai/clip", "3 x 4", "float16", "5", "7"):
        assert word in found.out
    assert found.out.index("bbbb") < found.out.index("aaaa")
    assert "3 stores" in found.out


def test_list_is_whole_without_a_terminal(tmp_path: Path) -> None:
    """In a process of its own: pytest's workers set COLUMNS, which counts."""
    encoder = "models/" + "a_very_long_name_of_an_encoder/" * 8
    make_store(tmp_path / "features", "a" * 32, encoder, 1, 1)
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "hfcap", "features", "list"]
    listed = subprocess.run(
        command, env=environment | {"HFCAP_CACHE": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert encoder in listed.stdout


def test_list_of_another_folder(hfcap: Hfcap, stores: dict[str, Path], tmp_path: Path) -> None:
    assert "1 stores" in hfcap("features", "list", "--folder", str(tmp_path / "images")).out
    assert_refused(hfcap("features", "list", "--folder", str(tmp_path / "nowhere")), "nowhere", "folder not found")


@pytest.mark.parametrize(
    ("conditions", "deleted"),
    [
        (["--older-than", "30"], {"old", "images"}),
        (["--encoder", "CLIP"], {"new"}),
        (["--encoder", "aaaa"], {"old"}),
        (["--older-than", "30", "--encoder", "blip"], {"old"}),
        (["--older-than", "50"], set()),
        (["--older-than", "50", "--encoder", "blip"], set()),
        (["--all"], {"old", "new", "images"}),
    ],
)
def test_prune(hfcap: Hfcap, stores: dict[str, Path], conditions: list[str], deleted: set[str]) -> None:
    done = hfcap("features", "prune", *conditions, "--yes")
    assert done.code == 0
    assert {name for name, folder in stores.items() if not folder.exists()} == deleted
    assert all(str(stores[name]) in done.out for name in deleted)


def test_prune_asks_and_takes_no_for_an_answer(hfcap: Hfcap, stores: dict[str, Path]) -> None:
    """Without a person to ask (end of input), nothing is deleted."""
    assert hfcap("features", "prune", "--all").code == 1
    assert all(folder.exists() for folder in stores.values())


@pytest.mark.parametrize("conditions", [[], ["--all", "--older-than", "3"]])
def test_prune_wants_to_know_what(hfcap: Hfcap, stores: dict[str, Path], conditions: list[str]) -> None:
    assert_refused(hfcap("features", "prune", *conditions), "--older-than DAYS", "--all")
    assert all(folder.exists() for folder in stores.values())


def test_prune_of_an_encoder_that_is_not_there(hfcap: Hfcap, stores: dict[str, Path]) -> None:
    found = hfcap("features", "prune", "--encoder", "openai/clipp", "--yes")
    assert_refused(found, "--encoder 'openai/clipp'", "bbbbbbbbbbbb  openai/clip", "BlipFor", "resized images")
    assert all(folder.exists() for folder in stores.values())


def test_prune_where_nothing_is_kept(hfcap: Hfcap, tmp_path: Path) -> None:
    found = hfcap("features", "prune", "--encoder", "clip", "--folder", tmp_path)
    assert found.code == 0 and "Nothing to delete" in found.out


def test_prune_touches_nothing_else(hfcap: Hfcap, stores: dict[str, Path], tmp_path: Path) -> None:
    """Neither files of others inside a store, nor folders that are none, nor what a link leads to."""
    (stores["new"] / "notes.txt").write_text("mine")
    (tmp_path / "features" / "holiday").mkdir()
    outside = make_store(tmp_path / "elsewhere", "d" * 32, "another", 1, 90)
    (tmp_path / "features" / ("d" * 32)).symlink_to(outside)
    assert hfcap("features", "prune", "--all", "--yes").code == 0
    assert [path.name for path in stores["new"].iterdir()] == ["notes.txt"]
    assert (tmp_path / "features" / "holiday").is_dir() and (outside / "encoder.json").is_file()


def test_damaged_stores_can_be_listed_and_deleted(hfcap: Hfcap, stores: dict[str, Path]) -> None:
    for shard in stores["old"].glob("shard-*"):
        shard.write_bytes(b"no shard")
    (stores["new"] / "encoder.json").write_text("[")
    found = hfcap("features", "list")
    assert found.code == 0 and "unknown" in found.out
    assert hfcap("features", "prune", "--all", "--yes").code == 0
    assert not stores["old"].exists() and not stores["new"].exists()


def test_the_documented_commands(hfcap: Hfcap, stores: dict[str, Path]) -> None:
    page = Path(__file__).resolve().parents[2] / "docs/data.md"
    shown = re.findall(r"^hfcap (features .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) == 3
    kept = []
    for line in shown:
        words = shlex.split(line, comments=True)
        found = hfcap(*words, *[] if "--yes" in words or "list" in words else ["--yes"])
        assert found.code == 0
        kept.append({name for name, folder in stores.items() if folder.exists()})
    assert kept == [{"old", "new", "images"}, {"new"}, set()]
