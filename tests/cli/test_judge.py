"""`hfcap judge`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.captioners.chat_server import ChatServer, chatting
from tests.captioners.clip_folder import write_clip
from tests.cli.command_line import Hfcap, assert_refused
from tests.data.sample_images import write_jpeg

NO_JUDGE = "judge.model: name the model that judges, such as"


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    """A judge that calls everything a tie, in its own words."""
    with chatting() as server:
        server.answer = lambda choice: {"message": {"content": "Reason: both are good.\nJudgment: Tie"}}
        yield server


@pytest.fixture
def place(tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write_jpeg(tmp_path / "images" / f"{number}.jpg", "red")
    for name in ("a", "b"):
        rows: list[dict[str, Any]] = [{"image_id": number, "caption": f"{name} {number}"} for number in range(3)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (tmp_path / "fewer.json").write_text(json.dumps({"0": "a red image", "7": "a dog"}))
    (tmp_path / "none.json").write_text(json.dumps({"x": "a dog"}))
    (tmp_path / "ratings.csv").write_text("image_id,candidate,references,score\n0.jpg,a,b,1\n0.jpg,c,b,2\n")
    (tmp_path / "people.csv").write_text("image_id,better,worse,references\n0.jpg,a dog,a cat,b\n1.jpg,a,b,c\n")
    return tmp_path


def test_the_command(hfcap: Hfcap, place: Path, chat: ChatServer) -> None:
    server = ("--base-url", chat.base_url, "--n-resamples", 100)
    found = hfcap("judge", "a.json", "b.json", "--images", "images", *server, "-o", "judged")
    assert found.code == 0, found.err
    said = " ".join(found.out.split())
    assert "Ranked by a judge on 3 images (Bradley-Terry, mean 1000)" in said
    assert "Agreement of the judge with people not measured: hfcap judge --people JUDGMENTS" in said
    assert "The judge said the same in both orders of 100% of 3 pairs" in said
    assert "metrics.judge.model:colours" in said and "metrics.judge.orders:both" in said
    page = (place / "judged" / "ranking.md").read_text()
    assert "| `a` | 1000 | 1000 to 1000 |  | 0 | 3 | 0 |" in page
    assert json.loads((place / "judged" / "ranking.json").read_text())["pairs"][0]["ties"] == 3
    worth = hfcap("judge", "--people", "people.csv", "--images", "images", *server, "-o", "worth")
    assert worth.code == 0 and "2 judgments of 4 captions for 2 images" in " ".join(worth.out.split()), worth.err
    again = hfcap(
        *("judge", "a.json", "b.json", "--images", "images", *server),
        *("--agreement", "worth/agreement.json", "--option", "extra_body={top_k: 1}"),
    )
    assert "not measured: agreement.json is of another judge (extra_body is None there)" in again.out, again.err
    assert chat.asked[-1]["top_k"] == 1
    known = hfcap("judge", "a.json", "b.json", "--images", "images", *server, "--agreement", "worth/agreement.json")
    assert "Agreement of the judge with people accuracy 50.0 (50.0 to 50.0) on 2 judgments" in known.out, known.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("a.json b.json --images images", NO_JUDGE),
        ("a.json", "judge: give two or more systems, each once"),
        ("a.json a.json", "judge: give two or more systems, each once"),
        ("a.json b.json", "do not say where the images are; give their folder with --images"),
        ("a.json nowhere.json --images images", "nowhere.json: prediction file not found"),
        ("a.json fewer.json --images images", "judge: 3 of 4 images, for example '1', have no caption of some of"),
        ("a.json none.json --images images", "judge: no image has captions of all of a, none"),
        ("a.json b.json --images images --model CLIP", "the judge (judge.model) cannot be loaded"),
        ("a.json b.json --images images --prompt Which?", "judge.prompt: the prompt shows the judge no caption_1"),
        ("a.json b.json --images images --option dtype=int3", "judge: option 'dtype'"),
        ("a.json b.json --images images --base-url http://example.com/v1", "judge.images_may_leave=true"),
        ("a.json b.json --images images --agreement a.json", "a.json: file of agreement with people must be"),
        ("a.json --people people.csv", "--people: measures the judge itself; leave out a.json"),
        ("--people people.csv --n-images 2", "--n-images: has no effect with --people"),
        ("--people ratings.csv --images images --model CLIP", "--people: these judgments are ratings"),
        ("--people people.csv --model CLIP", "--people: these judgments hold no images; give their folder"),
        ("a.json b.json --images images --option dtype", "--option 'dtype': write name=value"),
        ("a.json b.json --images images --option dtyp=float32", "judge: unknown option 'dtyp'; did you mean 'dtype'?"),
    ],
)
def test_what_is_wrong_is_one_message(arguments: str, said: str, place: Path, hfcap: Hfcap) -> None:
    given = [write_clip(place / "clip") if one == "CLIP" else one for one in arguments.split()]
    if not {"--model", "--base-url"} & set(given) and said is not NO_JUDGE:
        given += ["--model", "somebody/judge"]
    assert_refused(hfcap("judge", *given), said)


def test_images_that_some_do_not_caption_can_be_left_out(hfcap: Hfcap, place: Path, chat: ChatServer) -> None:
    found = hfcap(
        *("judge", "a.json", "fewer.json", "--images", "images", "--base-url", chat.base_url),
        *("--n-resamples", 100, "--allow-missing"),
    )
    assert found.code == 0 and "on 1 images" in found.out, found.err
    assert "3 of 4 images lack captions of some systems" in found.err
