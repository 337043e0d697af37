"""What decoding hands to a captioner, what becomes of its answers, and by what a job is known; without any model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hfcap.captioners.asking.prompts import PromptDefaults
from hfcap.captioners.base import GeneratedCaption
from hfcap.data.images import FileImage
from hfcap.data.loading import BlankInputs
from hfcap.decoding import DecodingJob, caption_batches, job_fingerprint, read_captions, write_predictions
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import CaptionedImage, Prediction
from tests.test_decoding import BEAMS, SAMPLES, Process, StoredStates, _parts, _rows


class Scripted:
    """Stands for a captioner: captions that tell what it was given."""

    prompt = template = "a photo"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.model = torch.nn.Linear(2, 2).train()
        self.given: list[Any] = []

    def identity(self) -> str:
        return ""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        assert torch.is_inference_mode_enabled() and not self.model.training
        return images + 100

    def caption_states(self, states: torch.Tensor, options: GenerateOptions, prompt: str | None) -> Any:
        self.given.append((states.mean(dim=1).tolist(), options, prompt, torch.initial_seed()))
        return [[GeneratedCaption(f"{float(row.mean())} {n}", -n / 8) for n in (1, 2)] for row in states]


def _scripted(options: GenerateOptions, prompt: str | None = None) -> tuple[Any, DecodingJob]:
    records = [CaptionedImage(f"id {number}", f"{number}.png", (), FileImage(Path())) for number in range(8)]
    states = StoredStates(torch.arange(8.0)[:, None].expand(8, 2))
    return Scripted(), DecodingJob(records, states, options, 3, 0, prompt)


@pytest.mark.parametrize("encoded", [True, False])
def test_what_a_captioner_is_given_and_what_becomes_of_its_answers(encoded: bool) -> None:
    captioner, job = _scripted(SAMPLES, "a cat")
    job.inputs.encoded = encoded
    batches = list(caption_batches(captioner, job, [7, 1, 2, 5]))
    assert [[row.image_id for row in batch] for batch in batches] == [["id 7", "id 1", "id 2"], ["id 5"]]
    added = 0.0 if encoded else 100.0
    # Seeded by the first image's place in the whole job: the same whoever captions it, and whenever.
    assert captioner.given == [
        ([7 + added, 1 + added, 2 + added], SAMPLES, "a cat", 5 * 1_000_003 + 7),
        ([5 + added], SAMPLES, "a cat", 5 * 1_000_003 + 5),
    ]
    (last,) = batches[1]
    text = str(5 + added)
    assert last == Prediction("id 5", "5.png", f"{text} 1", -0.125, (f"{text} 1", f"{text} 2"))
    assert not captioner.model.training


def test_without_sampling_the_random_state_is_left_alone() -> None:
    torch.manual_seed(77)
    captioner, job = _scripted(BEAMS)
    list(caption_batches(captioner, job, range(8)))
    assert [seed for *_, seed in captioner.given] == [77, 77, 77]
    assert [prompt for *_, prompt, _ in captioner.given] == [None] * 3


def test_a_job_is_known_by_all_that_its_captions_depend_on() -> None:
    captioner, job = _scripted(BEAMS)
    ids = [record.image_id for record in job.records]
    first = job_fingerprint(captioner, job, ids)
    assert len(first) == 16 and int(first, 16) >= 0
    assert first == job_fingerprint(captioner, replace(job, num_workers=3), ids), "workers change nothing"
    assert first == job_fingerprint(captioner, replace(job, prompt="a photo"), ids), "the captioner's own prompt"
    others = [
        job_fingerprint(captioner, replace(job, prompt="a cat"), ids),
        job_fingerprint(captioner, replace(job, batch_size=4), ids),
        job_fingerprint(captioner, replace(job, options=SAMPLES), ids),
        job_fingerprint(captioner, replace(job, inputs=BlankInputs(job.inputs)), ids),
        job_fingerprint(captioner, job, ids[::-1]),
        job_fingerprint(captioner, job, ids[:-1]),
    ]
    for name in ("weight", "bias"):
        with torch.no_grad():
            getattr(captioner.model, name).add_(1.0)
        others.append(job_fingerprint(captioner, job, ids))
    captioner.model = torch.nn.ModuleDict({"other": captioner.model})
    others.append(job_fingerprint(captioner, job, ids))
    assert len({first, *others}) == 10


def test_captions_keep_their_letters(tmp_path: Path) -> None:
    """Also in the part file that a stopped run leaves behind."""
    captioner, job = _scripted(BEAMS)
    captioner.caption_states = lambda states, *_: [[GeneratedCaption("zwölf Gäste", None)]] * len(states)
    path = tmp_path / "new" / "folder" / "test.jsonl"
    write_predictions(captioner, job, path, Process(1, 2))
    [part] = _parts(path)
    assert part.name.startswith("test.jsonl.part-") and part.name.endswith("-1")
    assert [row["image_id"] for row in _rows(part)] == ["id 3", "id 4", "id 5"]
    assert part.read_text(encoding="utf-8").count("zwölf Gäste") == 3 * 2
    (path.parent / "other.jsonl.part-x-0").write_text("")
    write_predictions(captioner, job, path, Process())
    assert read_captions(path) == {f"id {number}": "zwölf Gäste" for number in range(8)}
    assert [part.name for part in _parts(path)] == ["other.jsonl.part-x-0"], "parts of other files are left alone"


class Bar:
    """Stands for the progress bar."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def add_task(self, description: str, **values: Any) -> int:
        self.seen.append((description, values))
        return 7

    def advance(self, task: int, by: int) -> None:
        assert task == 7
        self.seen.append(by)


