"""Files that somebody else wrote or a disk damaged: one message that names the file, bounded work, no traceback."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hfcap.card.example_images import read_record
from hfcap.card.run_facts import read_card_input
from hfcap.comparison.systems import read_system
from hfcap.data.sources import coco, coco_json
from hfcap.errors import UserError
from hfcap.files import MAX_LINE_BYTES, parse_json, read_json, read_json_lines, read_json_object, read_text
from hfcap.metrics.chair import Chair, ChairOptions
from hfcap.metrics.shared.caption_files import read_file_names, read_predictions, read_references
from hfcap.metrics.shared.object_words import read_vocabulary
from hfcap.recipe import strict_yaml
from hfcap.recipe.loading import RecipeError, load_recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.scoring import is_score_file, read_scores
from hfcap.search.fusion import fuse_predictions
from hfcap.training.objectives.synonyms import synonym_table
from tests.cli.command_line import Hfcap
from tests.cli.conftest import hfcap as hfcap
from tests.data.sample_images import metadata_entries, write_jpeg
from tests.publishing.run_builder import build_run

BAD_TEXTS = {
    "nested 20,000 deep": "[" * 20_000,
    "nested objects": '{"a":' * 20_000,
    "5,000 digits": '{"images": [{"id": 1' + "0" * 5000 + "}]}",
    "cut": '{"images": [',
    "zeros": "\0" * 100,
    "half a character": '{"images": "\\ud800"}',
    "nothing": "",
    "no text": "\udcff\udcfe",
}
BAD_VALUES: list[Any] = [None, [], {}, [None], "x", 5, True, [[]], {"x": None}, -1.5, [{}]]


def variants(value: Any) -> Iterator[Any]:
    """Yield copies of a JSON value with each node replaced by each bad value, and with each key gone."""
    yield from BAD_VALUES
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            for part in variants(value[key]):
                changed = copy.copy(value)
                changed[key] = part
                yield changed
            if isinstance(value, dict):
                yield {name: part for name, part in value.items() if name != key}


COCO = {"images": [{"id": 1, "file_name": "a.jpg", "split": "test"}], "annotations": [{"image_id": 1, "caption": "a"}]}
KARPATHY = {
    "images": [
        {"cocoid": 1, "split": "test", "filepath": "val2014", "filename": "a.jpg", "sentences": [{"raw": "a dog"}]}
    ]
}
SCORES = {
    "schema_version": 1,
    "split": "test",
    "n_images": 1,
    "metrics": {"cider": 1.0},
    "intervals": {"cider": [0.5, 1.5]},
    "signature": {"metrics": {"cider": {}}},
    "per_image": {"1": {"cider": 1.0}},
    "statistics": {"bleu": [[1, 2]]},
}
INSTANCES = {
    "images": [{"id": 1}],
    "annotations": [{"image_id": 1, "category_id": 1}],
    "categories": [{"id": 1, "name": "person"}],
}


def load_coco_json(path: Path) -> Any:
    (path.parent / "images").mkdir(exist_ok=True)
    options = coco_json.CocoJsonOptions(captions=str(path))
    coco_json.list_images(path, None, None)
    return coco_json.load(options, "test")


def load_karpathy(path: Path) -> Any:
    (path.parent / "val2014").mkdir(exist_ok=True)
    shutil.copy(path, path.parent / coco.KARPATHY_FILE)
    return coco.load(coco.CocoOptions(root=str(path.parent)), "test")


def chair(path: Path) -> Any:
    return Chair(ChairOptions(instances=path))


READERS: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "COCO captions": (load_coco_json, COCO),
    "Karpathy's split": (load_karpathy, KARPATHY),
    "references": (read_references, COCO),
    "references of a split": (lambda path: read_references(path, "test"), COCO),
    "Karpathy references": (lambda path: read_references(path, "test"), KARPATHY),
    "a mapping": (read_references, {"1": ["a dog"], "2": ["a cat", "cats"]}),
    "predictions": (read_predictions, [{"image_id": 1, "caption": "a dog"}]),
    "file names": (read_file_names, COCO),
    "scores": (read_scores, SCORES),
    "is it scores": (is_score_file, SCORES),
    "instances": (chair, INSTANCES),
    "objects of images": (chair, [{"image_id": 1, "objects": ["dog", "cat"]}, {"id": "2", "truth": ["bus"]}]),
    "a mapping to objects": (chair, {"1": ["dog"], "2": []}),
    "vocabulary": (read_vocabulary, {"cup": ["mug", "coffee cup"], "-": ["cup holder"]}),
    "synonyms": (lambda path: synonym_table(str(path), ["a sofa"]), {"sofa": ["couch"]}),
}


@pytest.mark.parametrize("kind", READERS)
def test_readers_of_json_say_what_is_wrong(kind: str, tmp_path: Path) -> None:
    read, good = READERS[kind]
    path = tmp_path / "file.json"
    path.write_text(json.dumps(good))
    read(path)
    n_refused = 0
    for value in variants(good):
        path.write_text(json.dumps(value))
        try:
            read(path)
        except UserError as error:
            n_refused += 1
            assert str(error) and "Traceback" not in str(error)
    for name, text in BAD_TEXTS.items():
        path.write_text(text, errors="surrogateescape")
        try:
            read(path)
            assert kind == "is it scores", name
        except UserError as error:
            n_refused += 1
            assert "file.json" in str(error) or coco.KARPATHY_FILE in str(error), name
    assert n_refused > 5 or kind == "is it scores"


LINES: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "predictions": (read_predictions, {"image_id": "1", "caption": "a dog", "candidates": ["a dog", "dogs"]}),
    "references": (read_references, {"image_id": "1", "captions": ["a dog"]}),
    "metadata": (metadata_entries, {"file_name": "a.jpg", "captions": ["a dog"], "split": "train"}),
    "candidates": (
        lambda path: fuse_predictions([path, path], path.parent / "out.jsonl"),
        {"image_id": "1", "file_name": "a", "caption": "a dog", "candidates": ["a dog", "dogs"]},
    ),
}


@pytest.mark.parametrize("kind", LINES)
def test_readers_of_json_lines_say_what_is_wrong(kind: str, tmp_path: Path) -> None:
    read, good = LINES[kind]
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps(good) + "\n")
    read(path)
    for value in variants(good):
        path.write_text(json.dumps(value) + "\n")
        try:
            read(path)
        except UserError as error:
            assert str(error) and "Traceback" not in str(error)
    for name, text in BAD_TEXTS.items():
        path.write_text(json.dumps(good) + "\n" + text, errors="surrogateescape")
        if text:
            with pytest.raises(UserError, match=r"line 2|byte"):
                read(path)
        assert name


# ---- the files of a run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return build_run(tmp_path_factory.mktemp("built") / "tiny-blip")


def test_files_of_a_run_directory_may_be_damaged(built: RunDirectory, tmp_path: Path) -> None:
    """The card's facts and the comparison read nearly all of them."""
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(built.path, run.path)
    for path in sorted(run.path.rglob("*.json*")):
        if path.name in ("tokenizer.json",) or path.suffix not in (".json", ".jsonl"):
            continue
        content = path.read_bytes()
        values = [*map(json.dumps, BAD_VALUES), *BAD_TEXTS.values()]
        for text in values:
            path.write_text(text, errors="surrogateescape")
            for read in (read_card_input, lambda run: read_system(run.path), lambda run: read_record(run.path)):
                try:
                    read(run)
                except UserError as error:
                    assert run.path.name in str(error) or str(run.path) in str(error)
        path.write_bytes(content)
    read_card_input(run)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "generation_config.json"])
