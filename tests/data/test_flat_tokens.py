"""Token ids in arrays: the same as in lists, in memory and in a file."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hfcap.data.sampling import tokens as module
from hfcap.data.sampling.tokens import flat_tokens
from hfcap.failures.memory import parts_of, windows_of


def tokenise(texts: Sequence[str]) -> list[list[int]]:
    return [[ord(letter) for letter in text] for text in texts]


@pytest.mark.parametrize("in_memory", [10**9, 50])
def test_flat_tokens_are_those_of_each_caption(in_memory: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_IN_MEMORY", in_memory)
    monkeypatch.setattr(module, "_AT_A_TIME", 7)
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "new"))
    draw = random.Random(0)
    captions = [["x" * draw.randint(0, 5) + chr(200 + k) for k in range(draw.randint(0, 4))] for _ in range(40)]
    expected = [tokenise(texts) for texts in captions]
    found = flat_tokens(iter(captions), tokenise)
    assert len(found) == 40 and list(found) == expected
    assert found[-1] == expected[-1] and found[3:9] == expected[3:9]
    assert found.image_lengths().tolist() == [sum(map(len, ids)) for ids in expected]
    assert found.caption_lengths().tolist() == [len(ids) for of_image in expected for ids in of_image]
    assert list(pickle.loads(pickle.dumps(found))) == expected
    assert isinstance(found._ids, np.memmap) == (in_memory == 50)
    assert not list(tmp_path.rglob("*.*")), "the file has no name"
    with pytest.raises(IndexError):
        found[40]


def test_no_images_have_no_tokens() -> None:
    found = flat_tokens([], tokenise)
    assert len(found) == 0 and list(found) == [] and found.image_lengths().tolist() == []


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_windows_hold_the_parts_of_their_batches(parts: int) -> None:
    batches = [[1, 2, 3, 4], [5, 6, 7], [8], [9, 10], [11, 12, 13]]
    cut, counts = windows_of(batches, 2, parts)
    remaining = iter(cut)
    windows = [[next(remaining) for _ in range(count)] for count in counts]
    assert windows == [parts_of(batches[:2], parts), parts_of(batches[2:4], parts), parts_of(batches[4:], parts)]
    assert next(remaining, None) is None
    if parts == 1:
        assert cut is batches
