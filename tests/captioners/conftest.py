from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hfcap.captioners.quiet import quiet_loading


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Models of width 32 lose more by waiting for a second thread than it saves."""
    quiet_loading()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
