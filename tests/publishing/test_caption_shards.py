"""Captions in shards as a dataset of the Hub: several commits, of which any answer may be lost."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfApi, snapshot_download

from hfcap.errors import WorkError
from hfcap.publishing import caption_shards
from hfcap.publishing.caption_shards import push_caption_shards
from hfcap.recipe.blocks import GenerateOptions
from scripts.hub_server.card_rules import check_card
from tests.captioners.helpers import build, write_image
from tests.cli.command_line import Hfcap, assert_refused
from tests.cli.conftest import hfcap  # noqa: F401
from tests.hub_server import Hub
from tests.test_documentation import ROOT, code_blocks

REPOSITORY = "alice/captions"


@pytest.fixture
def command(tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:  # noqa: F811
    """A command that writes four shards of seven images, of which one is a copy and one damaged."""
    for number in range(6):
        write_image(tmp_path / "photos" / f"{number}.png", seed=number % 5)
    (tmp_path / "photos/9.png").write_bytes(b"damaged")
    build("blip").save(tmp_path / "mine", GenerateOptions(num_beams=1, max_new_tokens=4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(caption_shards, "FILES_PER_COMMIT", 3)
    return ("caption", "mine", "photos", "--images-per-shard", "2", "--dedup", "-o")


def files_on(hub: Hub, folder: Path) -> dict[str, bytes]:
    place = Path(snapshot_download(REPOSITORY, repo_type="dataset", local_dir=folder))
    found = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith((".cache", ".gitattributes"))}


def test_a_dataset_of_somebody_else_stays_as_it_is(
    hub: Hub,
    command: tuple[str, ...],
    tmp_path: Path,
    hfcap: Hfcap,  # noqa: F811
) -> None:
    api = HfApi()
    api.create_repo(REPOSITORY, repo_type="dataset", private=True)
    api.upload_file(
        path_or_fileobj=b"photos", path_in_repo="data/train-0.parquet", repo_id=REPOSITORY, repo_type="dataset"
    )
    outcome = hfcap(*command, "out", "--to-shards", "parquet", "--push-to-hub", REPOSITORY)
    assert outcome.code == 2 and "the dataset holds data/train-0.parquet, which hfcap did not push" in outcome.err
    assert files_on(hub, tmp_path / "down") == {"data/train-0.parquet": b"photos"}


def test_the_command_publishes_in_commits_what_datasets_reads(
    hub: Hub,
    command: tuple[str, ...],
    tmp_path: Path,
    hfcap: Hfcap,  # noqa: F811
) -> None:
    arguments = (*command, "out", "--to-shards", "parquet", "--push-to-hub", REPOSITORY)
    lines = [line for block in code_blocks(ROOT / "docs/scaling.md", "bash") for line in block.splitlines()]
    [shown] = [line.split() for line in lines if "--push-to-hub" in line]
    # The page's command, with two more options.
    given = {"hfcap", *arguments} | {"runs/mine", "captions", "you/captions"}
    assert set(shown) <= given
    outcome = hfcap(*arguments)
    assert outcome.code == 0, outcome.err
    assert "Left out: 1 image with the bytes of another one\nCaptions of 5 images in 4 shards: out\n" in outcome.out
    # Three shards, one shard, and last what says that it is complete.
    assert f"Published 7 files in 3 commits: {hub.endpoint}/datasets/{REPOSITORY}" in outcome.out
    found = files_on(hub, tmp_path / "down")
    assert found.keys() == {*(f"data/shard-0000{n}.parquet" for n in range(4)), *LAST}
    for name, content in found.items():
        if name != "README.md":
            assert content == (tmp_path / "out" / name.removeprefix("data/")).read_bytes(), name
    card = found["README.md"].decode()
    assert check_card(card, "dataset") == ([], []) and "5 images" in card and "1 could not be read" in card
    assert HfApi().repo_info(REPOSITORY, repo_type="dataset").private is True
    rows = datasets.load_dataset(str(tmp_path / "down"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["file_name"] for row in rows] == [f"photos/{n}.png" for n in (0, 1, 2, 3, 4, 5, 9)]
    assert "Nothing to publish" in hfcap(*arguments).out
    # Larger shards in the place of these: the old ones go away with the last commit.
    again = hfcap(*arguments, "--images-per-shard", "4", "--force")
    assert "Published 4 files in 2 commits" in again.out, again.err
    assert sorted(name for name in files_on(hub, tmp_path / "two") if name.startswith("data/")) == [
        "data/shard-00000.parquet",
        "data/shard-00001.parquet",
    ]


LAST = {"README.md", "manifest.jsonl", "captioning.json"}


@pytest.mark.parametrize("lost", range(3))
def test_a_lost_answer_makes_no_second_commit(
    lost: int,
    hub: Hub,
    command: tuple[str, ...],
    tmp_path: Path,
    hfcap: Hfcap,  # noqa: F811
) -> None:
    assert hfcap(*command, "out", "--to-shards", "parquet").code == 0
    hub.faults.add("drop_after", "commit", skip=lost)
    pushed = push_caption_shards(tmp_path / "out", REPOSITORY, private=True)
    assert pushed.n_files == 7 and hub.calls("commit") == 3
    assert len(HfApi().list_repo_commits(REPOSITORY, repo_type="dataset")) == 3 + 1  # and the one that made it


def test_a_stop_in_the_middle_is_not_taken_for_the_whole(
    hub: Hub,
    command: tuple[str, ...],
    tmp_path: Path,
    hfcap: Hfcap,  # noqa: F811
) -> None:
    assert hfcap(*command, "out", "--to-shards", "webdataset").code == 0
    hub.faults.add("503", "commit", times=1000, skip=1)
    with pytest.raises(WorkError):
        push_caption_shards(tmp_path / "out", REPOSITORY, private=True)
    assert files_on(hub, tmp_path / "half").keys() == {f"data/shard-0000{n}.tar" for n in range(3)}
    hub.faults.clear()
    assert push_caption_shards(tmp_path / "out", REPOSITORY, private=True).n_files == 1 + len(LAST)
    assert len(files_on(hub, tmp_path / "whole")) == 4 + len(LAST)


def test_no_place_of_this_machine_and_no_secret_goes_up(
    hub: Hub,
    command: tuple[str, ...],
    tmp_path: Path,
    hfcap: Hfcap,  # noqa: F811
) -> None:
    shards = ("--to-shards", "parquet", "-o", "out", "--push-to-hub", REPOSITORY)
    assert_refused(
        hfcap("caption", "no/model", tmp_path / "photos", *shards), "this machine's folders", "relative name"
    )
    (tmp_path / "list.txt").write_text(f"{tmp_path}/photos/0.png\n")
    late = hfcap("caption", "mine", "list.txt", *shards)
    assert late.code == 2 and "data/shard-00000.parquet, line 1: a path of this machine" in late.err
    for form in ("parquet", "webdataset"):
        prefix = f"hf_{'x' * 34}"
        arguments = ("caption", "mine", "photos", "--to-shards", form, "-o", form, "--push-to-hub", REPOSITORY)
        found = hfcap(*arguments, "--prefix", prefix)
        assert found.code == 2 and "data/shard-00000." in found.err and "a Hugging Face token" in found.err
    assert hub.calls("commit") == hub.calls("create_repo") == 0
    assert json.loads((tmp_path / "out/captioning.json").read_text())["model"] == "mine"