def test_damaged_files_of_a_model_are_named(name: str, built: RunDirectory, tmp_path: Path, hfcap: Hfcap) -> None:
    """Once tracebacks: of the tokenizers library, of transformers, of a string where a mapping was meant."""
    image = write_jpeg(tmp_path / "one.jpg")
    model = tmp_path / "model"
    shutil.copytree(built.model, model)
    path = model / name
    assert path.is_file()
    for text in (
        "[]",
        "null",
        '"x"',
        "{}",
        '{"model": 5, "model_type": [], "image_processor": 3}',
        *BAD_TEXTS.values(),
    ):
        path.write_text(text, errors="surrogateescape")
        outcome = hfcap("caption", model, image)
        assert outcome.code in (0, 1, 2), (text[:50], outcome)
        if outcome.code:
            assert str(model) in outcome.err and outcome.err.count("error: ") + outcome.err.count("failed: ") >= 1


def test_a_recipe_of_a_run_is_read_strictly_in_a_comparison(built: RunDirectory, tmp_path: Path) -> None:
    """Deeply nested YAML was a traceback, and a few lines of aliases filled the memory."""
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(built.path, run.path)
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    for text in ("a: " + "[" * 5000, "{a: " * 5000, bomb, "- 1", "\0"):
        run.recipe.write_text(text)
        with pytest.raises(UserError, match=r"recipe\.yaml"):
            read_system(run.path)


# ---- bounds --------------------------------------------------------------------------------------------------------


def test_a_file_of_unknown_keys_is_refused_in_a_few_lines(tmp_path: Path) -> None:
    """60,000 of them took 106 s and a message of 12 MB."""
    path = tmp_path / "recipe.yaml"
    for n_keys, said in ((60_000, "more than 20,000 keys and values"), (3_000, "more problems")):
        path.write_text("".join(f"k{number}: 1\n" for number in range(n_keys)))
        started = time.process_time()
        with pytest.raises(RecipeError, match=said) as refused:
            load_recipe(path)
        assert len(str(refused.value)) < 20_000
        assert time.process_time() - started < 60  # not a measurement: once it were minutes
    assert strict_yaml.MAX_NODES == 20_000


def test_a_line_without_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """1 GB in one line took 14 GB."""
    path = tmp_path / "lines.jsonl"
    with path.open("wb") as handle:
        handle.write(b'{"a": 1}\n{"b": "')
        handle.truncate(10 * 2**30)  # sparse: ten gigabytes of zeros
    rows = read_json_lines(path, "lines")
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(UserError, match=rf"line 2 has more than {MAX_LINE_BYTES:,} bytes"):
        next(rows)
    for read in (read_text, read_json, read_json_object):
        with pytest.raises(UserError, match="more than 536,870,912 bytes"):
            read(path, "lines")


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "1\xe2\x80\xa82"}\r\n\r\n  \n{"a": 2}')
    assert list(read_json_lines(path, "lines")) == [(1, {"a": "1\u20282"}), (4, {"a": 2})]
    with pytest.raises(UserError, match="not found"):
        list(read_json_lines(tmp_path / "none", "lines"))
    with pytest.raises(UserError, match="is a folder"):
        list(read_json_lines(tmp_path, "lines"))


def test_parse_json_names_the_place() -> None:
    for text, said in (
        ("{", "line 1, column 2"),
        ('{\n"a": }', "line 2, column 6"),
        ('"\\ud800"', "unpaired surrogate"),
    ):
        with pytest.raises(UserError, match=f"here.*{said}"):
            parse_json(text, "here", lines=True)
    assert parse_json('{"a": [1, 2.5, null, "\\u00e4"]}', "here") == {"a": [1, 2.5, None, "ä"]}
