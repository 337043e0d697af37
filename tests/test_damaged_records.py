"""What the fuzzer found (tests/fuzz), one test for each kind: refused by name, where it once was a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

import hfcap
from hfcap.captioners.shared.tokenizers import token_number
from hfcap.captioning.partial_output import PartialOutput
from hfcap.card.render import render_card
from hfcap.comparison.systems import read_system
from hfcap.data.sources import folder
from hfcap.decoding import _finished_ids
from hfcap.errors import UserError, WorkError, library_faults
from hfcap.files import parse_json
from hfcap.metrics.shared.document_frequencies import DocumentFrequencies, count_document_frequencies
from hfcap.publishing.staging import stage_files
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.loading import RecipeError, recipe_from_mapping
from hfcap.run_directory.paths import RunDirectory
from hfcap.scoring import read_scores
from hfcap.sqlite_cache import SqliteCache
from hfcap.training.records.log_file import read_log
from hfcap.training.run_record import read_environment
from tests.data.sample_images import write_jpeg
from tests.publishing.run_builder import build_run, save_tiny_model
from tests.training.harness import recipe_values

# ---- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 900 + "]" * 900, "nested too deeply"),  # less than Python's own limit, too much for whoever walks it
        ('{"a": ' * 101 + "1" + "}" * 101, "nested too deeply"),
        ("[1" + "0" * 400 + "]", "a number of more than 308 digits"),  # no float is as large
        ('{"a": [-1' + "0" * 308 + "]}", "a number of more than 308 digits"),
    ],
)
def test_json_that_its_readers_could_not_use(text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"here.*{said}"):
        parse_json(text, "here")


def test_json_that_only_looks_like_it() -> None:
    assert parse_json('["' + "1" * 400 + '"]', "here") == ["1" * 400]
    flat = "[" + ", ".join(["[]"] * 200) + "]"
    assert parse_json(flat, "here") == [[]] * 200
    assert parse_json('["NaN", "Infinity", "e999"]', "here", finite=True) == ["NaN", "Infinity", "e999"]
    for text in ("[NaN]", "[-Infinity]", "[1e999]", '{"a": [1e+400]}'):
        parse_json(text, "here")
        with pytest.raises(UserError, match="here holds NaN or an infinite number"):
            parse_json(text, "here", finite=True)


# ---- sources and recipes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a" * 300 + ".jpg", "é" * 130, "a/" * 2500 + "b.jpg"])
def test_names_longer_than_file_systems_allow(name: str, tmp_path: Path) -> None:
    write_jpeg(tmp_path / "a.jpg")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name, "caption": "a dog"}))
    with pytest.raises(UserError, match=r"metadata\.jsonl: line 1: .*is longer than file systems allow"):
        folder.load(folder.FolderOptions(root=str(tmp_path)), "train")


def test_self_critical_training_of_an_unknown_captioner() -> None:
    values = {"name": "a", "captioner": "nothing", "model": 0.5, "data": {"source": "scenes"}, "scst": {}}
    with pytest.raises(RecipeError, match="nothing"):
        recipe_from_mapping(values, "test")


# ---- scores and frequencies ----------------------------------------------------------------------------------------

SCORES: dict[str, Any] = {"schema_version": 1, "metrics": {"cider": 1.0}, "per_image": {"1": {"cider": 1.0}}}


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"cider": 10**400}},
        {"statistics": {"bleu": [[10**400]]}},
        {"signature": {"split": float("nan")}},
        {"signature": {"bootstrap": 5}},
        {"signature": {"bootstrap": {"confidence_level": 95}}},
        {"signature": {"metrics": {"cider": None}}},
        {"signature": {"references_per_image": [5]}},
        {"signature": {"unspaced_language": []}},
        *({"signature": {key: {}}} for key in ("hfcap", "tokenizer", "language", "split", "n_images")),
        *({"signature": {key: ["0a1b"]}} for key in ("image_ids_sha256", "references_sha256")),
        {"signature": {"images_without_prediction": "all"}},
        {"signature": {"run": "x"}},
        {"n_images": "1"},
        {"n_images": [1], "per_image": {}},
        {"n_images": -1, "per_image": {}},
    ],
)
def test_score_files_hold_numbers(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(SCORES))
    assert read_scores(path).n_images == 1
    path.write_text(json.dumps(SCORES | change))
    with pytest.raises(UserError, match=r"scores\.json"):
        read_scores(path)


DAMAGED_FREQUENCIES: dict[str, Callable[[dict[str, Any], dict[str, str]], object]] = {
    "no number of images": lambda arrays, metadata: metadata.pop("n_images"),
    "a word for it": lambda arrays, metadata: metadata.update(n_images="many"),
    "thousands of digits": lambda arrays, metadata: metadata.update(n_images="9" * 5000),
    "no tokeniser": lambda arrays, metadata: metadata.pop("tokenizer"),
    "other shapes": lambda arrays, metadata: arrays.update(counts_1=arrays["counts_1"][1:]),
    "floats": lambda arrays, metadata: arrays.update(counts_2=arrays["counts_2"].astype(np.float32)),
    "keys in disorder": lambda arrays, metadata: arrays.update(keys_1=arrays["keys_1"][::-1].copy()),
    "counts below 1": lambda arrays, metadata: arrays.update(counts_3=arrays["counts_3"] * -1),
    "an order is missing": lambda arrays, metadata: arrays.pop("keys_4"),
}


@pytest.mark.parametrize("damage", DAMAGED_FREQUENCIES.values(), ids=DAMAGED_FREQUENCIES)
def test_document_frequencies_are_checked(
    damage: Callable[[dict[str, Any], dict[str, str]], object], tmp_path: Path
) -> None:
    path = tmp_path / "df.safetensors"
    count_document_frequencies({"1": ["a dog on a sofa", "a dog"], "2": ["two cats"]}, "corpus").save(path)
    assert DocumentFrequencies.load(path).n_images == 2
    with safetensors.safe_open(path, framework="numpy") as handle:
        metadata, arrays = dict(handle.metadata()), {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    damage(arrays, metadata)
    path.write_bytes(safetensors.numpy.save(arrays, metadata))
    with pytest.raises(UserError, match=r"df\.safetensors.*(give|make)"):
        DocumentFrequencies.load(path)


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return build_run(tmp_path_factory.mktemp("built") / "run")


@pytest.fixture
def run(built: RunDirectory, tmp_path: Path) -> RunDirectory:
    shutil.copytree(built.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "values", "key"),
    [
        ("environment", {"datasets": "train"}, "datasets"),
        ("environment", {"datasets": {"train": {"n_images": "many"}}}, "datasets.train.n_images"),
        ("environment", {"base_models": [[]]}, "base_models.0"),
        ("environment", {"base_models": [{"id": 5, "revision": None, "role": "x"}]}, "base_models.0.id"),
        ("environment", {"hardware": {"cores": [2]}}, "hardware.cores"),
        ("environment", {"versions": {"torch": None}}, "versions.torch"),
        ("summary", {"steps": "forty"}, "steps"),
        ("summary", {"parameters": -1}, "parameters"),
        ("summary", {"train_seconds": {}}, "train_seconds"),
        ("summary", {"co2_eq_emissions": {"grams": "x", "source": "y"}}, "co2_eq_emissions.grams"),
        ("summary", {"best_metric": {"name": "cider", "value": []}}, "best_metric.value"),
    ],
)
def test_what_a_run_notes_is_checked_when_it_is_read(
    name: str, values: dict[str, Any], key: str, run: RunDirectory
) -> None:
    path = getattr(run, name)
    change(path, **values)
    said = rf"{path.name}: .* is damaged \({key}: "
    with pytest.raises(UserError, match=said):
        render_card(run)
    with pytest.raises(UserError, match=said):
        read_environment(run) if name == "environment" else read_system(run.path)


def test_samples_and_baselines_are_checked(run: RunDirectory) -> None:
    rows = json.loads(run.samples.read_text())
    run.samples.write_text(json.dumps([{**rows[0], "references": "a dog"}, *rows[1:]]))
    with pytest.raises(UserError, match=r"samples\.json: .* damaged \(0\.references"):
        render_card(run)
    run.samples.write_text(json.dumps(rows))
    change(run.scores("test.blank_images"), metrics={"cider": {}})
    with pytest.raises(UserError, match=r"test\.blank_images\.json: metrics\.cider must be a number"):
        render_card(run)


def test_predictions_with_infinite_scores_are_not_staged(run: RunDirectory) -> None:
    path = run.predictions("test")
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([json.dumps(json.loads(first) | {"score": float("nan")}) + "\n", *others]))
    with pytest.raises(UserError, match=r"test\.jsonl: line 1 holds NaN"):
        stage_files(run)


def test_infinite_bounds_in_a_models_configuration_are_published_as_they_are(run: RunDirectory) -> None:
    """Mamba's configuration has one; transformers writes and reads it."""
    change(run.model / "config.json", time_step_limit=[0.0, float("inf")])
    assert json.loads((stage_files(run) / "config.json").read_text())["time_step_limit"] == [0.0, float("inf")]


