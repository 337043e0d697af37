from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import evaluate
import pytest

from hfcap import registry
from hfcap.errors import UserError
from hfcap.metrics import evaluate_metric
from hfcap.metrics.evaluate_metric import evaluate_folder, evaluate_sources
from hfcap.metrics.suite import CaptionSuite
from tests.captioners.clip_folder import write_clip
from tests.data.sample_images import write_jpeg
from tests.metrics.random_captions import random_captions

CORE = ("bleu", "rouge_l", "cider")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _load(name: str, folder: Path, **options: Any) -> Any:
    return evaluate.load(str(evaluate_folder(name)), cache_dir=str(folder), **options)


def _columns(n_images: int, seed: int) -> tuple[list[str], list[list[str]], list[str], dict[str, float | None]]:
    candidates, references = random_captions(n_images, seed)
    values = CaptionSuite(CORE).compute(candidates, references).values
    return list(candidates.values()), list(references.values()), list(candidates), values


def test_every_metric_has_its_folder() -> None:
    folder = Path(evaluate_metric.__file__).parent / "evaluate_modules"
    sources = evaluate_sources()
    written = {str(path.relative_to(folder)): path.read_text() for path in folder.glob("*/*.py")}
    assert written == sources, "run `python -m hfcap.metrics.evaluate_metric`"
    assert {Path(path).parts[0] for path in sources} == {*registry.names("metrics"), "caption_suite"}


@pytest.mark.parametrize("name", [*CORE, "caption_suite"])
def test_loaded_metrics_give_the_suite_values(name: str, tmp_path: Path) -> None:
    predictions, references, image_ids, values = _columns(40, 80)
    metric = _load(name, tmp_path)
    assert isinstance(metric, evaluate.Metric)
    found = metric.compute(predictions=predictions, references=references, image_ids=image_ids)
    assert found == pytest.approx({key: values[key] for key in found})
    assert found and metric.compute(predictions=predictions, references=references) == pytest.approx(found)


def test_batches_single_rows_and_repeated_rows(tmp_path: Path) -> None:
    predictions, references, image_ids, values = _columns(30, 81)
    metric = _load("cider", tmp_path)
    for start in range(0, 30, 8):
        part = slice(start, start + 8)
        metric.add_batch(predictions=predictions[part], references=references[part], image_ids=image_ids[part])
    # What padding of the last batch brings.
    metric.add(prediction=predictions[0], reference=references[0], image_ids=image_ids[0])
    assert metric.compute()["cider"] == pytest.approx(values["cider"])


def test_combined_metrics(tmp_path: Path) -> None:
    predictions, references, image_ids, values = _columns(30, 82)
    combined = evaluate.combine([_load(name, tmp_path) for name in CORE])
    combined.add_batch(predictions=predictions, references=references, image_ids=image_ids)
    assert combined.compute() == pytest.approx(values)
    assert combined.compute(predictions=predictions, references=references) == pytest.approx(values)


def test_one_reference_may_be_plain_text(tmp_path: Path) -> None:
    predictions, references, _, _ = _columns(20, 83)
    first = [group[0] for group in references]
    metric = _load("bleu", tmp_path)
    assert metric.compute(predictions=predictions, references=first) == pytest.approx(
        metric.compute(predictions=predictions, references=[[line] for line in first])
    )


def test_options_reach_the_metric(tmp_path: Path) -> None:
    predictions, references, _, values = _columns(20, 84)
    (tmp_path / "df.json").write_text('{"1": ["a dog"], "2": ["a cat"], "3": ["the man"]}')
    options = {"document_frequencies": str(tmp_path / "df.json")}
    at_load = _load("cider", tmp_path, **options).compute(predictions=predictions, references=references)
    at_compute = _load("cider", tmp_path).compute(predictions=predictions, references=references, **options)
    assert at_load == at_compute
    assert at_load["cider"] != pytest.approx(values["cider"])
    with pytest.raises(UserError, match="did you mean 'document_frequencies'"):
        _load("cider", tmp_path).compute(predictions=predictions, references=references, document_frequency="corpus")


def test_contradicting_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image 1 was added twice"):
        _load("bleu", tmp_path).compute(
            predictions=["a dog", "a cat"], references=[["a dog"], ["a dog"]], image_ids=[1, "1"]
        )


