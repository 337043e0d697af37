"""Between two rows of the log, training asks the device for no number: each would wait for all that is queued."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hfcap.data.packing import pack_captions
from hfcap.errors import WorkError
from hfcap.schema import IGNORED_LABEL, PackedCaptions
from hfcap.training.loop import TrainingRun
from hfcap.training.records.log import LogWindow
from tests.training.harness import FAMILIES, METHODS
from tests.training.test_optimization import prepared

CPU = torch.device("cpu")

READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero", "aten.masked_select")
"""What makes the host wait for a device: `item`, `tolist` of one number, boolean indexing, comparisons as a whole."""


class CountedReads(TorchDispatchMode):
    """Counts operations that read a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rsplit(".", 1)[0]
        if name in READS and not self.paused:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def everywhere(self) -> Iterator[None]:
        """Count inside the block, also what copies a tensor to the host without an operation."""
        with _CountedCopies(self), self:
            yield

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out what runs inside."""
        self.paused = True
        yield
        self.paused = False


class _CountedCopies(TorchFunctionMode):
    def __init__(self, reads: CountedReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("tolist", "numpy", "cpu") and not self.reads.paused:
            self.reads.counts[name] += 1
        return func(*args, **(kwargs or {}))


def updates(training: TrainingRun) -> Iterator[tuple[Any, float]]:
    """The windows of the first epoch, loaded before anything is counted."""
    return iter(list(training._windows()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("captioner", FAMILIES)
def test_an_update_asks_the_device_for_nothing(
    captioner: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = prepared(tmp_path, captioner, method, num_train_epochs=1, per_device_train_batch_size=2)
    training._set_training_mode()
    windows = updates(training)
    training._update(*next(windows))  # the check whether captions may be packed reads, once in a process
    reads = CountedReads()
    step = training.prepared_optimizer.step

    def step_uncounted() -> None:
        with reads.pause():  # torch's optimizers keep their own counters of steps on the host
            step()

    monkeypatch.setattr(training.prepared_optimizer, "step", step_uncounted)
    with reads.everywhere():
        training._update(*next(windows))
    assert reads.counts == {}
    with reads.everywhere():
        training._since.read()
    assert sum(reads.counts.values()) > 0, "this way of counting sees a read"


def test_the_first_bad_update_is_named() -> None:
    window = LogWindow(CPU)
    window.add_loss(4, torch.tensor(2.5), torch.tensor(1.0))
    assert window.read() == (2.5, 1.0)
    window.add_loss(5, torch.tensor(math.nan), torch.tensor(3.0))
    window.add_loss(6, torch.tensor(1.0), torch.tensor(math.inf))
    with pytest.raises(WorkError, match=r"step 5: the summed loss is nan and the gradient norm 3\.0"):
        window.read()


def test_overflow_that_the_scaler_handles_is_no_fault() -> None:
    window = LogWindow(CPU, overflow_is_handled=True)
    window.add_loss(1, torch.tensor(2.0), torch.tensor(math.inf))
    assert window.read() == (2.0, math.inf)
    window.add_loss(2, torch.tensor(math.inf), None)
    with pytest.raises(WorkError, match="step 2: the summed loss is inf"):
        window.read()


def test_a_window_sums_in_float64_from_where_it_starts() -> None:
    window = LogWindow(CPU, loss=1e8)
    for step in range(3):
        window.add_loss(step + 1, torch.tensor(0.25), 1.0)
    assert window.read() == (1e8 + 0.75, 1.0)


def test_the_host_knows_of_packed_captions_what_the_device_knows() -> None:
    packed = pack_captions([[[5, 6, 7], [8]], [[9, 10]], []], [1, 2], 3, 0, ended=[[True, False], [True], []])
    assert packed.caption_lengths() == [[5, 3], [4], []]
    assert packed.n_labels == 4 + 1 + 3
    assert packed.label_places is not None
    assert packed.labels.flatten()[packed.label_places].tolist() == [5, 6, 7, 3, 8, 9, 10, 3]
    moved = packed.to(CPU)
    assert (moved.lengths, moved.n_labels) == (packed.lengths, packed.n_labels)


def test_other_labels_have_other_places() -> None:
    packed = pack_captions([[[5, 6, 7]]], [1], 3, 0)
    changed = replace(packed, labels=packed.labels.masked_fill(packed.labels == 3, IGNORED_LABEL))
    assert (packed.n_labels, changed.n_labels) == (4, 3)


def test_without_notes_of_the_host_the_tensors_are_read() -> None:
    ids = torch.tensor([[1, 5, 0]], device="cpu")
    packed = PackedCaptions(ids, ids, torch.tensor([[0, 0, -1]]), torch.tensor([[5, 3, IGNORED_LABEL]]))
    packed._note(None, None)  # as where they were made on a device
    assert (packed.n_labels, packed.caption_lengths()) == (2, [[2]])
