"""METEOR's index against the same tables kept in plain Python, and the places where building it can go wrong."""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import random
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hfcap.errors import MissingPackageError, UserError, WorkError
from hfcap.metrics.meteor_parts import hashing
from hfcap.metrics.meteor_parts import index as index_module
from hfcap.metrics.meteor_parts.hashing import joined, line_hashes, word_hashes, word_shifts
from hfcap.metrics.meteor_parts.index import MeteorIndex, find_rows, load_index, maybe_phrases, open_index
from hfcap.metrics.meteor_parts.resources import MeteorResources
from tests.metrics.meteor_resources import MEMBERS, TABLE, table_text, write_resources


def large_table() -> tuple[tuple[str, str], ...]:
    """400 pairs of 20 phrases and their 90 paraphrases, in no order: what is listed first is no accident of sorting."""
    chance = random.Random(5)
    return tuple((f"phrase {chance.randrange(20)}", f"other {chance.randrange(90)}") for _ in range(400))


def assert_holds(index: MeteorIndex, table: tuple[tuple[str, str], ...]) -> None:
    """The index says of each phrase what a dictionary of lists says."""
    partners: dict[str, list[str]] = {}
    for phrase, other in table:
        partners.setdefault(other, [])
        partners.setdefault(phrase, []).append(other)
    row_of = {phrase: int(find_rows(index.phrases, word_hashes([phrase]))[0]) for phrase in partners}
    assert sorted(row_of.values()) == list(range(len(index.phrases)))
    for phrase, others in partners.items():
        start, end = index.paraphrase_starts[row_of[phrase] : row_of[phrase] + 2]
        assert index.paraphrases[start:end].tolist() == [row_of[other] for other in others], phrase
    # The filter by its definition: of each hash, 22 bits name the byte and the next three the bit in it.
    expected: dict[int, int] = {}
    for value in index.phrases.tolist():
        expected[value >> 42] = expected.get(value >> 42, 0) | 1 << (value >> 39 & 7)
    assert index.phrase_filter.shape == (2**22,)
    assert {place: int(index.phrase_filter[place]) for place in np.flatnonzero(index.phrase_filter)} == expected


def test_a_table_of_many_paraphrases_keeps_their_order(tmp_path: Path) -> None:
    table = large_table()
    index = open_index(write_resources(tmp_path / "resources", table_text(table)), tmp_path / "cache")
    assert_holds(index, table)
    others = [*range(1 << 39, 1 << 64, 0x3FFF_FFFF_FFFF_FFF), 0]
    known = {value >> 39 for value in index.phrases.tolist()}
    found = maybe_phrases(index, np.array(others, dtype=np.uint64))
    assert found.tolist() == [value >> 39 in known for value in others] and not found.all()
    kinds = {name: array.dtype for name, array in vars(index).items() if isinstance(array, np.ndarray)}
    assert {name for name, kind in kinds.items() if kind == np.uint64} == {
        "synonym_words",
        "irregular_forms",
        "phrases",
    }
    assert {name for name, kind in kinds.items() if kind == np.uint8} == {"phrase_filter"}
    assert {kind.name for kind in kinds.values()} == {"uint64", "uint8", "int32"}


