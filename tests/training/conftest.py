"""Models this small run fastest on one thread, and then a fork may go on computing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.training.harness import forget_accelerator


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    forget_accelerator()