@pytest.mark.parametrize("loss", ['"{{x}}"', "[1]", "NaN", "1" + "0" * 400, "true1"])
def test_rows_of_a_log_hold_numbers(loss: str, run: RunDirectory) -> None:
    n_rows = sum("loss" in row for row in read_log(run.log))
    with run.log.open("a") as log:
        log.write(f'{{"step": 41, "loss": {loss}}}\n')
    assert sum("loss" in row for row in read_log(run.log)) == n_rows
    render_card(run)


# ---- unfinished output ---------------------------------------------------------------------------------------------

ROW = {"image_id": "1", "file_name": "a.jpg", "caption": "a dog", "score": -1.0, "candidates": ["a dog"]}


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": []},
        {"caption": None},
        {"score": "x"},
        {"candidates": 5},
        {"candidates": [1]},
        {"score": float("nan")},
    ],
)
def test_unfinished_captions_are_checked(change: dict[str, Any], tmp_path: Path) -> None:
    part = PartialOutput(tmp_path / "out.jsonl", "0" * 16)
    part.path.write_text(json.dumps([ROW]) + "\n" + json.dumps([{"image_id": "2", "problem": "cut"}]) + "\n")
    assert [result.image_id for result in part.results()] == ["1", "2"]
    part.path.write_text(json.dumps([ROW | change]) + "\n")
    with pytest.raises(WorkError, match="delete it to begin again"):
        part.results()


