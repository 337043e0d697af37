"""Peak memory: what training needed, whatever the process did before."""

from __future__ import annotations

import sys

import pytest
import torch

from hfcap.environment import keep_freed_memory
from hfcap.training.records.log import peak_memory_bytes, restart_peak_memory

CPU = torch.device("cpu")
BLOCK = 200 * 2**20


def _touch(n_bytes: int) -> None:
    torch.ones(n_bytes, dtype=torch.uint8)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot start the peak again")
def test_the_peak_is_that_since_the_restart() -> None:
    keep_freed_memory()
    _touch(3 * BLOCK)
    restart_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    _touch(2 * BLOCK)
    with_both = peak_memory_bytes(CPU)
    restart_peak_memory(CPU)
    _touch(BLOCK)
    with_one = peak_memory_bytes(CPU)
    # Freed memory stays in the peak until the restart; half a block is room for what else the process does.
    assert with_both - before > 1.5 * BLOCK
    assert 0.5 * BLOCK < with_one - before < 1.5 * BLOCK
