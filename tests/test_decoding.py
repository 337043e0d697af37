"""Decoding to a predictions file: complete, in order, and the same whether interrupted, shared out or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hfcap.captioners.base import Captioner
from hfcap.data.images import FileImage
from hfcap.data.loading import PixelInputs
from hfcap.decoding import DecodingJob, caption_batches, read_captions, write_predictions
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import CaptionedImage
from tests.captioners.helpers import PROMPT, build, write_image

BEAMS = GenerateOptions(num_beams=3, num_return_sequences=2, max_new_tokens=7)
SAMPLES = GenerateOptions(num_beams=1, do_sample=True, max_new_tokens=7, num_return_sequences=2, seed=5)


@dataclass
class Process:
    """Stands for an Accelerator: which process this is, and what happens before it passes a barrier."""

    process_index: int = 0
    num_processes: int = 1
    at_barrier: Callable[[], None] = lambda: None

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def wait_for_everyone(self) -> None:
        self.at_barrier()


class StoredStates:
    """Image states as a feature store gives them."""

    encoded = True
    plan = None

    def __init__(self, states: torch.Tensor) -> None:
        self.states = states

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.states[index]


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return build("vit_gpt2")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[CaptionedImage]:
    folder = tmp_path_factory.mktemp("images")
    paths = [write_image(folder / f"{number}.png", seed=number) for number in range(11)]
    return [CaptionedImage(f"id {path.stem}", path.name, ("x",), FileImage(path)) for path in paths]


def _job(
    captioner: Captioner, records: Sequence[CaptionedImage], options: GenerateOptions, **changes: Any
) -> DecodingJob:
    values = {"batch_size": 3, "num_workers": 0, **changes}
    return DecodingJob(records, PixelInputs(records, captioner.image_processor), options, **values)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.part-*"))


@pytest.fixture(scope="module", params=[BEAMS, SAMPLES], ids=["beams", "samples"])
def expected(
    request: pytest.FixtureRequest,
    captioner: Captioner,
    records: list[CaptionedImage],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[GenerateOptions, str]:
    """Options and the content of an uninterrupted run's file."""
    path = tmp_path_factory.mktemp("whole") / "predictions" / "test.jsonl"
    write_predictions(captioner, _job(captioner, records, request.param), path, Process())
    assert not _parts(path)
    return request.param, path.read_text(encoding="utf-8")


def test_rows_are_complete_in_order_and_those_of_the_captioner(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path
) -> None:
    path = tmp_path / "test.jsonl"
    write_predictions(captioner, _job(captioner, records, BEAMS), path, Process())
    rows = _rows(path)
    assert [row["image_id"] for row in rows] == [record.image_id for record in records]
    assert [row["file_name"] for row in rows] == [record.file_name for record in records]
    pixels = PixelInputs(records, captioner.image_processor)
    for number, row in enumerate(rows):
        with torch.inference_mode():
            found = captioner.caption_states(captioner.encode(pixels.pixel_values([number])), BEAMS)[0]
        assert row["caption"] == row["candidates"][0] == found[0].text
        assert row["candidates"] == [caption.text for caption in found]
        assert row["score"] == pytest.approx(found[0].score, rel=1e-4)
        assert row.pop("cut", False) == found[0].cut
        assert set(row) == {"image_id", "file_name", "caption", "score", "candidates"}
    assert read_captions(path) == {row["image_id"]: row["caption"] for row in rows}


