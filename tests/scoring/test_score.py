from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfcap.errors import UserError
from hfcap.metrics.shared.caption_files import read_file_names
from hfcap.schema import ScoreReport
from hfcap.scoring import (
    read_predictions,
    read_references,
    read_scores,
    score_captions,
    score_files,
    signature_line,
    write_scores,
)
from tests.metrics.random_captions import random_captions

CAPTIONS = {"17": "a red dog", "4": "two cats on grass"}
HUMAN = {"17": ["one red dog", "a dog"], "4": ["two cats", "cats in grass"]}


def _json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def _lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _table(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)
    return path


PREDICTIONS: dict[str, Callable[[Path], Path]] = {
    "coco results": lambda folder: _json(
        folder / "p.json", [{"image_id": int(key), "caption": text, "id": 3} for key, text in CAPTIONS.items()]
    ),
    "mapping": lambda folder: _json(folder / "p.json", CAPTIONS),
    "scorer mapping": lambda folder: _json(folder / "p.json", {key: [text] for key, text in CAPTIONS.items()}),
    "json lines": lambda folder: _lines(
        folder / "p.jsonl", [{"image_id": key, "caption": text, "score": -1.0} for key, text in CAPTIONS.items()]
    ),
    "json lines named json": lambda folder: _lines(
        folder / "p.json", [{"image_id": key, "caption": text} for key, text in CAPTIONS.items()]
    ),
    "csv": lambda folder: _table(folder / "p.csv", [("image_id", "caption"), *CAPTIONS.items()]),
    "whole floats": lambda folder: _json(
        folder / "p.json", [{"image_id": float(key), "caption": text} for key, text in CAPTIONS.items()]
    ),
}


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_predictions_are_read_from_every_format(kind: str, tmp_path: Path) -> None:
    assert read_predictions(PREDICTIONS[kind](tmp_path)) == CAPTIONS


def _coco(folder: Path, splits: dict[str, str] | None = None) -> Path:
    images = [{"id": int(key)} | ({"split": splits[key]} if splits else {}) for key in HUMAN]
    rows = [{"image_id": int(key), "caption": line} for key, group in HUMAN.items() for line in group]
    return _json(folder / "r.json", {"images": images, "annotations": rows})


REFERENCES: dict[str, Callable[[Path], Path]] = {
    "coco": _coco,
    "mapping": lambda folder: _json(folder / "r.json", HUMAN),
    "json lines": lambda folder: _lines(
        folder / "r.jsonl", [{"image_id": key, "captions": group} for key, group in HUMAN.items()]
    ),
    "a line per caption": lambda folder: _lines(
        folder / "r.jsonl", [{"image_id": key, "caption": line} for key, group in HUMAN.items() for line in group]
    ),
    "csv": lambda folder: _table(
        folder / "r.csv", [("image_id", "caption"), *((key, line) for key, group in HUMAN.items() for line in group)]
    ),
    "karpathy": lambda folder: _json(
        folder / "r.json",
        {
            "images": [
                {"cocoid": int(key), "split": "test", "sentences": [{"raw": line} for line in group]}
                for key, group in HUMAN.items()
            ]
        },
    ),
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_references_are_read_from_every_format(kind: str, tmp_path: Path) -> None:
    assert read_references(REFERENCES[kind](tmp_path)) == {key: tuple(group) for key, group in HUMAN.items()}


def test_split_chooses_images_and_knows_other_spellings(tmp_path: Path) -> None:
    path = _coco(tmp_path, {"17": "val", "4": "test"})
    assert list(read_references(path, "validation")) == ["17"]
    assert list(read_references(path, "test")) == ["4"]
    with pytest.raises(UserError, match="no image of split 'train'"):
        read_references(path, "train")


def test_split_of_a_file_without_labels_is_only_a_label(tmp_path: Path) -> None:
    assert len(read_references(_coco(tmp_path), "test")) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}], "already has another caption"),
        ([{"image_id": 1, "caption": 5}], "must be text, not 5"),
        ([{"image_id": 1, "caption": None}], "must be text, not None"),
        ([{"image_id": True, "caption": "a"}], "must be a number or a non-empty string"),
        ([{"image_id": 1.5, "caption": "a"}], "must be a number or a non-empty string"),
        ([{"image_id": "", "caption": "a"}], "must be a number or a non-empty string"),
        ([{"image_id": 1, "text": "a"}], "no 'caption'; add it .found the keys 'image_id', 'text'"),
        ([{"caption": "a"}], "no 'image_id'"),
        (["a dog"], "expected an object"),
        ([], "no captions"),
        ({}, "no captions"),
        ("a dog", "expected a list of objects or a mapping"),
        ({"1": ["a", "b"]}, "must be text"),
    ],
)
def test_wrong_predictions_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = _json(tmp_path / "p.json", content)
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


