"""CLIPScore of long captions: models that read them whole (Long-CLIP), and pieces where a model is short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.clip_score.encoder import ClipEncoder, pieces_of
from hfcap.metrics.suite import build_metric
from tests.captioners.clip_folder import LONGEST, write_clip

torch = pytest.importorskip("torch")

PROMPT = "A photo depicts "
LONG_CLIP = 248
"""Positions of Long-CLIP's text encoder (Zhang et al. 2024)."""

SHORT, SENTENCES = "a dog", "It runs. It ran? Cats!"
LONG = "on the left two brown dogs sleep in front of an old red house while on the right a man reads under a tree"


class _Vectors:
    """Images that are vectors already."""

    def embeddings(self, name: str, model: Any, processor: Any, image_ids: Any, size: int) -> NDArray[np.float32]:
        return np.random.default_rng(0).normal(size=(len(image_ids), 12)).astype(np.float32)


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip"), seed=3)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import AutoTokenizer

    folder = write_clip(tmp_path_factory.mktemp("long_clip"), seed=5, longest=LONG_CLIP)
    # As Long-CLIP is published: its tokenizer says CLIP's 77, and its weights decide.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(folder)
    return folder


def _plain(folder: str) -> Callable[[str], Any]:
    """Unit vector of a text by transformers' own CLIPModel, which refuses more positions than it has."""
    from transformers import CLIPModel, CLIPTokenizer

    model: Any = CLIPModel.from_pretrained(folder).eval()
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder)

    def vector(text: str) -> Any:
        ids = torch.tensor([tokenizer(PROMPT + text, truncation=False)["input_ids"]])
        with torch.no_grad():
            states = model.text_model(input_ids=ids).last_hidden_state[0, -1]
            projected = model.text_projection(states)
        return (projected / projected.norm()).numpy()

    return vector


def _n_letters(text: str) -> int:
    """Tokens of a text: the tokenizer of these models has one for each letter."""
    return len(text.replace(" ", ""))


def test_a_long_text_encoder_reads_to_its_own_length(long_clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    captions = [SHORT, LONG, f"{LONG} {LONG}"]
    assert [_n_letters(caption) > 77 for caption in captions] == [False, True, True]
    encoder = ClipEncoder(long_clip, "cpu")
    assert encoder.longest == LONG_CLIP and not encoder.is_cut(captions).any()
    vector = _plain(long_clip)
    np.testing.assert_allclose(encoder.texts(captions), [vector(caption) for caption in captions], atol=2e-6)
    # What comes after position 77 counts.
    other = encoder.texts([LONG + " x"])
    assert np.abs(other - encoder.texts([LONG])).max() > 1e-3
    metric = build_metric("clip_score", {"model": long_clip, "image_source": _Vectors(), "device": "cpu"})
    metric.statistics(CaptionSet({"1": LONG}, ReferenceSet({"1": captions})))
    assert "longer than" not in capsys.readouterr().err
    assert encoder.is_cut([" ".join([LONG] * 4)]).all()


def _weighted(vector: Callable[[str], Any], pieces: list[str]) -> Any:
    total = sum(_n_letters(piece) * vector(piece) for piece in pieces)
    return total / np.linalg.norm(total)


def test_sentences_are_encoded_one_by_one(short_clip: str) -> None:
    captions = [SHORT, SENTENCES, "Two dogs. One"]
    pieces = [["a dog"], ["It runs.", "It ran?", "Cats!"], ["Two dogs.", "One"]]
    encoder = ClipEncoder(short_clip, "cpu", long_captions="sentences")
    assert all(2 + _n_letters(PROMPT) + _n_letters(piece) <= LONGEST for group in pieces for piece in group)
    assert not encoder.is_cut(captions).any() and ClipEncoder(short_clip, "cpu").is_cut(captions).any()
    vector = _plain(short_clip)
    # The third fits as a whole or not: only what does not fit is taken apart.
    fits = [2 + _n_letters(PROMPT) + _n_letters(caption) <= LONGEST for caption in captions]
    assert fits == [True, False, False]
    expected = [_weighted(vector, group) for group in pieces]
    np.testing.assert_allclose(encoder.texts(captions), expected, atol=2e-6)


def test_windows_hold_every_word_once(short_clip: str) -> None:
    encoder = ClipEncoder(short_clip, "cpu", long_captions="windows")
    words = "one two six ten red dog cat"
    found = pieces_of(words, lambda text: _n_letters(text) <= LONGEST - 2 - _n_letters(PROMPT), "windows")
    assert " ".join(found) == words and len(found) > 2
    assert max(map(_n_letters, found)) <= LONGEST - 2 - _n_letters(PROMPT)
    np.testing.assert_allclose(encoder.texts([words])[0], _weighted(_plain(short_clip), found), atol=2e-6)
    cut = ClipEncoder(short_clip, "cpu").texts([words])
    assert np.abs(cut - encoder.texts([words])).max() > 1e-3
    # One word that is longer than the model stays one piece, and is reported.
    assert encoder.is_cut(["one extraordinarily two", words]).tolist() == [True, False]


def test_captions_that_fit_score_the_same_in_every_mode(short_clip: str) -> None:
    captions = CaptionSet({"1": "a dog", "2": "a cat"}, ReferenceSet({"1": ["one dog"], "2": ["x", "cats"]}))
    signatures, rows = [], []
    for how in ("cut", "sentences", "windows"):
        options = {"model": short_clip, "image_source": _Vectors(), "device": "cpu", "long_captions": how}
        metric = build_metric("clip_score", options)
        signatures.append(metric.signature())
        rows.append(metric.statistics(captions))
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert "long_captions" not in signatures[0]
    assert [one["long_captions"] for one in signatures[1:]] == ["sentences", "windows"]


def test_siglip_reads_texts_of_full_length_whatever_else_is_scored(tmp_path: Path) -> None:
    """SigLIP reads a caption off its last position: padding belongs to the text, and no neighbour changes it."""
    from transformers import AutoTokenizer, SiglipConfig, SiglipModel

    write_clip(tmp_path)  # its tokenizer and image processor
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 16}
    config = SiglipConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8})
    torch.manual_seed(0)
    model: Any = SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape) * 0.5)
    model.save_pretrained(tmp_path)
    captions = [SHORT, "two small cats sleep on a bed"]
    ids = [tokenizer(PROMPT + caption)["input_ids"] for caption in captions]
    padded = torch.tensor([one + [tokenizer.pad_token_id] * (64 - len(one)) for one in ids])
    with torch.no_grad():
        states = model.text_model(input_ids=padded).last_hidden_state[:, -1]
        projected = model.text_model.head(states)
    expected = projected / projected.norm(dim=-1, keepdim=True)
    encoder = ClipEncoder(str(tmp_path), "cpu")
    assert encoder.longest == 64 and encoder.is_cut([SHORT, LONG]).tolist() == [False, True]
    np.testing.assert_allclose(encoder.texts(captions), expected.numpy(), atol=2e-6)
    np.testing.assert_allclose(encoder.texts(captions[:1]), expected[:1].numpy(), atol=2e-6)
