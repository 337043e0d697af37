"""Score files say under which conditions a value was measured: names and values that others read."""

from __future__ import annotations

from typing import Any

import pytest

from hfcap.metrics.shared.document_frequencies import count_document_frequencies
from hfcap.metrics.shared.tokenizer import TOKENIZER_VERSION
from hfcap.metrics.suite import CaptionSuite, build_metric


@pytest.mark.parametrize(
    ("name", "options", "signature"),
    [
        ("bleu", {}, {"reference_length": "closest", "level": "corpus", "smoothing": "coco"}),
        ("rouge_l", {}, {"beta": 1.2}),
        ("cider", {}, {"variant": "CIDEr-D", "sigma": 6.0, "document_frequencies": "corpus"}),
        ("length", {}, {}),
        ("bad_endings", {}, {"words": 45}),
        ("diversity", {}, {"training_captions": None, "candidates": None}),
        (
            "diversity",
            {"training_captions": ["a dog", "A dog.", "a cat"], "candidates": {"1": ["a", "b"], "2": ["c"]}},
            {"training_captions": 2, "candidates": 3},
        ),
        (
            "chair",
            {"instances": {"1": ["dog"], "2": []}},
            {"objects": "hfcap's table of COCO's 80 categories", "annotated_images": 2},
        ),
    ],
)
def test_signature(name: str, options: dict[str, Any], signature: dict[str, Any]) -> None:
    assert build_metric(name, options).signature() == signature


def test_frequencies_from_a_file_are_named_without_the_place_of_the_file(tmp_path: Any) -> None:
    frequencies = count_document_frequencies({"1": ["a dog"], "2": ["a cat"], "3": ["a cat"]}, "some.json")
    frequencies.save(tmp_path / "df.safetensors")
    assert build_metric("cider", {"document_frequencies": str(tmp_path / "df.safetensors")}).signature() == {
        "variant": "CIDEr-D",
        "sigma": 6.0,
        "document_frequencies": "some.json",
        "df_images": 3,
        "df_fingerprint": frequencies.fingerprint(),
    }


def test_suite_signs_with_the_tokeniser_and_every_metric() -> None:
    suite = CaptionSuite(("rouge_l", "length"))
    expected = {"tokenizer": TOKENIZER_VERSION, "metrics": {"rouge_l": {"beta": 1.2}, "length": {}}}
    assert suite.signature() == expected
    assert suite.compute({"1": "a"}, {"1": ["a"]}).signature == expected
    assert suite.outputs == ("rouge_l", "length_mean", "length_deviation", "length_ratio")
