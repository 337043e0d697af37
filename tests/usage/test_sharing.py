"""A day of sharing: publish to a Hub, let others verify it and caption from there, be told when something is off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from hfcap.children import run_program
from tests.cli.command_line import Hfcap
from tests.hub_server import Hub
from tests.usage.album import contents, leftovers, write_album, write_recipe

PUBLISH = {"repo_id": "alice/walls", "license": "apache-2.0", "dataset_name": "Walls", "samples_license": "cc-by-4.0"}


@pytest.fixture(scope="module")
def trained(forking: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An album, and the run of a captioner for it."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = write_recipe(folder, write_album(folder / "album"), publish=PUBLISH)
    done = run_program([forking, "-m", "hfcap", "run", str(recipe), "publish.repo_id=null"], timeout=280)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to publish."""
    return shutil.copytree(trained / "runs" / "tiny", tmp_path / "runs" / "tiny")


def test_publish_verify_and_caption_from_the_hub(
    hub: Hub, hfcap: Hfcap, trained: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    album = trained / "album"
    dry = hfcap("publish", tmp_path / "runs" / "other", "--dry-run")
    assert dry.code == 2 and "run" in dry.err, "nothing was trained yet"
    monkeypatch.delenv("HF_TOKEN")
    refused = hfcap("publish", run, "--repo-id", "alice/walls")
    assert refused.code == 2 and "hf auth login" in refused.err, refused
    monkeypatch.setenv("HF_TOKEN", hub.mallory)
    refused = hfcap("publish", run, "--repo-id", "alice/walls")
    assert refused.code == 2 and "alice" in refused.err and "Traceback" not in refused.err, refused
    monkeypatch.setenv("HF_TOKEN", hub.alice)
    before = contents(run)
    published = hfcap("publish", run, "--repo-id", "alice/walls", "--skip-verification")  # that is what `verify` does
    assert published.code == 0, published
    assert "alice/walls" in published.out
    assert set(before) <= set(contents(run)) and leftovers(tmp_path) == []

    # Somebody else, with nothing but the name.
    monkeypatch.setenv("HF_TOKEN", hub.mallory)
    verified = hfcap("verify", "alice/walls")
    assert verified.code == 0, verified
    captioned = hfcap("caption", "alice/walls", album / "teal.jpg", "-o", tmp_path / "theirs.jsonl")
    assert captioned.code == 0, captioned
    (theirs,) = map(json.loads, (tmp_path / "theirs.jsonl").read_text().splitlines())
    (ours,) = [
        row
        for row in map(json.loads, (run / "predictions/test.jsonl").read_text().splitlines())
        if row["image_id"] == "teal.jpg"
    ]
    assert theirs["caption"] == ours["caption"]
    missing = hfcap("caption", "alice/wals", album / "teal.jpg")
    assert missing.code in (1, 2) and "alice/wals" in missing.err and "Traceback" not in missing.err
    tokens = [hub.alice, hub.mallory]
    assert not [
        path for path in run.rglob("*") if path.is_file() for token in tokens if token.encode() in path.read_bytes()
    ]


def test_ten_changed_weights_are_noticed(hub: Hub, hfcap: Hfcap, run: Path, tmp_path: Path) -> None:
    assert hfcap("publish", run, "--repo-id", "alice/walls", "--skip-verification").code == 0
    tensors = load_file(run / "model" / "model.safetensors")
    tensors[max(tensors)].view(-1)[:10] += 1e-3
    save_file(tensors, tmp_path / "changed.safetensors", {"format": "pt"})
    HfApi(token=hub.alice).upload_file(
        path_or_fileobj=tmp_path / "changed.safetensors", path_in_repo="model.safetensors", repo_id="alice/walls"
    )
    verified = hfcap("verify", "alice/walls")
    assert verified.code == 1 and "Traceback" not in verified.err, verified
    assert "model.safetensors is not the file that was published with the others" in verified.out + verified.err


def test_what_must_stay_private_does_not_go_up(hub: Hub, hfcap: Hfcap, run: Path) -> None:
    rows = [json.loads(line) for line in (run / "predictions/test.jsonl").read_text().splitlines()]
    rows[0]["caption"] = f"my token is {hub.alice}"
    (run / "predictions/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = hfcap("publish", run, "--repo-id", "alice/walls")
    assert refused.code == 2, refused
    assert "predictions/test.jsonl, line 1" in refused.err and "remove it from the run" in refused.err
    assert hub.alice not in refused.err + refused.out
    assert not HfApi().repo_exists("alice/walls")
