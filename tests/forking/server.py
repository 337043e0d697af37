"""Runs commands in forks of itself: `python -m tests.forking.server FOLDER`, as long as its standard input is open.

The first process has imported torch, and forks one branch for each set of variables that the other libraries read when
they are imported; a branch imports them and forks for each command.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = (
    "multiprocessing.spawn",
    "numpy",
    "pandas",
    "pyarrow.parquet",
    "torch",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.distributed.run",
)
"""Read no variables of the branches."""
OTHERS = (
    "transformers.modeling_utils",
    "transformers.generation",
    "transformers.trainer",
    "transformers.models.blip.modeling_blip",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.vision_encoder_decoder.modeling_vision_encoder_decoder",
    "transformers.models.vit.modeling_vit",
    "peft",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "hfcap.cli",
    "hfcap.run.stages",
    "hfcap.run.from_checkpoint",
    "hfcap.training.loop",
    "hfcap.captioning.sharded",
    "hfcap.captioners.image_text_to_text",
    "hfcap.captioners.vit_gpt2",
    "hfcap.captioners.clip_prefix",
    "hfcap.captioners.show_attend_tell",
    "hfcap.publishing.push",
)
FIXED = ("OMP_", "MKL_", "KMP_", "ATEN_", "DNNL_", "TORCH_", "TORCHINDUCTOR_", "CUDA_", "LD_", "PYTHON")
"""Beginnings of variables that must be as they were when the first process began: Python and torch read them."""
READ = (
    "HF_",
    "HUGGINGFACE_",
    "TRANSFORMERS_",
    "DATASETS_",
    "ACCELERATE_ENABLE_RICH",
    "ACCELERATE_USE_MEGATRON_LM",
    "BNB_",
    "BITSANDBYTES_",
    "XDG_",
    "HOME",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "FORCE_COLOR",
    "TTY_",
    "JUPYTER_",
)
"""Beginnings of variables that a branch is for. Accelerate reads its other ones when it is called."""
MOST_BRANCHES = 3


def import_all(names: tuple[str, ...]) -> None:
    """Import the modules that are there: not all releases have all of them."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def chosen(environment: Mapping[str, str], beginnings: tuple[str, ...]) -> dict[str, str]:
    """Return the variables whose names begin so."""
    return {name: value for name, value in sorted(environment.items()) if name.startswith(beginnings)}


def received(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return a client's request, None if it was killed before it had sent all, and its streams."""
    streams: list[int] = []
    try:
        head, streams, _, _ = socket.recv_fds(connection, 8, 3)
        left, parts = int.from_bytes(head, "big"), [b""]
        while left and (part := connection.recv(left)):
            parts.append(part)
            left -= len(part)
    except ConnectionError:
        return None, streams
    return (None if left or not head else json.loads(b"".join(parts))), streams


def _let_go() -> None:
    """Take note of children that have ended, so that their processor time counts as this one's."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def answer(connection: socket.socket, value: Any) -> None:
    """Send one line of JSON to a client; it may be gone."""
    try:
        connection.sendall(json.dumps(value).encode() + b"\n")
    except OSError:
        return


class Server:
    """Accepts commands at an address below a folder.

    Attributes:
        environment: variables that are as here in each command that it runs.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.environment = folder, dict(os.environ)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / name))
        self.listener.listen(64)

    def serve(self, handle: Callable[[dict[str, Any], socket.socket, list[int]], Callable[[], None] | None]) -> None:
        """Handle requests until standard input is closed; in a fork, run what it is to run and return."""
        while True:
            ready, _, _ = select.select([self.listener.fileno(), 0], [], [])
            _let_go()
            if 0 in ready and not os.read(0, 1):
                return
            if self.listener.fileno() not in ready:
                continue
            connection, _ = self.listener.accept()
            request, streams = received(connection)
            own = handle(request, connection, streams) if request else None
            if own is not None:
                own()
                return
            connection.close()
            for stream in streams:
                os.close(stream)


