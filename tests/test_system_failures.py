"""What the system does to a command (kills its helpers, has no memory, lets nothing be cached) is one sentence."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hfcap.captioners.retrieval import Retrieval
from hfcap.children import run_program
from hfcap.data import loading
from hfcap.data.images import UnreadableImageError
from hfcap.data.loading import CaptionDataset, PixelInputs
from hfcap.errors import WorkError
from hfcap.failures.system import failures_of_the_system, problem_of
from hfcap.metrics.meteor_parts.resources import MeteorResources
from hfcap.run_directory.paths import RunDirectory
from hfcap.scoring import score
from hfcap.store.row_store import RowStore
from hfcap.training.objectives.cross_entropy import CrossEntropy
from tests.cli.command_line import Hfcap, Outcome, write_recipe
from tests.cli.conftest import hfcap as hfcap
from tests.metrics.meteor_resources import write_resources
from tests.training.harness import Result

NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:132] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "8000000000 bytes. Error code 12 (Cannot allocate memory)"
)


def assert_one_sentence(outcome: Outcome, *fragments: str) -> None:
    assert outcome.code == 1, outcome
    assert "Traceback" not in outcome.err
    # torch's own handler of a crash ends its line with a zero byte.
    (said,) = [line for line in outcome.err.replace("\0", "").splitlines() if line.startswith("failed: ")]
    for fragment in fragments:
        assert fragment in said


@pytest.mark.parametrize(
    ("number", "fragments"),
    [(signal.SIGKILL, ("(Killed)", "memory is short")), (signal.SIGSEGV, ("(Segmentation fault)", "shows which one"))],
    ids=["killed", "crashed"],
)
@pytest.mark.parametrize(
    ("owner", "where"),
    [(CaptionDataset, "of the training: "), (loading._ImageOnly, "stage 'caption' of ")],
    ids=["training", "captioning"],
)
def test_a_worker_that_the_system_ended(
    owner: Any,
    where: str,
    number: int,
    fragments: tuple[str, ...],
    tmp_path: Path,
    hfcap: Hfcap,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = write_recipe(
        tmp_path,
        train={"dataloader_num_workers": 1, "max_steps": 4, "save_steps": 1},
        score={"baselines": [], "metrics": ["rouge_l"]},
    )
    if owner is not CaptionDataset:
        assert hfcap("train", recipe).code == 0
    original, main = owner.__getitem__, os.getpid()

    def ended(self: Any, index: Any) -> Any:
        if os.getpid() != main and index in (3, (0, 3)):
            os.kill(os.getpid(), number)
        return original(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(owner, "__getitem__", ended)
        outcome = hfcap("run", recipe)
    if "crashed or memory is short" in outcome.err:  # torch was not told by what, which it races for
        fragments = ("dataloader_num_workers=0",)
    assert_one_sentence(outcome, where, "the system ended a data-loader worker", *fragments, "the same command goes on")
    assert hfcap("run", recipe).code == 0


def test_a_worker_that_is_gone_for_an_unknown_reason() -> None:
    said = problem_of(RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"))
    assert said is not None
    assert "crashed or memory is short" in said and "dataloader_num_workers=0" in said and "goes on" in said


def test_a_worker_that_dies_during_an_import() -> None:
    """torch tells of it in a signal handler; the library whose import that interrupts says that it is missing."""
    with (
        pytest.raises(
            WorkError, match=r"^here: the system ended a data-loader worker \(Killed\), as it does where memory"
        ),
        failures_of_the_system(lambda: "here"),
    ):
        try:
            raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module 'BertConfig'") from error
    with pytest.raises(ModuleNotFoundError), failures_of_the_system(lambda: "here"):
        raise ModuleNotFoundError("nothing of that kind")


PROGRAM = """
import sys
from hfcap.training.objectives.cross_entropy import CrossEntropy
from hfcap.cli import main

def fails(self, batch):
    raise MemoryError

CrossEntropy.forward = fails
sys.argv = ["hfcap", "train", sys.argv[1]]
try:
    main()
except SystemExit as stop:
    kept = stop  # with its traceback, and all that its frames hold
    raise
"""


def test_a_command_that_failed_ends_although_workers_leave_signals_to_it(tmp_path: Path) -> None:
    """At its end Python sends SIGTERM to the workers, which ignore it, and waited for them for ever."""
    recipe = write_recipe(tmp_path, train={"dataloader_num_workers": 2, "max_steps": 4})
    done = run_program([sys.executable, "-c", PROGRAM, str(recipe)], timeout=120)
    assert done.returncode == 1 and "the memory is too small" in done.stderr, done.stderr


GIVEN_UP = """
import pathlib, sys, time
from hfcap.data.loading import image_loader

