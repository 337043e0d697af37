"""Score files are written and read line by line; files laid out otherwise mean the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcap.errors import UserError
from hfcap.schema import ScoreReport
from hfcap.scoring import is_score_file, read_scores
from hfcap.scoring.image_values import ImageValues, Rows, column_of
from hfcap.scoring.report_files import write_scores
from hfcap.scoring.score_lines import read_lines

NAMES = ("bleu_1", '100 % "odd"', "cider")


def _report(n_images: int, seed: int = 0) -> ScoreReport:
    draw = np.random.default_rng(seed)
    table = draw.normal(size=(n_images, len(NAMES)))
    table[draw.random(table.shape) < 0.1] = np.nan
    ids = [f'image {number} \u00e9"' for number in range(n_images)]
    counts = draw.integers(0, 30, size=(n_images, 4)).astype(np.float64)
    halves = counts[:, :2] / 2
    return ScoreReport(
        "test",
        n_images,
        {"cider": 1.0, "x": None},
        {"cider": (0.5, 1.5)},
        {"hfcap": "1"},
        ImageValues(ids, NAMES, table),
        {"bleu": Rows(counts), "other": Rows(halves)},
        predictions_sha256="ab",
    )


def _plain(report: ScoreReport) -> dict[str, Any]:
    """What the file must hold, by the standard library's rules."""
    return {
        "per_image": {key: dict(row) for key, row in report.per_image.items()},
        "statistics": {name: np.asarray(table).tolist() for name, table in report.statistics.items()},
    }


@pytest.mark.parametrize("n_images", [1, 5, 12])
def test_lines_hold_what_json_holds(n_images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcap.scoring.score_lines._LINES_AT_ONCE", 5)
    report, path = _report(n_images), tmp_path / "s.json"
    write_scores(report, path)
    value = json.loads(path.read_text(encoding="utf-8"))
    assert {key: value[key] for key in ("per_image", "statistics")} == _plain(report)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(isinstance(number, int) for row in value["statistics"]["bleu"] for number in row)
    assert sum(line.startswith('    "image') for line in lines) == n_images
    again = read_scores(path)
    assert isinstance(again.per_image, ImageValues) and again.per_image == report.per_image
    for name, table in report.statistics.items():
        np.testing.assert_array_equal(again.statistics[name], table)
    # Counts take half the memory, and are the same.
    tables = [table for table in again.statistics.values() if isinstance(table, Rows)]
    assert [table.table.dtype for table in tables] == [np.float32, np.float64]
    assert (again.metrics, again.intervals, again.signature) == (report.metrics, report.intervals, report.signature)
    # A copy that some other program has formatted.
    (tmp_path / "other.json").write_text(json.dumps(value))
    assert read_lines(tmp_path / "other.json") is None
    other = read_scores(tmp_path / "other.json")
    assert other.per_image == again.per_image and other.predictions_sha256 == again.predictions_sha256
    assert is_score_file(path) and is_score_file(tmp_path / "other.json")
    write_scores(other, tmp_path / "third.json")
    assert (tmp_path / "third.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"bleu_1": ', '"bleu_1": "x", "y": ', "per_image.*must be a number"),
        ("      [", "      [true, ", "rows of numbers of equal length|one row for each"),
        ("      [", "      [1, [2], ", "rows of numbers of equal length"),
        ("  },\n", "  },,\n", "is not valid JSON"),
        ('"hfcap"', '"hf\\ud800cap"', "unpaired surrogate"),
        ("NaN-free", "", ""),
    ],
)
def test_damage_is_found_and_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write_scores(_report(6), path)
    text = path.read_text(encoding="utf-8")
    if not message:
        path.write_text(text.replace("1.0", "NaN", 1), encoding="utf-8")
        message = "NaN or an infinite number"
    else:
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_scores(path)


def test_a_table_that_lacks_an_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write_scores(_report(6), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    where = lines.index('    "bleu": [') + 1
    path.write_text("\n".join([*lines[:where], *lines[where + 1 :]]), encoding="utf-8")
    with pytest.raises(UserError, match="one row for each image"):
        read_scores(path)


def test_values_of_images_behave_like_the_dictionary_they_replace() -> None:
    values = ImageValues(["a", "b"], ["x", "y"], np.asarray([[1.0, np.nan], [np.inf, 0.25]]))
    plain = {"a": {"x": 1.0, "y": None}, "b": {"x": None, "y": 0.25}}
    assert values == plain and plain == values and values["b"] == plain["b"] and list(values) == ["a", "b"]
    assert values.get("c", {}) == {} and "a" in values and len(values) == 2
    for name in ("x", "y", "z"):
        np.testing.assert_array_equal(column_of(values, name), column_of(plain, name))


@pytest.mark.parametrize("row", ["[1]", '"x"', "  "])
def test_rows_that_are_none_are_one_sentence(row: str, tmp_path: Path) -> None:
    report, path = _report(3), tmp_path / "s.json"
    write_scores(report, path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if line.startswith('    "image'))
    name = json.loads("{" + lines[first].strip().rstrip(",") + "}").popitem()[0]
    lines[first] = f"    {json.dumps(name)}: {row},\n" if row.strip() else "   \n"
    path.write_text("".join(lines), encoding="utf-8")
    assert read_lines(path) is None
    with pytest.raises(UserError):
        read_scores(path)
