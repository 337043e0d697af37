"""`hfcap ensemble`: consensus of prediction files, and what is wrong with files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hfcap.errors import UserError
from hfcap.files import read_json_lines
from hfcap.search.fusion import fuse_predictions
from tests.metrics.random_captions import random_captions
from tests.metrics.reference_cider import reference_cider


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(captions: dict[str, list[str]]) -> list[dict[str, Any]]:
    return [
        {"image_id": key, "file_name": f"{key}.jpg", "caption": group[0], "score": -1.0, "candidates": group}
        for key, group in captions.items()
    ]


def test_consensus_of_three_files_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    members = [random_captions(8, seed)[1] for seed in (1, 2, 3)]
    files = [write(tmp_path / f"{number}.jsonl", rows_of(member)) for number, member in enumerate(members)]
    training = {key: [caption, caption] for key, caption in random_captions(30, 9)[0].items() if caption}
    frequencies = tmp_path / "training.json"
    frequencies.write_text(json.dumps(training), encoding="utf-8")
    weights = [1.0, 2.0, 0.5]
    warnings: list[str] = []
    fuse_predictions(
        files, tmp_path / "out.jsonl", weights=weights, document_frequencies=str(frequencies), warn=warnings.append
    )
    assert warnings == []
    documents = list(training.values())
    for _, row in read_json_lines(tmp_path / "out.jsonl", "fused"):
        groups = [member[row["image_id"]] for member in members]
        votes = [(text, w / len(group)) for group, w in zip(groups, weights, strict=True) for text in group]
        expected = {
            caption: sum(w * reference_cider(caption, [other], documents) for other, w in votes) / sum(weights)
            for caption, _ in votes
        }
        assert row["score"] == pytest.approx(max(expected.values()), abs=1e-9)
        assert expected[row["caption"]] == pytest.approx(max(expected.values()), abs=1e-9)
        assert sorted(row["candidates"]) == sorted(expected) and row["candidates"][0] == row["caption"]
        assert row["file_name"] == f"{row['image_id']}.jpg"


def test_files_of_other_tools_and_too_few_votes(tmp_path: Path) -> None:
    first = tmp_path / "first.json"
    first.write_text(json.dumps([{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "a cat"}]))
    second = write(tmp_path / "second.jsonl", rows_of({"1": ["one dog"], "2": ["one cat"]}))
    warnings: list[str] = []
    fused = fuse_predictions([first, second], tmp_path / "out.jsonl", warn=warnings.append).predictions
    assert [prediction.caption for prediction in fused] == ["a dog", "a cat"]
    assert any("cannot outvote each other" in text for text in warnings)
    assert any("only 2 images" in text for text in warnings)


GOOD = {"1": ["a dog"], "2": ["a cat"]}


@pytest.mark.parametrize(
    ("second", "arguments", "message"),
    [
        (rows_of({"1": ["a dog"], "3": ["a cat"]}), {}, r"second\.jsonl: lacks 1 images .* and has 1 others .*'2'"),
        (rows_of(GOOD) + rows_of({"1": ["x"]}), {}, r"second\.jsonl: line 3: image 1 is there twice"),
        ([{"image_id": "1", "caption": 5}], {}, r"second\.jsonl: line 1: needs a caption"),
        ([{"image_id": "1", "caption": "a", "candidates": [1]}], {}, r"line 1: candidates must be texts"),
        ([{"caption": "a"}], {}, "line 1: image_id must be"),
        (
            rows_of({"1": ["a dog", "b \ud83d"]}),
            {},
            r"second\.jsonl: line 1 contains an unpaired surrogate \(\\ud83d\)",
        ),
        ([], {}, "no captions in this prediction file"),
        (rows_of(GOOD), {"weights": [1.0]}, r"one positive number \(or 0: no vote\) for each of the 2 files"),
        (rows_of(GOOD), {"weights": [1.0, -1.0]}, "one positive number"),
        (rows_of(GOOD), {"weights": [1.0, float("nan")]}, "one positive number"),
        (rows_of(GOOD), {"weights": [0.0, 0.0]}, "one positive number"),
        (rows_of(GOOD), {"document_frequencies": "gone.json"}, r"gone\.json.*no such file"),
    ],
)
def test_wrong_input(tmp_path: Path, second: list[dict[str, Any]], arguments: dict[str, Any], message: str) -> None:
    files = [write(tmp_path / "first.jsonl", rows_of(GOOD)), write(tmp_path / "second.jsonl", second)]
    with pytest.raises(UserError, match=message):
        fuse_predictions(files, tmp_path / "out.jsonl", warn=lambda text: None, **arguments)
    assert not (tmp_path / "out.jsonl").exists()


def test_one_captioner_agrees_with_itself_and_every_sample_counts(tmp_path: Path) -> None:
    samples = ["a dog runs", "a dog runs", "a black dog runs", "a cat sleeps on a chair"]
    first = write(tmp_path / "first.jsonl", rows_of({"1": samples[::-1], "2": ["a bus", "a tram", "two trams"]}))
    fused = fuse_predictions([first], tmp_path / "out.jsonl", warn=lambda text: None).predictions
    assert fused[0].caption == "a dog runs" and len(fused[0].candidates) == 3
    documents = [samples, ["a bus", "a tram", "two trams"]]
    expected = sum(reference_cider("a dog runs", [other], documents) for other in samples) / 4
    assert fused[0].score == pytest.approx(expected, abs=1e-9)


def test_a_file_of_weight_0_proposes_and_does_not_vote(tmp_path: Path) -> None:
    samples = ["a black dog runs", "the dog runs fast", "a dog on grass"]
    documents = [[*samples, "a dog runs", "dog cat"], ["a bus"] * 3]
    first = write(tmp_path / "first.jsonl", rows_of({"1": samples, "2": ["a bus", "a tram", "two trams"]}))
    second = write(tmp_path / "second.jsonl", rows_of({"1": ["a dog runs", "a cat"], "2": ["a bus"]}))
    training = tmp_path / "training.json"
    training.write_text(json.dumps(dict(enumerate(documents))), encoding="utf-8")
    fused = fuse_predictions(
        [first, second], tmp_path / "out.jsonl", weights=[1.0, 0.0], document_frequencies=str(training), warn=print
    ).predictions
    expected = {
        one: sum(reference_cider(one, [other], documents) for other in samples) / 3
        for one in [*samples, "a dog runs", "a cat"]
    }
    assert set(fused[0].candidates) == set(expected)
    assert fused[0].score == pytest.approx(max(expected.values()), abs=1e-9)
    assert expected[fused[0].caption] == pytest.approx(fused[0].score, abs=1e-9)


def test_nothing_to_choose_from_and_other_endings_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", rows_of(GOOD))
    with pytest.raises(UserError, match=r"first\.jsonl: nothing to choose from.*--num-return-sequences"):
        fuse_predictions([first], tmp_path / "out.jsonl")
    with pytest.raises(UserError, match=r"ends in \.jsonl"):
        fuse_predictions([first, first], tmp_path / "out.csv")


def test_a_file_that_is_joined_is_not_written_over(tmp_path: Path) -> None:
    samples = rows_of({"1": ["a dog", "the dog", "dogs"]})
    first = write(tmp_path / "first.jsonl", samples)
    kept = first.read_bytes()
    with pytest.raises(UserError, match=r"first\.jsonl: is one of the files that are joined"):
        fuse_predictions([first], tmp_path / "." / "first.jsonl", warn=lambda text: None)
    assert first.read_bytes() == kept


def test_what_came_from_which_file_is_counted(tmp_path: Path) -> None:
    """It was said that the first file's captions are kept, while a tenth of them came from the second."""
    members = [random_captions(40, seed)[1] for seed in (1, 2)]
    files = [write(tmp_path / f"{number}.jsonl", rows_of(member)) for number, member in enumerate(members)]
    fusion = fuse_predictions(files, tmp_path / "out.jsonl", warn=lambda text: None)
    of_first = sum(prediction.caption in members[0][prediction.image_id] for prediction in fusion.predictions)
    assert fusion.origins == (of_first, 40 - of_first) and 0 < of_first < 40


def test_white_space_does_not_tell_captions_apart(tmp_path: Path) -> None:
    """Once a StopIteration: the fused caption has single spaces, and was looked for among the captions of the files."""
    files = [
        write(tmp_path / f"{name}.jsonl", rows_of({"1": captions}))
        for name, captions in (("a", ["a  dog on\tgrass", "a cat"]), ("b", ["a dog on grass", "a bird "]))
    ]
    fused = fuse_predictions(files, tmp_path / "out.jsonl", warn=lambda _: None)
    assert fused.predictions[0].caption == "a dog on grass" and fused.origins == (1, 0)
