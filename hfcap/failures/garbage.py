"""Python's search for objects that hold each other, at rest while very many are made of which none does."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_search_for_cycles() -> Iterator[None]:
    """Leave the search out in the block: captions and their words hold nothing, and it would look at all of them.

    It starts again with the end of the block, unless somebody has turned it off.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