def _interrupted(
    captioner: Captioner, job: DecodingJob, path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run until `after` batches are captioned, then pull the plug."""
    original, calls = captioner.caption_states, [0]

    def failing(*arguments: Any) -> Any:
        if calls[0] == after:
            raise KeyboardInterrupt
        calls[0] += 1
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(captioner, "caption_states", failing)
        with pytest.raises(KeyboardInterrupt):
            write_predictions(captioner, job, path, Process())


def _counted(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    original = captioner.caption_states

    def counting(states: torch.Tensor, *arguments: Any) -> Any:
        sizes.append(len(states))
        return original(states, *arguments)

    monkeypatch.setattr(captioner, "caption_states", counting)
    return sizes


def test_continues_behind_finished_batches(
    captioner: Captioner,
    records: list[CaptionedImage],
    expected: tuple[GenerateOptions, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options, content = expected
    path, job = tmp_path / "test.jsonl", _job(captioner, records, options)
    _interrupted(captioner, job, path, 2, monkeypatch)
    assert not path.exists()
    sizes = _counted(captioner, monkeypatch)
    write_predictions(captioner, job, path, Process())
    assert sizes == [3, 2]  # of 11 images in batches of 3, two batches were done
    assert path.read_text(encoding="utf-8") == content
    assert not _parts(path)


@pytest.mark.parametrize("n_bytes_lost", [1, 20, 150])
def test_cut_off_last_line_does_not_change_the_result(
    captioner: Captioner,
    records: list[CaptionedImage],
    expected: tuple[GenerateOptions, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_bytes_lost: int,
) -> None:
    """Samples are seeded by batch: a batch of which only some lines arrived is drawn again as a whole."""
    options, content = expected
    path, job = tmp_path / "test.jsonl", _job(captioner, records, options)
    _interrupted(captioner, job, path, 2, monkeypatch)
    [part] = _parts(path)
    part.write_bytes(part.read_bytes()[:-n_bytes_lost])
    write_predictions(captioner, job, path, Process())
    assert path.read_text(encoding="utf-8") == content


def test_cut_inside_a_character(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, job = tmp_path / "test.jsonl", _job(captioner, records, BEAMS)
    _interrupted(captioner, job, path, 1, monkeypatch)
    [part] = _parts(path)
    part.write_bytes(part.read_bytes() + '{"image_id": "ü'.encode()[:-1])
    write_predictions(captioner, job, path, Process())
    assert [row["image_id"] for row in _rows(path)] == [record.image_id for record in records]


@pytest.mark.parametrize(
    "line", ['{"image_id": "id 9"}\n{"image_id": "id 10"}', '{"image_id": 9, "caption": "x"}', '["id 9"]', "9"]
)
def test_a_line_that_is_no_prediction_does_not_count_as_done(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """Valid JSON, as a disk that lost its middle may leave behind."""
    path, job = tmp_path / "test.jsonl", _job(captioner, records, BEAMS)
    _interrupted(captioner, job, path, 1, monkeypatch)
    [part] = _parts(path)
    part.write_text(part.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    write_predictions(captioner, job, path, Process())
    assert list(read_captions(path)) == [record.image_id for record in records]
    assert all(len(row["candidates"]) == 2 for row in _rows(path))


@pytest.mark.parametrize("change", ["options", "prompt", "weights", "seed", "images"])
def test_leftovers_of_another_job_are_not_used(
    captioner: Captioner,
    records: list[CaptionedImage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    """A run that is changed and started again must not mix captions of both."""
    path = tmp_path / "test.jsonl"
    _interrupted(captioner, _job(captioner, records, SAMPLES), path, 2, monkeypatch)
    other, changes, options, images = captioner, {}, SAMPLES, records
    if change == "images":
        # The same ids in another order: samples are seeded by an image's place among all.
        images = records[::-1]
    elif change == "options":
        options = BEAMS
    elif change == "seed":
        options = SAMPLES.model_copy(update={"seed": 6})
    elif change == "prompt":
        changes = {"prompt": PROMPT}
    else:
        other = build("vit_gpt2", seed=1)
    write_predictions(other, _job(other, images, options, **changes), path, Process())
    clean = tmp_path / "clean.jsonl"
    write_predictions(other, _job(other, images, options, **changes), clean, Process())
    assert path.read_text() == clean.read_text()
    assert not _parts(path)


@pytest.mark.parametrize("n_processes", [2, 3])
def test_processes_together_write_the_same_file(
    captioner: Captioner,
    records: list[CaptionedImage],
    expected: tuple[GenerateOptions, str],
    tmp_path: Path,
    n_processes: int,
) -> None:
    options, content = expected
    path, job = tmp_path / "test.jsonl", _job(captioner, records, options)
    started: set[int] = set()

    def others_arrive() -> None:
        for rank in range(1, n_processes):
            if rank not in started:
                started.add(rank)
                write_predictions(captioner, job, path, Process(rank, n_processes))

    write_predictions(captioner, job, path, Process(0, n_processes, others_arrive))
    assert started == set(range(1, n_processes))
    assert path.read_text(encoding="utf-8") == content
    assert not _parts(path)


def test_fewer_processes_may_finish_what_more_began(
    captioner: Captioner,
    records: list[CaptionedImage],
    expected: tuple[GenerateOptions, str],
    tmp_path: Path,
) -> None:
    options, content = expected
    path, job = tmp_path / "test.jsonl", _job(captioner, records, options)
    write_predictions(captioner, job, path, Process(1, 2))
    assert len(_parts(path)) == 1
    write_predictions(captioner, job, path, Process())
    assert path.read_text(encoding="utf-8") == content
    assert not _parts(path)


def test_sampling_depends_on_the_seed_only(captioner: Captioner, records: list[CaptionedImage]) -> None:
    def captions(seed: int) -> list[str]:
        torch.manual_seed(99 + seed)  # what happened before must not matter
        options = SAMPLES.model_copy(update={"seed": seed})
        batches = caption_batches(captioner, _job(captioner, records, options), range(len(records)))
        return [prediction.caption for batch in batches for prediction in batch]

    assert captions(5) == captions(5)
    assert captions(5) != captions(6)


def test_stored_states_give_the_same_captions(captioner: Captioner, records: list[CaptionedImage]) -> None:
    job = _job(captioner, records, BEAMS)
    with torch.inference_mode():
        pixels = PixelInputs(records, captioner.image_processor)
        states = captioner.encode(pixels.pixel_values(range(len(records))))
    stored = DecodingJob(records, StoredStates(states.clone()), BEAMS, 3, 0)
    first, second = (
        [prediction.caption for batch in caption_batches(captioner, each, range(len(records))) for prediction in batch]
        for each in (job, stored)
    )
    assert first == second


def test_prompt_of_the_job_replaces_the_captioner_s(captioner: Captioner, records: list[CaptionedImage]) -> None:
    options = GenerateOptions(num_beams=1, max_new_tokens=7)
    without, with_prompt = (
        [p.caption for batch in caption_batches(captioner, job, range(len(records))) for p in batch]
        for job in (_job(captioner, records, options), _job(captioner, records, options, prompt=PROMPT))
    )
    assert without != with_prompt
    assert not any(caption.startswith(PROMPT) for caption in with_prompt)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_bytes(b'{"image_id": "1", "caption": "a"}\n\xff\n')
    with pytest.raises(UserError, match=r"test\.jsonl: predictions, line 2, is not UTF-8 text"):
        read_captions(path)


@pytest.mark.parametrize("line", ['{"caption": "x"}', '{"image_id": 3, "caption": "x"}', '{"image_id": "3"}'])
def test_predictions_that_lack_something(tmp_path: Path, line: str) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"image_id": "1", "caption": "a"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"test\.jsonl: line 2 lacks image_id or caption"):
        read_captions(path)