def test_progress_counts_this_process_s_images_and_is_shown_by_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Bar] = []

    @contextmanager
    def progress_bar() -> Iterator[Bar]:
        bars.append(Bar())
        yield bars[-1]

    monkeypatch.setattr("hfcap.decoding.progress_bar", progress_bar)
    captioner, job = _scripted(BEAMS)
    path = tmp_path / "test.jsonl"
    write_predictions(captioner, job, path, Process(1, 2))
    [part] = _parts(path)
    lines = part.read_bytes().splitlines(keepends=True)
    # As a stopped single process leaves it: two of the three batches are done.
    part.rename(part.with_name(part.name[:-1] + "0"))
    whole = [f'{{"image_id": "id {number}", "caption": "x"}}\n'.encode() for number in range(3)]
    part.with_name(part.name[:-1] + "0").write_bytes(b"".join([*whole, *lines]))
    write_predictions(captioner, job, path, Process())
    assert [bar.seen for bar in bars] == [
        [("Captioning", {"total": 3, "completed": 0, "visible": False}), 3],
        [("Captioning", {"total": 8, "completed": 6, "visible": True}), 2],
    ]


def test_images_with_the_same_prompt_are_captioned_together(tmp_path: Path) -> None:
    class Asked(Scripted):
        processor = SimpleNamespace()
        caption_each = PromptDefaults.caption_each

    _, job = _scripted(BEAMS, "a {kind}")
    records = [replace(one, columns={"kind": ("cat", "dog")[n % 2]}) for n, one in enumerate(job.records[:6])]
    captioner: Any = Asked()
    write_predictions(captioner, replace(job, records=records), tmp_path / "test.jsonl", Process())
    assert [prompt for *_, prompt, _ in captioner.given] == ["a cat", "a dog"]
    assert list(read_captions(tmp_path / "test.jsonl").values()) == [f"{float(n)} 1" for n in range(6)]


def test_parts_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    captioner, job = _scripted(BEAMS)
    path = tmp_path / "test.jsonl"
    write_predictions(captioner, job, path, Process(1, 2))
    [part] = _parts(path)
    part.write_bytes(part.read_bytes() + b"\xff\n")
    with pytest.raises(UserError, match="unfinished predictions, line 4, is not UTF-8 text"):
        write_predictions(captioner, job, path, Process(0, 2))


def test_a_image_without_a_caption_is_a_bug_and_nothing_is_written(tmp_path: Path) -> None:
    captioner, job = _scripted(BEAMS)
    path = tmp_path / "test.jsonl"
    with pytest.raises(AssertionError, match="3 images were not captioned"):
        write_predictions(captioner, job, path, Process(0, 2))  # the other process never wrote its part
    assert not path.exists() and len(_parts(path)) == 1
