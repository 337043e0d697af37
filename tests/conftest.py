"""For all tests: no network but loopback, no cache of the user's, and no silent skip where the data is there."""

from __future__ import annotations

import ipaddress
import multiprocessing.spawn
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.forking.start import forking_python

if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
    # On a processor with AVX-512, torch asks oneDNN whether it may use bfloat16, and not the kernels that it was told
    # to use; its attention then fails. Here, and in the processes that tests start, both know the same processor.
    os.environ.setdefault("DNNL_MAX_CPU_ISA", "AVX2")


def _is_loopback(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return address[0] in ("", "localhost")


@pytest.fixture(autouse=True, scope="session")
def _only_loopback() -> Iterator[None]:
    """Refuse connections to other machines, as a machine without network would."""
    connect = socket.socket.connect

    def connect_to_loopback(self: socket.socket, address: Any) -> None:
        if not _is_loopback(address):
            raise OSError(f"tests may not use the network (connection to {address[0]})")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_to_loopback)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep feature stores and notes about checked images out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFCAP_CACHE", str(tmp_path_factory.mktemp("hfcap-cache")))
        yield


@pytest.fixture(scope="session")
def forking() -> Iterator[str]:
    """The path of a `python` that need not import torch, transformers and hfcap again (tests/forking)."""
    with forking_python() as path:
        yield path


@pytest.fixture
def forks(forking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what this test starts with sys.executable be forks: itself, and the commands that start others."""
    multiprocessing.spawn.get_executable()  # has noted the interpreter itself
    monkeypatch.setattr(sys, "executable", forking)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small run fastest on one thread, and then a fork may go on computing; the next test starts fresh."""
    import torch

    from tests.training.harness import forget_accelerator

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    forget_accelerator()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With HFCAP_REQUIRE_SHARED=1 (continuous integration) a test skipped for want of ../shared has failed."""
    report: Any = yield
    if os.environ.get("HFCAP_REQUIRE_SHARED") == "1" and report.skipped and "../shared" in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"HFCAP_REQUIRE_SHARED=1, but this test was skipped: {report.longrepr}"
    return report