@pytest.mark.parametrize("at_once", [40, 41, 42, 64, 100])
def test_a_table_read_in_pieces_is_the_same(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = large_table()
    resources = write_resources(tmp_path / "resources", table_text(table).removesuffix("\n"))
    monkeypatch.setattr(index_module, "LARGEST_CHUNK", at_once)
    monkeypatch.setattr(hashing, "LARGEST_CHUNK", at_once)
    assert_holds(open_index(resources, tmp_path / "cache"), table)


def test_words_are_hashed_in_pieces_no_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["abc", "de", "a", "abcdefg", "", "b", "abcdef", "c", "abcd", "ab"]
    expected = [int(word_hashes([word])[0]) for word in words]
    monkeypatch.setattr(hashing, "LARGEST_CHUNK", 8)
    assert word_hashes(words).tolist() == expected


def test_letters_are_hashed_by_splitmix64_for_ever() -> None:
    """Indexes on disk hold these hashes; the first three are SplitMix64's well-known first numbers from seed 0."""
    first = np.frombuffer(b"\x00\n\x01\n\x02\n", dtype=np.uint8)
    assert line_hashes(first).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def splitmix64(number: int) -> int:
        state = (number + 1) * golden & mask
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
        return state ^ state >> 31

    for text in ("dog", "été", "put off", "\U0001f4f7"):
        expected = sum(splitmix64(byte) * golden**place for place, byte in enumerate(text.encode())) & mask
        assert int(word_hashes([text])[0]) == expected
    long = "x" * 1000
    assert word_hashes([long + "y", long]).tolist() == [int(word_hashes([long])[0])] * 2
    assert word_hashes([long, long[:-1]])[0] != word_hashes([long[:-1]])[0]


def test_hashes_of_nothing() -> None:
    assert word_hashes([""]).tolist() == [0]  # a sum of no terms
    assert word_shifts([]).shape == (0,)
    for hashes in (word_hashes([]), line_hashes(np.zeros(0, dtype=np.uint8))):
        assert hashes.shape == (0,) and hashes.dtype == np.uint64
    for hashes in (np.zeros(0, dtype=np.uint64), np.array([7], dtype=np.uint64)):
        rows = find_rows(hashes, np.array([7, 3], dtype=np.uint64))
        assert rows.tolist() == [0 if len(hashes) else -1, -1] and rows.dtype == np.int64
    with pytest.raises(AssertionError):
        line_hashes(np.frombuffer(b"no line feed", dtype=np.uint8))


def test_half_of_a_surrogate_pair_is_a_word_of_three_bytes() -> None:
    words = ["\ud83d", "\ud83e", "x\udc00"]
    assert len(set(word_hashes(words).tolist())) == 3
    composed = joined(word_hashes(words), word_shifts(words), word_hashes(["end"] * 3))
    assert composed.tolist() == word_hashes([f"{word} end" for word in words]).tolist()
    # As bytes that are no text of their own would be.
    assert word_hashes(["\ud83d"])[0] == line_hashes(np.frombuffer(b"\xed\xa0\xbd\n", dtype=np.uint8))[0]


def test_an_empty_table_has_no_paraphrases(tmp_path: Path) -> None:
    index = open_index(write_resources(tmp_path / "resources", ""), tmp_path / "cache")
    assert_holds(index, ())
    assert index.paraphrase_starts.tolist() == [0] and index.phrases.dtype == np.uint64


def test_a_table_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = write_resources(tmp_path / "cut", table_text(TABLE)[:-4])
    with pytest.raises(WorkError, match=r"paraphrase-en\.gz: 19 lines are no multiple of 3; reinstall pyco"):
        open_index(write_resources(tmp_path / "short", table_text(TABLE) + "0.5\n"), tmp_path / "cache")
    assert_holds(open_index(cut, tmp_path / "cache"), (*TABLE[:-1], ("zzz", "un ")))
    for module in (index_module, hashing):
        monkeypatch.setattr(module, "LARGEST_CHUNK", 64)
    # 64 bytes are read: two lines of 32 together, and 32 of a third, which are as many as may be.
    table = (("a" * 27, "b" * 40),)
    assert_holds(open_index(write_resources(tmp_path / "just", table_text(table)), tmp_path / "cache"), table)
    long = write_resources(tmp_path / "long", table_text((("a" * 26, "b" * 40),)))
    with pytest.raises(WorkError, match=r"gz: a line is longer than 32 bytes; .* reinstall pycocoevalcap$"):
        open_index(long, tmp_path / "cache")


def test_word_lists_need_no_last_line_feed(tmp_path: Path) -> None:
    resources = write_resources(tmp_path, synsets="auto\n00000001\ncar\n00000001 00000002")
    assert resources.synsets() == {"auto": ["00000001"], "car": ["00000001", "00000002"]}
    assert write_resources(tmp_path).irregular_forms() == {"carses": ["car"], "wagons": ["unlisted"]}


def test_the_fingerprint_is_made_of_the_sums_of_the_contents(tmp_path: Path) -> None:
    text = next(text for text in (f"0.5\na\n{n}\n" for n in range(99)) if zlib.crc32(text.encode()) >= 2**31)
    sums = [zlib.crc32(content.encode()) for content in MEMBERS.values()]
    sums += [zlib.crc32(text.encode()), len(text)]
    assert write_resources(tmp_path, text).fingerprint() == "".join(f"{number:08x}" for number in sums)


def test_resources_are_those_of_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find_spec(name: str) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(submodule_search_locations=[str(tmp_path)])

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    jar, table = tmp_path / "meteor/meteor-1.5.jar", tmp_path / "meteor/data/paraphrase-en.gz"
    for path in (jar, table):
        with pytest.raises(UserError, match=rf"{path.name}: not found; .*pip install --force-reinstall pycocoevalcap"):
            MeteorResources.installed()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert MeteorResources.installed() == MeteorResources(jar, table)
    assert set(asked) == {"pycocoevalcap"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=None))
    with pytest.raises(
        MissingPackageError, match=r"^METEOR \(its word lists and paraphrase table\) needs the package 'pycocoevalcap'"
    ):
        MeteorResources.installed()


