from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from hfcap.errors import MissingPackageError, UserError
from hfcap.metrics.cider import Cider
from hfcap.metrics.shared.document_frequencies import (
    END_WORD,
    DocumentFrequencies,
    count_document_frequencies,
    load_document_frequencies,
    with_end_word,
)
from hfcap.metrics.shared.ngrams import ngram_keys
from hfcap.metrics.shared.tokenizer import TOKENIZER_VERSION, Vocabulary, encode_captions
from hfcap.metrics.suite import CaptionSuite, build_metric
from scripts.conformance_tokenizer import package_folder
from tests.metrics.random_captions import random_captions

REFERENCES = {"1": ["a dog", "a dog a dog"], "2": ["a cat"]}


def test_an_image_counts_once_however_often_it_says_so() -> None:
    found = count_document_frequencies(REFERENCES, "test")
    assert sorted(found.counts[0].tolist()) == [1, 1, 2]  # dog, cat, a
    assert sorted(found.counts[1].tolist()) == [1, 1, 1]  # a dog, dog a, a cat
    assert found.idf(1, found.keys[0]).max() == pytest.approx(np.log(2))
    assert found.idf(1, np.array([12345], dtype=np.uint64)).tolist() == pytest.approx([np.log(2)])


def test_saved_and_loaded_are_equal(tmp_path: Path) -> None:
    found = count_document_frequencies(REFERENCES, "test", end_word=True)
    found.save(tmp_path / "df.safetensors")
    loaded = DocumentFrequencies.load(tmp_path / "df.safetensors")
    assert loaded.fingerprint() == found.fingerprint()
    assert (loaded.source, loaded.n_images, loaded.end_word) == ("test", 2, True)


def test_a_caption_file_and_its_saved_frequencies_give_the_values_of_the_corpus(tmp_path: Path) -> None:
    """A part of the images, scored with the frequencies of all, has the values that it has among all."""
    candidates, references = random_captions(50, 40)
    (tmp_path / "references.json").write_text(json.dumps(references))
    count_document_frequencies(references, "x").save(tmp_path / "df.safetensors")
    expected = CaptionSuite(("cider",)).compute(candidates, references).per_image()["cider"][:20]
    part = list(references)[:20]
    theirs, ours = {key: candidates[key] for key in part}, {key: references[key] for key in part}
    assert not np.allclose(CaptionSuite(("cider",)).compute(theirs, ours).per_image()["cider"], expected)
    for name in ("references.json", "df.safetensors"):
        path = str(tmp_path / name)
        for suite in (
            CaptionSuite(("cider",), document_frequencies=path),
            CaptionSuite(("cider",), options={"cider": {"document_frequencies": path}}),
        ):
            np.testing.assert_allclose(suite.compute(theirs, ours).per_image()["cider"], expected, rtol=1e-12)


def test_signature_tells_sources_apart(tmp_path: Path) -> None:
    (tmp_path / "references.json").write_text(json.dumps(REFERENCES))
    file = build_metric("cider", {"document_frequencies": str(tmp_path / "references.json")}).signature()
    assert file["df_images"] == 2
    assert file != Cider().signature()


def test_unusable_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'coco-val'"):
        load_document_frequencies("coco-vall")
    pickled = tmp_path / "df.p"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="pickles are never read"):
        load_document_frequencies(str(pickled))
    other = tmp_path / "other.safetensors"
    other.write_bytes(safetensors.numpy.save({"x": np.zeros(1)}))
    with pytest.raises(UserError, match="not a file of document frequencies"):
        load_document_frequencies(str(other))
    other.write_bytes(b"rubbish")
    with pytest.raises(UserError, match="cannot be read"):
        load_document_frequencies(str(other))
    count_document_frequencies(REFERENCES, "x").save(other)
    with pytest.raises(UserError, match="without the end word"):
        load_document_frequencies(str(other), end_word=True)


@pytest.mark.skipif(package_folder() is None, reason="needs the package pycocoevalcap")
def test_coco_frequencies_are_counted_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path))
    captions = {"1": ["a dog", "one dog"], "2": ["two cats"]}
    monkeypatch.setattr("hfcap.metrics.shared.document_frequencies.coco_captions", lambda split: captions)
    first = load_document_frequencies("coco-val")
    monkeypatch.setattr("hfcap.metrics.shared.document_frequencies.coco_captions", None)
    second = load_document_frequencies("coco-val")
    assert first is not None and second is not None
    assert first.fingerprint() == second.fingerprint() == count_document_frequencies(captions, "coco-val").fingerprint()


def _package_with_captions(folder: Path, content: bytes | None) -> Path:
    """A package pycocoevalcap as far as its jar goes; None = a jar without captions."""
    package = folder / "pycocoevalcap"
    (package / "spice").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    with zipfile.ZipFile(package / "spice" / "spice-1.0.jar", "w") as jar:
        if content is not None:
            jar.writestr("coco/annotations/captions_val2014.json", content)
    return folder


def test_coco_captions_come_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(3, "a dog"), (1, "two cats"), (3, "one dog")]
    content = {"annotations": [{"image_id": image, "caption": caption, "id": 9} for image, caption in rows]}
    monkeypatch.setattr("importlib.util.find_spec", _finder(tmp_path))
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    _package_with_captions(tmp_path, json.dumps(content).encode())
    captions = {"3": ["a dog", "one dog"], "1": ["two cats"]}
    for end_word in (False, True):
        found = load_document_frequencies("coco-val", end_word=end_word)
        expected = count_document_frequencies(captions, "coco-val", end_word=end_word)
        assert found is not None and found.fingerprint() == expected.fingerprint()
        assert (found.source, found.n_images, found.end_word) == ("coco-val", 2, end_word)
    with pytest.raises(UserError, match=r"spice-1\.0\.jar: no COCO 2014 captions in it \(.*captions_train2014"):
        load_document_frequencies("coco-train")


