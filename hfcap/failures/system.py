"""What the system does to a process, said in one sentence: memory that is not there, helpers that were killed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from hfcap.errors import UserError, WorkError

_KILLED = re.compile(r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (?:is killed by signal: ([\w ]+)|exited unexpectedly)")
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "out of memory")
_CUT_OFF = re.compile(r"Connection (?:closed|reset) by peer|Broken pipe|Connection refused|[Gg]loo|NCCL|TCPStore")
_SMALLER = (
    "lower train.dataloader_num_workers, or halve train.per_device_train_batch_size and per_device_eval_batch_size"
)


@contextlib.contextmanager
def failures_of_the_system(where: Callable[[], str]) -> Iterator[None]:
    """Turn failures that neither hfcap nor the person made into errors that say where, what and what to do.

    Errors of data-loader workers come without the traceback that torch writes into their message.

    Args:
        where: called when something failed: what was being done.

    Raises:
        WorkError: too little memory, or the system ended a data-loader worker.
    """
    try:
        yield
    except (UserError, WorkError) as error:
        original = _told_by_worker(error)
        if original is None:
            raise
        raise type(error)(original) from error
    # torch raises from a signal handler, also in the midst of an import.
    except (RuntimeError, MemoryError, OSError, ImportError) as error:
        problem = problem_of(error)
        if problem is None:
            raise
        raise WorkError(f"{where()}: {problem}") from error


def problem_of(error: BaseException) -> str | None:
    """Return what the system did, and the remedy; None where an error is something else."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    killed = [match for one in chain if (match := _KILLED.search(str(one)))]
    if killed and isinstance(error, RuntimeError | ImportError):
        signal = next((match[1].strip() for match in killed if match[1]), None)
        by = f"the system ended a data-loader worker{f' ({signal})' if signal else ''}"
        if signal is None:  # torch may see that it is gone before it is told by what
            return (
                f"{by}, because it crashed or memory is short; {_SMALLER}; with train.dataloader_num_workers=0 a crash "
                "shows which image it is; the same command goes on from what is finished"
            )
        if signal == "Killed":
            return f"{by}, as it does where memory is short; {_SMALLER}; the same command goes on from what is finished"
        return (
            f"{by}; with train.dataloader_num_workers=0 the main process reads the images, and shows which one it is; "
            "the same command goes on from what is finished"
        )
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return (
            f"the accelerator's memory is too small ({str(error).splitlines()[0]}); halve train."
            "per_device_train_batch_size and double gradient_accumulation_steps, halve per_device_eval_batch_size, set "
            "gradient_checkpointing, or train adapters alone (the block lora)"
        )
    short = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _NO_MEMORY)
    )
    if short:
        return f"the memory is too small; {_SMALLER}; the same command goes on from what is finished"
    return None


def is_cut_off(error: RuntimeError) -> bool:
    """Whether torch says that this process no longer reaches the others of its training."""
    # torch.distributed's own errors by their names: what starts fast has not imported it.
    distributed = any(kind.__name__.startswith("Dist") for kind in type(error).__mro__)
    return distributed or _CUT_OFF.search(str(error)) is not None


def _told_by_worker(error: Exception) -> str | None:
    """Return what an error said before torch handed it on from a worker with a traceback in its message."""
    text = str(error)
    if not text.startswith("Caught ") or "DataLoader worker process" not in text.split("\n", 1)[0]:
        return None
    name = f"\n{type(error).__module__}.{type(error).__qualname__}: "
    return text.rpartition(name)[2].strip() or None
