"""Captions in one buffer are the captions that were put in, score as they do in a dictionary, and take less memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfcap.files import write_json_lines
from hfcap.metrics.base import ReferenceSet
from hfcap.metrics.shared.caption_files import read_references
from hfcap.metrics.shared.caption_table import CaptionCollector, CaptionTable, caption_table
from hfcap.metrics.shared.document_frequencies import DocumentFrequencies
from hfcap.metrics.shared.ngrams import ngram_keys
from hfcap.metrics.shared.tokenizer import encode_captions
from hfcap.metrics.suite import CaptionSuite
from hfcap.scoring import score_files
from tests.metrics.random_captions import random_captions

TEXT = st.one_of(
    st.sampled_from(["a dog", "", " ", "caf\u00e9", "\U0001f436 \u732b", "\ud83d odd"]), st.text(max_size=6)
)


@given(st.lists(st.tuples(st.integers(0, 5), TEXT), max_size=25))
@settings(max_examples=120, deadline=None)
def test_what_comes_out_is_what_was_put_in(rows: Sequence[tuple[int, str]]) -> None:
    """In any order of images, whatever the characters."""
    collector = CaptionCollector()
    expected: dict[str, list[str]] = {}
    for number, text in rows:
        expected.setdefault(f"image {number}", []).append(text)
        collector.add(collector.place(f"image {number}"), text)
    table = collector.table()
    assert list(table.items()) == [(key, tuple(group)) for key, group in expected.items()]
    assert table == {key: tuple(group) for key, group in expected.items()} and len(table) == len(expected)
    assert table.groups.counts() == [len(group) for group in expected.values()]
    groups = [tuple(group) for group in expected.values()]
    for some in (slice(1, 3), slice(None), slice(None, None, 2), slice(None, None, -1), slice(3, 1), slice(-2, None)):
        assert table.groups[some] == groups[some]
    assert list(table.groups) == list(table.values()) == groups
    assert "image 0" not in table or table["image 0"] == tuple(expected["image 0"])
    assert "image 9" not in table
    if expected:
        assert table.groups[-1] == table.groups[len(expected) - 1] == tuple(list(expected.values())[-1])
    with pytest.raises(IndexError):
        table.groups[len(expected)]


def test_ids_are_one_object() -> None:
    table = caption_table([("image 1", ["a dog"]), ("image 2", ["a cat", "a mat"])])
    others = {"".join(["image ", digit]): digit for digit in "213"}
    found = table.with_own_ids(others)
    assert found == others and list(found) == list(others)
    assert {key for key in found if any(key is own for own in table.image_ids)} == {"image 1", "image 2"}


def test_a_table_scores_as_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, references = random_captions(47, 11)
    names = ("bleu", "rouge_l", "cider", "length")
    expected = CaptionSuite(names).compute(candidates, references)
    for at_once in (47, 9):
        monkeypatch.setattr("hfcap.metrics.base.IMAGES_AT_ONCE", at_once)
        found = CaptionSuite(names).compute(candidates, caption_table(references.items()))
        assert found.values == expected.values
        for name, rows in expected.statistics.items():
            np.testing.assert_array_equal(found.statistics[name], rows, err_msg=name)


def test_rare_ngrams_weigh_as_unknown_ones_do() -> None:
    """Those that a single image has are not kept; the weight is ln N all the same (Vedantam et al. 2015, section 4)."""
    groups = {"1": ["a dog", "a dog runs"], "2": ["a cat"], "3": ["a dog"]}
    references = ReferenceSet(groups)
    frequencies = DocumentFrequencies.of_references(references)
    for word, n_images in (("a", 3), ("dog", 2), ("runs", 1), ("cat", 1), ("house", 0)):
        (key,), _ = ngram_keys(encode_captions([word], references.vocabulary), references.vocabulary, 1)
        (weight,) = frequencies.idf(1, np.asarray([key]))
        assert weight == np.log(3) - np.log(max(1, n_images)), word
    assert len(frequencies.keys[0]) == 2


def _held(path: Path) -> tuple[CaptionTable, int]:
    """What a file of human captions is read to, and the bytes that stay."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    found = read_references(path)
    gc.collect()
    size = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return found, size


def test_captions_take_little_more_memory_than_their_letters(tmp_path: Path) -> None:
    captions = [f"a man with {number} dogs on a street, one of five captions" for number in range(5)]
    n_images = 1_000
    path = tmp_path / "human.jsonl"
    write_json_lines(path, ({"image_id": f"{number:09d}", "captions": captions} for number in range(n_images)))
    found, size = _held(path)
    assert len(found) == n_images and found["000000007"] == tuple(captions)
    letters = sum(map(len, captions))
    # The buffer may be an eighth larger than its content; each image has an id, and each caption where it begins.
    assert size / n_images < letters * 9 / 8 + 5 * 8 + 8 + 200


def test_files_in_any_order_of_images_score_the_same(tmp_path: Path) -> None:
    """A COCO file lists captions as they came; JSON lines have those of an image together."""
    candidates, references = random_captions(30, 3)
    rows = [{"image_id": key, "caption": line} for key, group in references.items() for line in group]
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    order = dict.fromkeys(row["image_id"] for row in rows)
    write_json_lines(tmp_path / "mixed.jsonl", rows)
    grouped = {key: [row["caption"] for row in rows if row["image_id"] == key] for key in order}
    write_json_lines(
        tmp_path / "grouped.jsonl", ({"image_id": key, "captions": lines} for key, lines in grouped.items())
    )
    write_json_lines(tmp_path / "p.jsonl", ({"image_id": key, "caption": line} for key, line in candidates.items()))
    for name in ("mixed", "grouped"):
        score_files(tmp_path / "p.jsonl", tmp_path / f"{name}.jsonl", output=tmp_path / f"{name}.json", n_resamples=20)
    assert (tmp_path / "mixed.json").read_bytes() == (tmp_path / "grouped.json").read_bytes()
