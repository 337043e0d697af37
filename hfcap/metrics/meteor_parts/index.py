"""METEOR's synonym lists and paraphrase table as memory-mapped arrays, built once per user.

The table has 5.27 million phrase pairs (272 MB of text); reading it takes seconds and, as Python objects, gigabytes.
Here a phrase is its 64-bit hash; a sorted array of hashes turns n-grams into phrase numbers, and the paraphrases of a
phrase are a slice of one array. The index lies in $HFCAP_CACHE or ~/.cache/hfcap (about 56 MB).
"""

from __future__ import annotations

import atexit
import gzip
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hfcap.errors import WorkError
from hfcap.files import cache_folder, folder_being_written, only_one, write_problem, write_text
from hfcap.metrics.meteor_parts.hashing import LARGEST_CHUNK, line_hashes, word_hashes
from hfcap.metrics.meteor_parts.resources import MeteorResources, NonBreakingPrefixes
from hfcap.progress import error_console, progress_bar

INDEX_VERSION = 1
"""Part of the folder name: another layout or another hash never reads an old index."""

_LINES_PER_PAIR = 3
_WORDS = "words.json"


@dataclass(frozen=True)
class MeteorIndex:
    """Hashes are sorted; a row is a position in them. Shapes: W words, S synset entries, F forms, P phrases, E pairs.

    Attributes:
        synonym_words: (W,) uint64 hashes of WordNet's words.
        synset_starts: (W + 1,) int32, the synsets of word w are `synsets[synset_starts[w] : synset_starts[w + 1]]`.
        synsets: (S,) int32 WordNet synset numbers.
        irregular_forms: (F,) uint64 hashes of irregular inflected forms.
        base_starts: (F + 1,) int32, the same for `bases`.
        bases: rows of the base forms in `synonym_words`; base forms that WordNet lacks are left out.
        phrases: (P,) uint64 hashes of all phrases on either side of the table.
        phrase_filter: (2**22,) uint8, bit `hash >> 39` is set for every phrase: most n-grams are refused by one look.
        paraphrase_starts: (P + 1,) int32, the same for `paraphrases`.
        paraphrases: (E,) int32 phrase rows, in the order of the table, which decides between equal alignments.
        function_words: words that count less.
        prefixes: words whose final dot ends no sentence.
    """

    synonym_words: NDArray[np.uint64]
    synset_starts: NDArray[np.int32]
    synsets: NDArray[np.int32]
    irregular_forms: NDArray[np.uint64]
    base_starts: NDArray[np.int32]
    bases: NDArray[np.int32]
    phrases: NDArray[np.uint64]
    phrase_filter: NDArray[np.uint8]
    paraphrase_starts: NDArray[np.int32]
    paraphrases: NDArray[np.int32]
    function_words: frozenset[str]
    prefixes: NonBreakingPrefixes