class Slow:
    plan = None
    encoded = False
    def __len__(self):
        return 4
    def __getitem__(self, index):
        reading.touch()
        time.sleep(600)

reading = pathlib.Path(sys.argv[1])
iterator = iter(image_loader(Slow(), [[0], [1]], 1))
while not reading.exists():
    time.sleep(0.1)
del iterator  # torch waits five seconds, asks by SIGTERM, and lets go
print("end", flush=True)
"""


def test_a_worker_that_torch_gave_up_ends_with_the_process(tmp_path: Path) -> None:
    """On a busy machine a worker takes longer to end than torch waits for it."""
    done = run_program([sys.executable, "-c", GIVEN_UP, str(tmp_path / "reading")], timeout=120)
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


@pytest.mark.parametrize(
    ("error", "remedy"),
    [(MemoryError(), "per_device_train_batch_size"), (RuntimeError(NO_MEMORY), "train.gradient_checkpointing: true")],
    ids=["Python", "torch"],
)
def test_too_little_memory_in_a_step(
    error: Exception, remedy: str, tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, train={"max_steps": 4, "save_steps": 1})
    original, calls = CrossEntropy.forward, iter(range(100))

    def fails_later(self: Any, batch: Any) -> Any:
        if next(calls) == 2:
            raise error
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(CrossEntropy, "forward", fails_later)
        outcome = hfcap("train", recipe)
    assert_one_sentence(outcome, "step 3 of the training: the memory is too small", remedy)
    assert Result(RunDirectory(tmp_path / "runs" / "tiny")).steps
    assert hfcap("train", recipe).code == 0


def test_too_little_memory_elsewhere(tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> None:
    captions, references = tmp_path / "c.json", tmp_path / "r.json"
    captions.write_text('[{"image_id": 1, "caption": "a dog"}]')
    references.write_text('{"images": [{"id": 1}], "annotations": [{"image_id": 1, "id": 1, "caption": "a dog"}]}')
    assert hfcap("score", captions, references).code == 0

    def fails(*arguments: Any, **keywords: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(score, "resampled_values", fails)
    assert_one_sentence(hfcap("score", captions, references), "the memory is too small")


def test_other_errors_stay_what_they_are() -> None:
    for error in (RuntimeError("shapes do not fit"), OSError("no such file"), ValueError("out of memory")):
        assert problem_of(error) is None


def test_errors_of_workers_come_without_their_traceback(
    tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, train={"dataloader_num_workers": 1})
    original, main = PixelInputs.__getitem__, os.getpid()

    def gone(self: PixelInputs, index: int) -> Any:
        if os.getpid() != main:
            raise UnreadableImageError("photos/7.jpg: no such file: somebody deleted it")
        return original(self, index)

    monkeypatch.setattr(PixelInputs, "__getitem__", gone)
    outcome = hfcap("train", recipe)
    said = [line for line in outcome.err.splitlines() if "photos/7.jpg" in line]
    assert said == ["error: photos/7.jpg: no such file: somebody deleted it"], outcome.err
    assert "Traceback" not in outcome.err and outcome.code == 2


def test_small_sizes_have_small_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: needs 0.0 GB but only 0.0 GB are free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=0, free=12_300))
    with pytest.raises(WorkError, match=r"the store needs 45.6 MB but only 12.3 kB are free; take another disk"):
        RowStore(tmp_path).require_room(45_600_000, "the store", "take another disk")
    assert RowStore(tmp_path).require_room(10_000, "the store", "") == 12_300


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"freeze": ["vision"]}},
        {"train": {"freeze": ["vision"]}, "method": "lora"},
        {"data": {"image_cache": True, "feature_store": "off"}},
        {"family": "retrieval", "score": {"baselines": [], "metrics": ["meteor", "cider", "rouge_l"]}},
    ],
    ids=["features", "adapter", "images", "index and METEOR"],
)
def test_a_cache_that_cannot_be_written_ends_no_run(
    changes: dict[str, Any], tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "file" / "cache"))  # as on a read-only disk, also for root
    resources = write_resources(tmp_path / "meteor")  # METEOR's own take ten seconds to be read without a cache
    monkeypatch.setattr(MeteorResources, "installed", lambda: resources)
    data = {"source": "scenes", "n_train": 7, "n_validation": 4, "n_test": 5, "image_size": 32}
    family = changes.get("family", "vit_gpt2")
    model = {"model": Retrieval.tiny()}
    blocks = {**changes, "data": {**data, **changes.get("data", {})}, **(model if family == "retrieval" else {})}
    recipe = write_recipe(tmp_path, **blocks)
    outcome = hfcap("run", recipe)
    assert outcome.code == 0, outcome.err
    assert "warning: " in outcome.err and str(tmp_path / "file" / "cache") in outcome.err
    assert (tmp_path / "runs" / "tiny" / "scores" / "test.json").is_file()
