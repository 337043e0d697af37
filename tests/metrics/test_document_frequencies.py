from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from hfcap.errors import UserError
from hfcap.metrics.cider import Cider
from hfcap.metrics.document_frequencies import (
    DocumentFrequencies,
    count_document_frequencies,
    load_document_frequencies,
)
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


def test_a_caption_file_and_its_saved_frequencies_give_the_corpus_values(tmp_path: Path) -> None:
    candidates, references = random_captions(50, 40)
    (tmp_path / "references.json").write_text(json.dumps(references))
    count_document_frequencies(references, "x").save(tmp_path / "df.safetensors")
    corpus = CaptionSuite(("cider",)).compute(candidates, references).values
    for name in ("references.json", "df.safetensors"):
        suite = CaptionSuite(("cider",), document_frequencies=str(tmp_path / name))
        assert suite.compute(candidates, references).values == pytest.approx(corpus)


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
    monkeypatch.setattr("hfcap.metrics.document_frequencies._coco_captions", lambda split: captions)
    first = load_document_frequencies("coco-val")
    monkeypatch.setattr("hfcap.metrics.document_frequencies._coco_captions", None)
    second = load_document_frequencies("coco-val")
    assert first is not None and second is not None
    assert first.fingerprint() == second.fingerprint() == count_document_frequencies(captions, "coco-val").fingerprint()