def test_an_index_that_holds_a_pickle_is_not_read(tmp_path: Path) -> None:
    resources, cache = write_resources(tmp_path / "resources"), tmp_path / "cache"
    open_index(resources, cache)
    folder = next(path for path in (cache / "meteor").iterdir() if path.is_dir())
    (folder / "phrases.npy").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="pickle"):
        load_index(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("phrases.npy", b""),
        ("paraphrases.npy", b"\x93NUMPY"),
        ("synsets.npy", None),
        ("words.json", b"{"),
        ("words.json", b"[]"),
    ],
)
def test_a_damaged_index_is_named_with_the_way_out(name: str, content: bytes | None, tmp_path: Path) -> None:
    resources, cache = write_resources(tmp_path / "resources"), tmp_path / "cache"
    open_index(resources, cache)
    folder = next(path for path in (cache / "meteor").iterdir() if path.is_dir())
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(WorkError, match=rf"{folder.name}: METEOR's index is damaged \(.+\); delete the folder$"):
        open_index(resources, cache)
    shutil.rmtree(folder)
    assert_holds(open_index(resources, cache), TABLE)


def test_the_progress_bar_says_what_takes_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[tuple[str, float | None]] = []

    @contextlib.contextmanager
    def progress_bar() -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(add_task=lambda text, total=None: tasks.append((text, total)), advance=lambda _: None)

    monkeypatch.setattr(index_module, "progress_bar", progress_bar)
    open_index(write_resources(tmp_path / "resources"), tmp_path / "cache")
    assert tasks == [("METEOR: building the paraphrase index (once)", None)]


def test_who_waited_for_the_index_does_not_build_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resources = write_resources(tmp_path / "resources")
    build = index_module.build_index

    @contextlib.contextmanager
    def other_process(lock: Path) -> Iterator[None]:
        build(resources, lock.with_suffix(""))
        yield

    monkeypatch.setattr(index_module, "only_one", other_process)
    monkeypatch.setattr(index_module, "build_index", lambda *_: pytest.fail("built again"))
    assert_holds(open_index(resources, tmp_path / "cache"), TABLE)


def test_without_a_cache_folder_the_index_is_built_once_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resources = write_resources(tmp_path / "resources")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "file"))
    index = open_index(resources)
    assert_holds(index, TABLE)
    said = capsys.readouterr().err
    assert f"warning: {tmp_path / 'file' / 'meteor'} cannot be written" in said
    assert "METEOR's index is built again by each command; set HFCAP_CACHE to another folder" in said
    assert open_index(resources) is index and "warning" not in capsys.readouterr().err
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    assert_holds(open_index(resources), TABLE)
    assert len(list((tmp_path / "cache/meteor").glob("v*/words.json"))) == 1
    assert "warning" not in capsys.readouterr().err
