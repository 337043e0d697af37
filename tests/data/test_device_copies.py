"""Batches on their way to a device: pinned for CUDA alone, and what is not pinned is never copied in the background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from hfcap.data.loading import BatchLoader, CaptionBatch, CaptionDataset, Collate, ImageInputs, image_loader
from hfcap.data.pixels import PixelPlan
from hfcap.schema import SizedImages, sent
from hfcap.training.records.log import LogWindow
from tests.training.host_reads import UPLOAD, CountedReads

CPU, CUDA, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))
PLAN = PixelPlan(2, 2, None, 2, (0.1, 0.1, 0.1), (0.0, 0.0, 0.0))


class Inputs:
    """Two images in bytes, or of shapes of their own."""

    encoded = False

    def __init__(self, sized: bool = False) -> None:
        self.sized = sized
        self.plan = None if sized else PLAN

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        if self.sized:
            return SizedImages((torch.full((1 + index, 3), float(index)),), ((1 + index, 3),))
        return torch.full((3, 2, 2), index, dtype=torch.uint8)


class Transfers:
    """Devices without hardware: what was pinned, and how tensors were copied from the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pinned: list[torch.Tensor] = []
        self.copied: list[tuple[str, bool, bool]] = []
        """Kind of device; whether the host went on; whether the memory was pinned."""
        copy: Any = torch.Tensor.to
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: self.pin(tensor))
        monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor, *_: self.is_pinned(tensor))

        def to(tensor: torch.Tensor, *given: Any, non_blocking: bool = False, **named: Any) -> torch.Tensor:
            device = next((value for value in given if isinstance(value, torch.device)), None)
            if device is None or device.type == "cpu":
                return copy(tensor, *given, non_blocking=non_blocking, **named)
            self.copied.append((device.type, non_blocking, self.is_pinned(tensor)))
            return tensor

        monkeypatch.setattr(torch.Tensor, "to", to)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self.pinned.append(tensor.clone())
        return self.pinned[-1]

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return any(tensor is known for known in self.pinned)


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> Transfers:
    return Transfers(monkeypatch)


def loader_of(inputs: ImageInputs, device: torch.device | None) -> BatchLoader:
    dataset = CaptionDataset(inputs, [[[5, 6]], [[7]]], None, 0)
    return BatchLoader(dataset, Collate([1, 2], 3, 0, inputs), 0, device)


def batch_of(inputs: Any) -> CaptionBatch:
    (batch,) = loader_of(inputs, None).load([[0, 1]], 0)
    return batch


@pytest.mark.parametrize("sized", [False, True])
def test_a_batch_that_is_pinned_goes_while_the_host_goes_on(sized: bool, transfers: Transfers) -> None:
    batch = batch_of(Inputs(sized)).pin_memory()
    # Places of labels are pinned too: six tensors, and a second image where each has its own shape.
    n_tensors = 7 if sized else 6
    assert len(transfers.pinned) == n_tensors
    batch.to(CUDA)
    assert transfers.copied == [("cuda", True, True)] * n_tensors
    assert len(transfers.pinned) == n_tensors, "nothing twice"


@pytest.mark.parametrize("sized", [False, True])
def test_what_is_not_pinned_is_pinned_for_cuda_and_waited_for_elsewhere(sized: bool, transfers: Transfers) -> None:
    """An Apple device would read memory of a worker that is given back in the meantime."""
    batch = batch_of(Inputs(sized))
    batch.to(MPS)
    assert transfers.copied and set(transfers.copied) == {("mps", False, False)}
    assert transfers.pinned == []
    transfers.copied.clear()
    batch.to(CUDA)
    assert transfers.copied and set(transfers.copied) == {("cuda", True, True)}


def test_on_a_cpu_nothing_is_copied(transfers: Transfers) -> None:
    tensor = torch.ones(2)
    assert sent(tensor, CPU) is tensor
    assert transfers.pinned == []


@pytest.mark.parametrize("device", [CPU, CUDA, MPS, None], ids=str)
def test_loaders_pin_for_cuda_alone(
    device: torch.device | None, transfers: Transfers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: CUDA)
    (batch,) = loader_of(Inputs(), device).load([[0, 1]], 0)
    (images,) = image_loader(Inputs(), [[0, 1]], 0, device)
    parts: Sequence[torch.Tensor] = (batch.images, batch.packed.input_ids, batch.packed.labels, images)
    assert {transfers.is_pinned(tensor) for tensor in parts} == {device == CUDA}
    assert len(transfers.pinned) == (7 if device == CUDA else 0)


def test_the_norm_of_the_gradient_is_no_copy_from_the_host() -> None:
    window, reads = LogWindow(torch.device("meta")), CountedReads()
    with reads.everywhere():
        for norm in (2.5, None, torch.tensor(2.5), torch.zeros((), device="meta")):
            window.add_loss(1, torch.zeros((), device="meta"), norm)
    assert UPLOAD not in reads.counts
    window = LogWindow(CPU)
    window.add_loss(1, torch.tensor(1.0), 0.1)
    assert window.read() == (1.0, float(torch.tensor(0.1)))