class Trunk(Server):
    """Tells clients which branch to ask, and grows it where there is none."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "server")
        self.branches: dict[str, tuple[str, int]] = {}
        self.grown = 0

    def handle(
        self, request: dict[str, Any], connection: socket.socket, streams: list[int]
    ) -> Callable[[], None] | None:
        environment = request["environment"]
        fixed = {"OMP_NUM_THREADS": "1", **chosen(environment, FIXED)}
        if fixed.get("PYTHONPATH") == str(ROOT):
            del fixed["PYTHONPATH"]  # where this was started
        if fixed != chosen(self.environment, FIXED) or request["session"] not in (os.getsid(0), "own"):
            answer(connection, {})
            return None
        read = chosen(environment, READ)
        key = json.dumps(read)
        if key not in self.branches:
            while len(self.branches) >= MOST_BRANCHES:
                _, process = self.branches.pop(next(iter(self.branches)))
                os.kill(process, signal.SIGTERM)
                os.waitpid(process, 0)
            self.grown += 1
            branch = Branch(self.folder, f"branch-{self.grown}")
            if (process := os.fork()) == 0:
                self.listener.close()
                connection.close()
                for stream in streams:
                    os.close(stream)
                return lambda: branch.begin(read)
            branch.listener.close()
            self.branches[key] = (str(branch.address), process)
        address, process = self.branches.pop(key)
        self.branches[key] = (address, process)  # the latest comes last
        answer(connection, {"ask": address})
        return None


class Branch(Server):
    """Forks a process for each command."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        self.address = folder / name

    def begin(self, read: Mapping[str, str]) -> None:
        """Import what is left with these variables, and serve."""
        for name in chosen(os.environ, READ):
            del os.environ[name]
        os.environ.update(read)
        import_all(OTHERS)
        with contextlib.suppress(ImportError):  # of other releases
            from transformers.conversion_mapping import get_checkpoint_conversion_mapping

            get_checkpoint_conversion_mapping("blip")  # compiles a thousand patterns
        assert threading.active_count() == 1
        gc.freeze()  # what is never looked at again stays common to all forks
        self.serve(self.handle)
        os._exit(0)

    def handle(
        self, request: dict[str, Any], connection: socket.socket, streams: list[int]
    ) -> Callable[[], None] | None:
        if os.fork():
            return None
        # A process of its own waits for the command and tells its client, so that this one need not.
        self.listener.close()
        if command := os.fork():
            for stream in streams:
                os.close(stream)
            _watch(command, connection)
        connection.close()
        return lambda: _become(request, streams)


def _watch(command: int, connection: socket.socket) -> None:
    """Tell the client how the command ends; end the command if the client is gone."""

    ended = threading.Event()

    def client_is_gone() -> None:
        if not connection.recv(1) and not ended.is_set():
            os.kill(command, signal.SIGKILL)

    answer(connection, {"process": command})
    threading.Thread(target=client_is_gone, daemon=True).start()
    os.waitid(os.P_PID, command, os.WEXITED | os.WNOWAIT)  # its number stays taken
    ended.set()
    _, status = os.waitpid(command, 0)
    answer(connection, os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Run a command in this process as the interpreter would."""
    for number, given in enumerate(streams):
        os.dup2(given, number)
        os.close(given)
    if request["session"] == "own":
        os.setsid()
    elif os.getpgrp() != request["group"]:
        os.setpgid(0, request["group"])
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.umask(request["mask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if "PYTHONPATH" in os.environ:
        sys.path.insert(1, str(ROOT))
    # What this process starts is run by forks as well.
    sys.executable = os.environ["HFCAP_TESTS_CLIENT"]
    code = _code_of(request["arguments"], request["folder"])
    # As the interpreter ends, but for the objects: to free them one by one takes longer than most commands.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 255)


def _code_of(arguments: list[str], folder: str) -> int:
    try:
        _run(arguments, folder)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        where = error.__traceback__
        while where is not None and where.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
            where = where.tb_next
        traceback.print_exception(type(error), error, where)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _run(arguments: list[str], folder: str) -> None:
    first, *rest = arguments
    if first == "-m":
        sys.path[0] = folder
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if first == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.path[0], sys.argv = str(Path(first).resolve().parent), arguments
        main.__file__ = first
        exec(compile(Path(first).read_bytes(), first, "exec"), main.__dict__)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the tests decide when this ends
    server = Trunk(Path(sys.argv[1]))
    import_all(LIBRARIES)
    assert threading.active_count() == 1
    server.serve(server.handle)
    for _, process in server.branches.values():
        os.waitpid(process, 0)
    os._exit(0)
