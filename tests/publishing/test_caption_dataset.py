"""Captioned images as a dataset of the Hub: what `datasets` reads of it, its card, and what never goes up."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfApi, snapshot_download

from hfcap.captioning import find_images
from hfcap.errors import UserError
from hfcap.publishing.caption_dataset import stage_caption_dataset
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import Prediction
from scripts.hub_server.card_rules import check_card
from tests.captioners.helpers import build, write_image
from tests.cli.command_line import Hfcap, assert_refused
from tests.cli.conftest import hfcap  # noqa: F401
from tests.hub_server import Hub


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(["a.png", "b|[x](y).jpg", "deeper/a.png"]):
        write_image(tmp_path / "photos" / name, seed=number)
    build("blip").save(tmp_path / "my captioner", GenerateOptions(num_beams=2, max_new_tokens=4))
    return tmp_path / "photos"


def test_the_command_publishes_what_datasets_reads(hub: Hub, photos: Path, tmp_path: Path, hfcap: Hfcap) -> None:  # noqa: F811
    (photos / "damaged.png").write_bytes(b"damaged")
    command = ("caption", tmp_path / "my captioner", photos, "--push-to-hub", "alice/photos", "--prefix", "sks")
    outcome = hfcap(*command, "--review-below-score", "0")
    assert outcome.code == 0, outcome.err
    assert f"Published 5 files: {hub.endpoint}/datasets/alice/photos" in outcome.out
    assert HfApi().repo_info("alice/photos", repo_type="dataset").private is True
    folder = Path(snapshot_download("alice/photos", repo_type="dataset", local_dir=tmp_path / "down"))
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["source"] for row in rows] == ["a.png", "b|[x](y).jpg", "a.png"]
    assert all(row["caption"].startswith("sks") and row["review"] and row["image"].size == (40, 32) for row in rows)
    stored = sorted(path.read_bytes() for path in (folder / "images").rglob("*.*"))
    assert stored == sorted(path.read_bytes() for path in photos.rglob("*.*") if path.stem != "damaged")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert check_card(card, "dataset") == ([], []) and "3 images" in card and "my captioner" in card
    assert "3 are marked for review" in card and "licence" in card
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in folder.rglob("*.*") if path.is_file())
    # Again: nothing new; with an image less, what is no longer there goes away.
    assert "Nothing to publish" in hfcap(*command, "--review-below-score", "0").out
    (photos / "deeper/a.png").unlink()
    assert hfcap(*command).code == 0
    files = HfApi().list_repo_files("alice/photos", repo_type="dataset")
    assert len([name for name in files if name.startswith("images/")]) == 2


def test_who_may_not_publish_knows_before_any_work(hub: Hub, photos: Path, hfcap: Hfcap) -> None:  # noqa: F811
    start = ("caption", "no/model", photos)
    assert_refused(hfcap(*start, "--push-to-hub", "mallory/photos"), "may not write in the namespace 'mallory'")
    assert_refused(hfcap(*start, "--push-to-hub", "photos"), "lacks the namespace")
    assert_refused(hfcap(*start, "--push-to-hub", "alice/x", "--sidecar", "txt"), "--sidecar", "--push-to-hub")
    assert_refused(hfcap(*start, "--public"), "--public", "only with --push-to-hub")


def test_captions_are_text_on_the_card_and_secrets_stay_here(photos: Path, tmp_path: Path) -> None:
    records = find_images([str(photos / "a.png")])
    hostile = "<script>alert(1)</script> [x](http://y) `z`\n# title"
    stage_caption_dataset(records, [Prediction(records[0].image_id, "a.png", hostile)], tmp_path / "one", "<b>|x|")
    card = (tmp_path / "one" / "README.md").read_text(encoding="utf-8")
    assert "<b>" not in card and "\n# title" not in card and re.search(r"``.*<script>.*``", card)
    secret = Prediction(records[0].image_id, "a.png", f"token hf_{'x' * 34}")
    with pytest.raises(UserError, match="not published, because the files hold what should stay private"):
        stage_caption_dataset(records, [secret], tmp_path / "two", "x")