def _process(number: int, folder: str, queue: Any) -> None:
    metric = _load("cider", Path(folder), num_process=2, process_id=number, experiment_id="two")
    predictions, references, image_ids, _ = _columns(21, 85)
    # As a distributed sampler does: interleaved, the last batch padded with the first row.
    rows = [*range(number, 21, 2)] if number == 0 else [*range(number, 21, 2), 0]
    metric.add_batch(
        predictions=[predictions[row] for row in rows],
        references=[references[row] for row in rows],
        image_ids=[image_ids[row] for row in rows],
    )
    queue.put((number, metric.compute()))


def test_two_processes_give_the_values_of_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_process, args=(number, str(tmp_path), queue)) for number in range(2)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=200) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert results[1] is None
    assert results[0]["cider"] == pytest.approx(_columns(21, 85)[3]["cider"])


def test_several_processes_need_image_ids(tmp_path: Path) -> None:
    metric = _load("bleu", tmp_path, num_process=2, process_id=0)
    with pytest.raises(UserError, match="image_ids: give them"):
        metric.add_batch(predictions=["a"], references=[["a"]])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("length", {}, {"length_mean": 2.5, "length_deviation": 0.5, "length_ratio": 1.0}),
        ("bad_endings", {}, {"bad_endings": 0.5}),
        ("chair", {"instances": {"1": ["dog"], "2": ["dog"]}}, {"chair_i": 0.5, "chair_s": 0.5}),
        (
            "diversity",
            {"training_captions": ["A dog on."], "candidates": {"1": ["a b c d", "a b c d"]}},
            {"distinct_1": 0.8, "distinct_2": 1.0, "vocabulary_size": 4.0, "novel_captions": 0.5, "m_bleu_4": 1.0},
        ),
    ],
)
def test_descriptive_metrics_load_with_their_options(
    name: str, options: dict[str, Any], expected: dict[str, float], tmp_path: Path
) -> None:
    columns = {"predictions": ["a dog on", "a cat"], "references": [["a dog on"], ["one thing"]], "image_ids": [1, 2]}
    assert _load(name, tmp_path, **options).compute(**columns) == pytest.approx(expected)


def test_clip_score_loads_with_a_folder_of_images(tmp_path: Path) -> None:
    for image_id in (1, 2):
        write_jpeg(tmp_path / "image_source" / f"{image_id}.jpg", "red")
    metric = _load(
        "clip_score", tmp_path, model=write_clip(tmp_path / "clip"), images=tmp_path / "image_source", device="cpu"
    )
    found = metric.compute(predictions=["a dog", "a cat"], references=[["a dog"], ["a cat"]], image_ids=[1, 2])
    assert set(found) == {"clip_score", "ref_clip_score"} and all(0 <= value <= 2.5 for value in found.values())


def test_wrong_options_are_refused_when_computing(tmp_path: Path) -> None:
    metric = _load("clip_score", tmp_path, images=5, modle="x")
    with pytest.raises(UserError) as caught:
        metric.compute(predictions=["a"], references=[["a"]])
    assert "unknown option 'modle'; did you mean 'model'" in str(caught.value) and "option 'images'" in str(
        caught.value
    )


def test_a_suite_of_ones_own_takes_the_options_of_its_metrics(tmp_path: Path) -> None:
    predictions, references, image_ids, values = _columns(20, 86)
    columns = {"predictions": predictions, "references": references, "image_ids": image_ids}
    without_cider = _load("caption_suite", tmp_path, metrics=["bleu", "rouge_l"]).compute(**columns)
    assert without_cider == pytest.approx({key: values[key] for key in without_cider})
    (tmp_path / "df.json").write_text('{"1": ["a dog"], "2": ["a cat"], "3": ["the man"]}')
    suite = _load("caption_suite", tmp_path, document_frequencies=str(tmp_path / "df.json"))
    assert suite.compute(**columns)["cider"] != pytest.approx(values["cider"])
    with pytest.raises(UserError, match="did you mean 'document_frequencies'"):
        _load("caption_suite", tmp_path, document_frequency="corpus").compute(**columns)