def test_repeated_json_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"1": "a dog", "2": "a cat", "1": "a cow"}')
    with pytest.raises(UserError, match="key '1' occurs twice"):
        read_predictions(path)


def test_malformed_files_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('[\n{"image_id": 1,}]')
    with pytest.raises(UserError, match=r"not valid JSON \(line 2"):
        read_predictions(path)
    with pytest.raises(UserError, match="not found"):
        read_predictions(tmp_path / "none.json")
    with pytest.raises(UserError, match="first line must name the columns"):
        read_predictions(_table(tmp_path / "p.csv", [("id", "text"), (1, "a")]))


def test_a_table_or_metadata_that_names_files_alone(tmp_path: Path) -> None:
    rows = [("file_name", "caption", "score"), ("a/1.jpg", "a dog", -0.5)]
    assert read_predictions(_table(tmp_path / "p.csv", rows)) == {"a/1.jpg": "a dog"}
    metadata = tmp_path / "metadata.jsonl"
    metadata.write_text('{"file_name": "1.jpg", "captions": ["a dog", "one dog"]}\n')
    assert read_references(metadata) == {"1.jpg": ("a dog", "one dog")}
    assert read_file_names(metadata) == {"1.jpg": "1.jpg"}


def test_a_quotation_mark_that_is_never_closed_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('image_id,caption\n1,a dog\n2,"' + "a cat\n" * 30_000)
    for read in (read_predictions, read_references, read_file_names):
        with pytest.raises(UserError, match=r"p\.csv: line \d+ is not valid CSV \(field larger than field limit"):
            read(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", "image_id,caption\r\n1,a dog\r\n"),
        ("p.json", '[{"image_id": 1, "caption": "a dog"}]'),
        ("p.jsonl", '{"image_id": 1, "caption": "a dog"}\n'),
    ],
)
def test_the_byte_order_mark_of_spreadsheets_is_no_text(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8-sig", newline="")
    assert read_predictions(path) == {"1": "a dog"}
    assert read_references(path) == {"1": ("a dog",)}


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("p.json", '[{"image_id": 1, "caption": "%s"}]', "p.json: prediction file"),
        ("p.jsonl", '\n{"image_id": 1, "caption": "%s"}\n', "p.jsonl: line 2"),
    ],
)
def test_half_a_character_is_refused_where_it_is_read(name: str, text: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text % r"a dog \ud83d\ude00")
    assert read_predictions(path) == {"1": "a dog \N{GRINNING FACE}"}
    path.write_text(text % r"a dog \ud83d")
    with pytest.raises(UserError, match=re.escape(f"{place} contains an unpaired surrogate (\\ud83d)")):
        read_predictions(path)


def test_repeated_and_empty_predictions_are_warned_about(tmp_path: Path) -> None:
    rows = [{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "a"}, {"image_id": 2, "caption": " "}]
    warnings: list[str] = []
    assert read_predictions(_json(tmp_path / "p.json", rows), warn=warnings.append) == {"1": "a", "2": " "}
    assert "1 repeated lines counted once (images 1)" in warnings[0]
    assert "1 empty captions, which score 0 (images 2)" in warnings[1]


def test_empty_references_are_ignored_with_a_warning_unless_nothing_is_left(tmp_path: Path) -> None:
    warnings: list[str] = []
    path = _json(tmp_path / "r.json", {"1": ["a dog", " "], "2": ["a cat"]})
    assert read_references(path, warn=warnings.append) == {"1": ("a dog",), "2": ("a cat",)}
    assert "1 empty human captions ignored" in warnings[0]
    with pytest.raises(UserError, match=r"no human caption for 1 images \(2\)"):
        read_references(_json(path, {"1": ["a dog"], "2": [""]}), warn=warnings.append)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    candidates, references = random_captions(120, 50)
    candidates = {key: line or "a" for key, line in candidates.items()}
    return _json(tmp_path / "predictions.json", candidates), _json(tmp_path / "references.json", references)