def _finder(folder: Path | None) -> Any:
    def find_spec(name: str) -> Any:
        assert name == "pycocoevalcap"
        return folder and SimpleNamespace(submodule_search_locations=[str(folder / name)])

    return find_spec


def test_without_the_package_or_with_a_damaged_jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    for missing in (_finder(None), lambda name: SimpleNamespace(submodule_search_locations=None)):
        monkeypatch.setattr("importlib.util.find_spec", missing)
        with pytest.raises(MissingPackageError, match=r"'coco-train' needs the package 'pycocoevalcap'"):
            load_document_frequencies("coco-train")
    monkeypatch.setattr("importlib.util.find_spec", _finder(tmp_path))
    _package_with_captions(tmp_path, None)
    (tmp_path / "pycocoevalcap" / "spice" / "spice-1.0.jar").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"give the annotations file as document_frequencies"):
        load_document_frequencies("coco-val")


def test_weights_by_hand() -> None:
    """ln(images) - ln(images that have it), at least one; keys of any order of n-grams."""
    found = count_document_frequencies({"1": ["a dog"], "2": ["a cat", "a dog"], "3": ["a"]}, "x")
    vocabulary = Vocabulary()
    words = encode_captions(["dog a cat bird"], vocabulary)
    keys = ngram_keys(words, vocabulary, 1)[0]
    assert found.idf(1, keys).tolist() == pytest.approx([np.log(3 / 2), 0.0, np.log(3), np.log(3)])
    pairs = ngram_keys(encode_captions(["a dog cat"], vocabulary), vocabulary, 2)[0]
    assert found.idf(2, pairs).tolist() == pytest.approx([np.log(3 / 2), np.log(3)])
    assert [len(keys) for keys in found.keys] == [3, 2, 0, 0]
    assert found.idf(4, keys).tolist() == pytest.approx([np.log(3)] * 4)
    assert found.n_images == 3 and not found.end_word


def test_fingerprints_tell_frequencies_apart() -> None:
    base = {"1": ["a dog"], "2": ["a cat"]}
    changed: list[dict[str, list[str]]] = [
        {"1": ["a dog"], "2": ["a cow"]},  # other words
        {"1": ["a dog"], "2": ["a cat", "dog"]},  # other counts
        {"1": ["a dog"], "2": ["a cat"], "3": [""]},  # another number of images
    ]
    prints = [count_document_frequencies(captions, "x").fingerprint() for captions in (base, *changed)]
    assert len({*prints}) == 4 and all(len(text) == 16 and int(text, 16) >= 0 for text in prints)
    assert count_document_frequencies(base, "y").fingerprint() == prints[0]


def test_all_that_is_saved_comes_back(tmp_path: Path) -> None:
    found = count_document_frequencies({"1": ["a dog runs in grass"], "2": ["a cat"]}, "some name")
    found.save(tmp_path / "df.safetensors")
    again = DocumentFrequencies.load(tmp_path / "df.safetensors")
    assert (again.source, again.n_images, again.end_word) == ("some name", 2, False)
    for mine, theirs in zip((*again.keys, *again.counts), (*found.keys, *found.counts), strict=True):
        assert mine.dtype == theirs.dtype and mine.tolist() == theirs.tolist()


def test_frequencies_of_another_tokeniser_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "df.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("hfcap.metrics.shared.document_frequencies.TOKENIZER_VERSION", "older")
        count_document_frequencies(REFERENCES, "x").save(path)
    with pytest.raises(
        UserError, match=rf"df\.safetensors: counted with tokeniser older, not {TOKENIZER_VERSION}; make"
    ):
        load_document_frequencies(str(path))


def test_files_and_the_end_word(tmp_path: Path) -> None:
    (tmp_path / "refs.json").write_text(json.dumps(REFERENCES))
    for end_word in (False, True):
        found = load_document_frequencies(str(tmp_path / "refs.json"), end_word=end_word)
        expected = count_document_frequencies(REFERENCES, "refs.json", end_word=end_word)
        assert found is not None and (found.source, found.end_word) == ("refs.json", end_word)
        assert found.fingerprint() == expected.fingerprint()
    expected.save(tmp_path / "with.safetensors")
    assert load_document_frequencies(str(tmp_path / "with.safetensors"), end_word=True) is not None
    with pytest.raises(UserError, match="counted with the end word; give the captions"):
        load_document_frequencies(str(tmp_path / "with.safetensors"))
    assert load_document_frequencies("corpus") is None
    for name in ("df.p", "df.pkl", "df.pickle"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match="pickles are never read"):
            load_document_frequencies(str(tmp_path / name))


def test_the_end_word_comes_behind_captions_that_ended() -> None:
    vocabulary = Vocabulary()
    tokens = encode_captions(["a dog", "", "a", "cat"], vocabulary)
    everywhere = with_end_word(tokens, vocabulary).as_strings(vocabulary)
    assert everywhere == [f"a dog {END_WORD}", END_WORD, f"a {END_WORD}", f"cat {END_WORD}"]
    some = with_end_word(tokens, vocabulary, np.array([True, False, False, True])).as_strings(vocabulary)
    assert some == [f"a dog {END_WORD}", "", "a", f"cat {END_WORD}"]