def test_unfinished_predictions_without_a_number_are_made_again(tmp_path: Path) -> None:
    part = tmp_path / "test.jsonl.part-x-0"
    rows = [ROW, ROW | {"image_id": "2", "score": float("nan")}, ROW | {"image_id": "3"}]
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _finished_ids(part) == {"1", "3"}
    assert len(part.read_text().splitlines()) == 2


def test_remembered_facts_whose_table_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path))
    with SqliteCache("facts", "it takes longer") as cache:
        cache.remember({b"key": b"value"})
    path = tmp_path / "facts.sqlite"
    content = path.read_bytes()
    assert content.count(b"facts (key") == 1
    path.write_bytes(content.replace(b"facts (key", b"\xff\xffcts (key"))
    with SqliteCache("facts", "it takes longer") as cache:
        assert cache.known([b"key"]) == {}
        cache.remember({b"key": b"other"})
        assert cache.known([b"key"]) == {b"key": b"other"}


# ---- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("config.json", ("text_config", "hidden_size"), "wide"),
        ("config.json", ("vision_config", "num_attention_heads"), []),
        ("config.json", ("vision_config", "image_size"), 48),
        ("config.json", ("vision_config", "num_hidden_layers"), 2_000_000_000),
        ("processor_config.json", ("image_processor", "image_std"), ["a", "b", "c"]),
        ("processor_config.json", ("image_processor", "image_mean"), {"x": 1}),
        ("processor_config.json", ("image_processor", "size"), {"height": -3, "width": 4}),
        ("processor_config.json", ("image_processor", "resample"), 77),
    ],
)
def test_models_with_a_damaged_configuration(
    name: str, keys: tuple[str, str], value: Any, built: RunDirectory, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(built.model, model)
    content = json.loads((model / name).read_text())
    assert keys[1] in content[keys[0]]
    content[keys[0]][keys[1]] = value
    (model / name).write_text(json.dumps(content))
    image = write_jpeg(tmp_path / "one.jpg")
    with pytest.raises(UserError, match=r"model|processor"):
        hfcap.load_captioner(model).caption(image)


def test_what_lies_next_to_a_model_is_named(built: RunDirectory, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(built.model, model)
    image = write_jpeg(tmp_path / "one.jpg")
    change(model / "generation_config.json", num_beams="many")
    with pytest.raises(UserError, match=r"generation_config\.json: num_beams: .*; correct it"):
        hfcap.load_captioner(model).caption(image)
    change(model / "generation_config.json", num_beams=10**9)  # took all memory
    with pytest.raises(UserError, match=r"num_beams: .*less than or equal to 1000"):
        hfcap.load_captioner(model).caption(image)
    change(model / "generation_config.json", num_beams=1, max_new_tokens=3 * 10**9)  # never ended
    with pytest.raises(UserError, match=r"max_new_tokens: .*less than or equal to 10000"):
        hfcap.load_captioner(model).caption(image)
    change(model / "generation_config.json", max_new_tokens=3)
    change(model / "hfcap.json", prompt="a {photo")
    with pytest.raises(UserError, match=r"hfcap\.json: .*prompt 'a \{photo'"):
        hfcap.load_captioner(model)
    change(model / "config.json", model_type=["blip"])
    with pytest.raises(UserError, match=r"holds a model of type \['blip'\]"):
        hfcap.load_captioner(model)
    change(model / "hfcap.json", captioner="blop")
    with pytest.raises(UserError, match=r"hfcap\.json: unknown captioner 'blop'; did you mean 'blip'"):
        hfcap.load_captioner(model)


def test_faults_of_libraries_are_told_from_our_own() -> None:
    def fail(kind: type[BaseException]) -> None:
        raise kind("here")

    with pytest.raises(UserError, match="said: could not convert"), library_faults(lambda error: f"said: {error}"):
        np.linalg.norm(np.asarray("x").astype(float))
    with pytest.raises(torch.OutOfMemoryError), library_faults(str):
        fail(torch.OutOfMemoryError)
    with pytest.raises(WorkError, match="here"), library_faults(str):
        fail(WorkError)
    # What tokenizers and safetensors raise where they did not foresee something is a class of their own.
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(UserError, match="said: here"), library_faults(lambda error: f"said: {error}"):
        fail(panic)
    with pytest.raises(KeyboardInterrupt), library_faults(str):
        fail(KeyboardInterrupt)
    with pytest.raises(TypeError), library_faults(str):
        count_document_frequencies({"1": ["a dog"]}, "x").idf(1, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [".", None, 1.5, True])
def test_a_token_that_is_no_number_is_named(value: object) -> None:
    with pytest.raises(UserError, match=r"bos_token_id of the model must be the number of a token.*config\.json"):
        token_number(value, "bos_token_id")
    assert token_number(7, "bos_token_id") == 7


def test_a_model_block_that_is_none_is_refused_for_itself(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="model"):
        recipe_from_mapping({**recipe_values("blip", tmp_path), "model": 1.5, "scst": {}}, "recipe.yaml")


@pytest.mark.parametrize("family", ["vit_gpt2", "show_attend_tell", "clip_prefix", "blip"])
def test_configurations_that_ask_for_tuples_change_no_caption(family: str, tmp_path: Path) -> None:
    """`return_dict` says what plain transformers returns to a caller; hfcap reads outputs by name."""
    model, image = tmp_path / "model", write_jpeg(tmp_path / "one.jpg")
    save_tiny_model(model, family, GenerateOptions(num_beams=1, max_new_tokens=5))
    caption = hfcap.load_captioner(model).caption(image).text
    values = json.loads((model / "config.json").read_text())
    for block in (values, *(value for value in values.values() if isinstance(value, dict) and "model_type" in value)):
        block["return_dict"] = False
    (model / "config.json").write_text(json.dumps(values))
    assert hfcap.load_captioner(model).caption(image).text == caption


def test_a_configuration_that_is_a_text_is_told(tmp_path: Path) -> None:
    model = tmp_path / "model"
    save_tiny_model(model, "image_text_to_text", GenerateOptions())
    (model / "config.json").write_text('"a text"')
    with pytest.raises(UserError, match=r"cannot load .*model"):
        hfcap.load_captioner(model)