def test_report_holds_values_intervals_signature_and_images(files: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "scores" / "test.json"
    run = {"decoding": {"num_beams": 3}, "model": "tiny"}
    report = score_files(*files, output=output, split="test", n_resamples=200, signature=run)
    candidates, references = json.loads(files[0].read_text()), json.loads(files[1].read_text())
    assert report.metrics == score_captions(candidates, references)
    assert report.n_images == 120 and report.split == "test"
    for name, value in report.metrics.items():
        lower, upper = report.intervals[name]
        assert value is not None and lower <= value <= upper
    assert report.signature["bootstrap"] == {"confidence_level": 0.95, "n_resamples": 200, "seed": 0}
    assert report.signature["run"] == run
    assert sum(row["cider"] or 0.0 for row in report.per_image.values()) / 120 == pytest.approx(report.metrics["cider"])
    assert read_scores(output) == report
    assert "NaN" not in output.read_text()


def test_equal_seeds_give_equal_files_and_other_seeds_other_intervals(files: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        score_files(*files, output=tmp_path / name, n_resamples=100, seed=3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert score_files(*files, n_resamples=100, seed=4).intervals != read_scores(tmp_path / "a").intervals


def test_no_resamples_no_intervals(files: tuple[Path, Path]) -> None:
    assert score_files(*files, n_resamples=0).intervals == {}


def test_ids_match_as_numbers_and_strings(tmp_path: Path) -> None:
    predictions = _json(tmp_path / "p.json", [{"image_id": 17, "caption": "a dog"}, {"image_id": 4, "caption": "cats"}])
    assert score_files(predictions, _json(tmp_path / "r.json", HUMAN), n_resamples=0).n_images == 2


def test_images_without_references_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 of 2 ids, for example 'img17', are not in .*ids there look like '0'"):
        score_files(_json(tmp_path / "p.json", {"img17": "a", "img400": "b"}), files[1])


def test_images_without_predictions_are_refused_or_counted(files: tuple[Path, Path], tmp_path: Path) -> None:
    candidates = json.loads(files[0].read_text())
    del candidates["5"]
    path = _json(tmp_path / "p.json", candidates)
    with pytest.raises(UserError, match="no caption for 1 of 120 images"):
        score_files(path, files[1])
    warnings: list[str] = []
    report = score_files(path, files[1], allow_missing=True, warn=warnings.append, n_resamples=0)
    assert report.n_images == 119 and report.signature["images_without_prediction"] == 1
    assert "1 of 120 images have no prediction" in warnings[0]


def test_what_makes_values_doubtful_is_warned_about(tmp_path: Path) -> None:
    warnings: list[str] = []
    score_files(
        _json(tmp_path / "p.json", {"1": "a red\ndog", "2": "a cat"}),
        _json(tmp_path / "r.json", {"1": ["one dog"], "2": ["one\u2028cat\n"]}),
        warn=warnings.append,
        n_resamples=0,
    )
    assert any("only 2 images" in message and "CIDEr-D" in message for message in warnings)
    assert any("one human caption per image" in message for message in warnings)
    assert any("line separators inside, which are read as spaces: 2" in message for message in warnings)


def test_warnings_go_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score_files(_json(tmp_path / "p.json", CAPTIONS), _json(tmp_path / "r.json", HUMAN), n_resamples=0)
    captured = capsys.readouterr()
    assert "only 2 images" in captured.err and captured.out == ""


@pytest.mark.parametrize("options", [{"confidence_level": 1.0}, {"confidence_level": 0.0}, {"n_resamples": -1}])
def test_wrong_arguments_are_refused(options: dict[str, Any], files: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        score_files(*files, **options)


def test_signature_changes_with_the_conditions_and_not_with_the_system(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    first = score_files(*files, n_resamples=0).signature
    candidates, references = json.loads(files[0].read_text()), json.loads(files[1].read_text())
    other_system = _json(tmp_path / "other.json", dict.fromkeys(candidates, "a dog"))
    assert score_files(other_system, files[1], n_resamples=0).signature == first
    backwards = _json(tmp_path / "backwards.json", dict(reversed(references.items())))
    assert score_files(files[0], backwards, n_resamples=0).signature == first
    references["3"] = [*references["3"], "one more"]
    changed = score_files(files[0], _json(tmp_path / "more.json", references), n_resamples=0).signature
    assert changed["references_sha256"] != first["references_sha256"]
    assert changed["image_ids_sha256"] == first["image_ids_sha256"]


def test_signature_prints_as_one_line(files: tuple[Path, Path]) -> None:
    signature = score_files(*files, n_resamples=0, split="val", signature={"decoding": {"num_beams": 3}}).signature
    line = signature_line(signature)
    assert "\n" not in line
    for part in ("tok:ptb-coco-2", "split:val", "n:120", "refs:1-6", "cider.document_frequencies:corpus"):
        assert part in line.split("|")
    assert "decoding.num_beams:3" in line


def test_undefined_values_are_null(tmp_path: Path) -> None:
    report = ScoreReport("all", 1, {"x": None}, per_image={"1": {"x": None}})
    write_scores(report, tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["metrics"] == {"x": None}
    assert read_scores(tmp_path / "s.json") == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version 2 is not 1"),
        ({"metrics": {"cider": "1.2"}}, "metrics.cider must be a number or null"),
        ({"metrics": {"cider": True}}, "metrics.cider must be a number or null"),
        ({"metrics": [1]}, "'metrics' must map names to numbers"),
        ({"intervals": {"cider": [1]}}, "intervals.cider must be"),
        ({"statistics": {"bleu": [[1.0]]}}, "one row for each image"),
        ({"statistics": {"bleu": [[1.0], [1.0, 2.0]]}}, "rows of numbers of equal length"),
        ({"statistics": {"bleu": "x"}}, "statistics.bleu must"),
        ({"statistics": []}, "'statistics' must be an object"),
        ({"intervals": 5}, "'intervals' must be an object"),
        ({"intervals": {"cider": ["a", 1]}}, "intervals.cider.lower must be a number"),
        ({"intervals": {"cider": [None, 1]}}, "intervals.cider must be"),
        ({"signature": "x"}, "'signature' must be an object"),
        ({"per_image": []}, "'per_image' must be an object"),
        ({"per_image": {"1": {"cider": "x"}}, "n_images": 1}, "per_image.1.cider must be a number"),
        (
            {"per_image": {"1": {}}, "n_images": 7, "statistics": {"bleu": [[1.0]]}},
            "n_images is 7, but 'per_image' has 1",
        ),
    ],
)
def test_malformed_score_files_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    value = {"schema_version": 1, "split": "test", "n_images": 0, "metrics": {}, "per_image": {}} | change
    with pytest.raises(UserError, match=message):
        read_scores(_json(tmp_path / "s.json", value))


def test_other_json_is_not_a_score_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a score file"):
        read_scores(_json(tmp_path / "s.json", HUMAN))


def test_captions_stored_as_the_text_of_a_list(tmp_path: Path) -> None:
    cells = {key: str(group) for key, group in HUMAN.items()}
    references = {key: tuple(group) for key, group in HUMAN.items()}
    assert read_references(_json(tmp_path / "r.json", cells)) == references
    table = [("image_id", "caption"), *cells.items()]
    assert read_references(_table(tmp_path / "r.csv", table)) == references
    report = score_files(CAPTIONS, {key: [cell] for key, cell in cells.items()}, warn=lambda _: None, n_resamples=0)
    assert report.metrics == score_files(CAPTIONS, HUMAN, warn=lambda _: None, n_resamples=0).metrics
    with pytest.raises(UserError, match=r"r\.json: key '17': the caption is 'nan'"):
        read_references(_json(tmp_path / "r.json", {"17": "nan"}))
    with pytest.raises(UserError, match="2 of 2 captions have several lines"):
        read_references(_json(tmp_path / "r.json", {key: "\n".join(group) for key, group in HUMAN.items()}))
    said: list[str] = []
    predicted = read_predictions(_json(tmp_path / "p.json", {"17": "['a red dog']", "4": "None"}), warn=said.append)
    assert predicted == {"17": "a red dog", "4": "None"}
    assert "2 captions are a list written as text or stand for an empty cell (images 17, 4)" in said[0]