def _filter_bits(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Byte and bit mask of each hash in the filter."""
    bit = ((hashes >> np.uint64(39)) & np.uint64(7)).astype(np.uint8)
    return (hashes >> np.uint64(42)).astype(np.int64), np.left_shift(1, bit, dtype=np.uint8)


def maybe_phrases(index: MeteorIndex, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return False only where a hash is certainly not one of `index.phrases`."""
    position, bit = _filter_bits(hashes)
    return (index.phrase_filter[position] & bit) != 0


def find_rows(sorted_hashes: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the row of each wanted hash, -1 where it is not among the sorted ones."""
    if len(sorted_hashes) == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    rows = np.minimum(np.searchsorted(sorted_hashes, wanted), len(sorted_hashes) - 1)
    return np.where(sorted_hashes[rows] == wanted, rows, -1)


def _grouped(lists: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    borders = np.cumsum([0, *(len(values) for values in lists)])
    return borders.astype(np.int32), np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=int(borders[-1]))


def _synonym_arrays(resources: MeteorResources) -> dict[str, NDArray[np.generic]]:
    synsets = resources.synsets()
    words = list(synsets)
    hashes = word_hashes(words)
    order = np.argsort(hashes)
    synset_starts, synset_numbers = _grouped([[int(number) for number in synsets[words[row]]] for row in order])
    row_of_word = {words[row]: position for position, row in enumerate(order.tolist())}
    irregular = resources.irregular_forms()
    forms = list(irregular)
    form_hashes = word_hashes(forms)
    form_order = np.argsort(form_hashes)
    base_starts, bases = _grouped(
        [[row_of_word[base] for base in irregular[forms[row]] if base in row_of_word] for row in form_order]
    )
    return {
        "synonym_words": hashes[order],
        "synset_starts": synset_starts,
        "synsets": synset_numbers,
        "irregular_forms": form_hashes[form_order],
        "base_starts": base_starts,
        "bases": bases,
    }


def _table_pieces(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The text of the paraphrase table in pieces of whole lines."""
    rest = b""
    with gzip.open(path, "rb") as handle:
        while block := handle.read(LARGEST_CHUNK - len(rest)):
            text = rest + block
            cut = text.rfind(b"\n") + 1
            rest = text[cut:]
            if len(rest) > LARGEST_CHUNK // 2:
                raise WorkError(
                    f"{path}: a line is longer than {LARGEST_CHUNK // 2} bytes; this is no paraphrase table: "
                    "reinstall pycocoevalcap"
                )
            yield np.frombuffer(text[:cut], dtype=np.uint8)
    if rest:
        yield np.frombuffer(rest + b"\n", dtype=np.uint8)


def _phrase_pairs(path: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(E,) uint64 hashes of the phrases and of their paraphrases, in the order of the table."""
    columns: list[list[NDArray[np.uint64]]] = [[] for _ in range(_LINES_PER_PAIR)]
    n_lines = 0
    with progress_bar() as progress:
        task = progress.add_task("METEOR: building the paraphrase index (once)", total=None)
        for piece in _table_pieces(path):
            hashes = line_hashes(piece)
            for number in (1, 2):  # line 0 of each three is the probability
                columns[number].append(hashes[(number - n_lines) % _LINES_PER_PAIR :: _LINES_PER_PAIR].copy())
            n_lines += len(hashes)
            progress.advance(task)
    if n_lines % _LINES_PER_PAIR:
        raise WorkError(f"{path}: {n_lines} lines are no multiple of {_LINES_PER_PAIR}; reinstall pycocoevalcap")
    if n_lines == 0:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64)
    sources = np.concatenate(columns[1])
    columns[1].clear()
    return sources, np.concatenate(columns[2])


def _paraphrase_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """The phrases and their paraphrases; whole-table temporaries are few, because they are all the memory it takes."""
    sources, targets = _phrase_pairs(path)
    every = np.concatenate((sources, targets))
    every.sort()
    phrases = every[np.concatenate(([True], every[1:] != every[:-1]))] if len(every) else every
    del every
    order = np.argsort(sources, kind="stable")
    targets = targets[order]
    sources = sources[order]
    del order
    first = np.searchsorted(sources, phrases)
    del sources
    paraphrases = np.empty(len(targets), dtype=np.int32)
    # Searching in sorted order keeps to the processor's cache.
    order = np.argsort(targets)
    for start in range(0, len(targets), LARGEST_CHUNK):
        part = order[start : start + LARGEST_CHUNK]
        paraphrases[part] = np.searchsorted(phrases, targets[part])
    position, bit = _filter_bits(phrases)
    phrase_filter = np.zeros(1 << 22, dtype=np.uint8)
    np.bitwise_or.at(phrase_filter, position, bit)
    return {
        "phrases": phrases,
        "phrase_filter": phrase_filter,
        "paraphrase_starts": np.concatenate((first, [len(targets)])).astype(np.int32),
        "paraphrases": paraphrases,
    }


def _array_names() -> Iterable[str]:
    return (field.name for field in fields(MeteorIndex) if field.name not in ("function_words", "prefixes"))


def build_index(resources: MeteorResources, folder: Path) -> None:
    """Write the index of some resources into `folder`, atomically; an existing one is replaced."""
    arrays = _synonym_arrays(resources) | _paraphrase_arrays(resources.paraphrases)
    words = {"function_words": resources.function_words(), "prefixes": resources.prefixes_text()}
    with folder_being_written(folder) as temporary:
        for name in _array_names():
            np.save(temporary / f"{name}.npy", arrays[name], allow_pickle=False)
        write_text(temporary / _WORDS, json.dumps(words, ensure_ascii=False))


def load_index(folder: Path) -> MeteorIndex:
    """Map an index into memory; nothing is read before it is needed."""
    words = json.loads((folder / _WORDS).read_text(encoding="utf-8"))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _array_names()}
    return MeteorIndex(
        **arrays,
        function_words=frozenset(words["function_words"]),
        prefixes=NonBreakingPrefixes.from_text(words["prefixes"]),
    )


def open_index(resources: MeteorResources | None = None, cache: Path | None = None) -> MeteorIndex:
    """Return the index of the installed (or given) resources; build it when the cache has none.

    Processes that need it at the same time wait for the one that builds it. Where hfcap's cache folder cannot be
    written, it is built in a temporary folder that goes with this process.

    Raises:
        MissingPackageError: pycocoevalcap is not installed.
        WorkError: the folder cannot be written, or the table or the index is damaged.
    """
    resources = resources or MeteorResources.installed()
    folder = (cache or cache_folder()) / "meteor" / f"v{INDEX_VERSION}-{resources.fingerprint()}"
    if (folder / _WORDS).is_file():
        return _whole(folder)
    if cache is None and (problem := write_problem(folder.parent)) is not None:
        return _for_this_process(resources, problem)
    try:
        with only_one(folder.with_name(f"{folder.name}.lock")):
            if not (folder / _WORDS).is_file():
                build_index(resources, folder)
    except (OSError, EOFError) as error:
        raise WorkError(
            f"{folder}: METEOR's index cannot be built ({error}); name another folder with HFCAP_CACHE"
        ) from error
    return _whole(folder)


def _whole(folder: Path) -> MeteorIndex:
    try:
        return load_index(folder)
    except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise WorkError(f"{folder}: METEOR's index is damaged ({error}); delete the folder") from error


@lru_cache
def _for_this_process(resources: MeteorResources, problem: str) -> MeteorIndex:
    said = f"warning: {problem}: METEOR's index is built again by each command; set HFCAP_CACHE to another folder"
    error_console.print(said, markup=False, soft_wrap=True)
    folder = Path(tempfile.mkdtemp(prefix="hfcap-meteor-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return open_index(resources, folder)
