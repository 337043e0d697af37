"""Heat maps: words from tokens, one map per word, families that have none, and the image that is written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from hfcap.captioners.quiet import quiet_loading
from hfcap.captioners.shared.tokenizers import train_tokenizer
from hfcap.errors import UserError
from hfcap.explain import Explanation, WordMap, draw, explain, explain_image, words_of_tokens
from hfcap.recipe.blocks import GenerateOptions, TokenizerOptions
from tests.captioners.helpers import PROMPT, build, pixel_values, write_image

quiet_loading()

ATTENDING: dict[str, dict[str, Any]] = {
    "blip": {},
    "clip_prefix": {"mapper": "linear", "vision_feature": "patches"},
    "cnn_transformer": {},
    "image_transformer": {},
    "show_attend_tell": {},
    "vit_gpt2": {},
}
OPTIONS = GenerateOptions(num_beams=2, max_new_tokens=8, min_new_tokens=8)


def test_byte_level_tokens_are_grouped_into_words() -> None:
    tokenizer = train_tokenizer(TokenizerOptions(vocab_size=300), ["two dogs run"])
    ids = tokenizer("two dogs, run", add_special_tokens=False)["input_ids"]
    words = words_of_tokens(tokenizer, ids)
    assert [word for word, _ in words] == ["two", "dogs,", "run"]
    assert [number for _, numbers in words for number in numbers] == list(range(len(ids)))
    for word, numbers in words:
        assert tokenizer.decode([ids[number] for number in numbers]).strip() == word


def test_pieces_of_a_word_belong_to_it() -> None:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "skate": 1, "##board": 2, "a": 3}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    assert words_of_tokens(tokenizer, [3, 1, 2]) == [("a", [0]), ("skateboard", [1, 2])]
    assert words_of_tokens(tokenizer, []) == []


@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize("family", ATTENDING)
def test_every_word_has_a_map(family: str, prompt: str) -> None:
    captioner = build(family, **ATTENDING[family])
    pixels = pixel_values(captioner, 1)
    found = explain(captioner, pixels, OPTIONS, prompt)
    with torch.no_grad():
        [[expected]] = captioner.caption_states(captioner.encode(pixels), OPTIONS, prompt)
    assert found.caption == expected.text
    assert [word.word for word in found.words] == found.caption.split()
    for word in found.words:
        assert word.heat.shape == (2, 2)
        assert 0 < word.heat.sum() < 1 + 1e-5 and word.heat.min() >= 0
    ids = torch.tensor([[*captioner.start_token_ids(prompt), 7, 30, 50]])
    maps = captioner.word_attention(captioner.encode(pixels), ids)
    assert maps.shape == (ids.shape[1] - 1, 2, 2)
    assert float((maps[-1] - maps[-2]).abs().max()) > 1e-4


def test_a_word_s_map_is_the_mean_over_its_tokens_behind_the_prompt() -> None:
    captioner = build("show_attend_tell")
    pixels = pixel_values(captioner, 1)
    found = explain(captioner, pixels, OPTIONS, PROMPT)
    start = captioner.start_token_ids(PROMPT)
    states = captioner.encode(pixels)
    sequence = captioner.generate(states, torch.tensor([start]), captioner.generation_config(OPTIONS))
    maps = captioner.word_attention(states, sequence).numpy()
    spoken = sequence[0, len(start) :].tolist()
    (first, numbers), *_ = words_of_tokens(captioner.tokenizer, spoken)
    rows = [len(start) - 1 + number for number in numbers]
    assert found.words[0].word == first
    np.testing.assert_allclose(found.words[0].heat, maps[rows].mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("clip_prefix", "mapper: mlp mixes all places"), ("image_text_to_text", "no attention from words to places")],
)
def test_captioners_without_a_map_say_so(family: str, reason: str) -> None:
    captioner = build(family)
    with pytest.raises(UserError, match=reason):
        explain(captioner, pixel_values(captioner, 1), OPTIONS)


def _explanation(*words: str) -> Explanation:
    heat = np.array([[0.7, 0.1], [0.1, 0.1]])
    return Explanation(" ".join(words), [WordMap(word, heat) for word in words], np.full((40, 40, 3), 0.5))


def test_drawing_is_the_same_each_time_and_brightest_where_attention_is() -> None:
    content = draw(_explanation("cat"))
    assert content == draw(_explanation("cat"))
    levels = np.asarray(Image.open(io.BytesIO(content)).convert("L")).astype(float)
    right = levels[:, levels.shape[1] // 2 :]
    rows, columns = np.nonzero(right < 140)  # inside the panel; the page is white
    top, bottom, left, end = rows.min(), rows.max(), columns.min(), columns.max()
    middle_row, middle_column = (top + bottom) // 2, (left + end) // 2
    bright = right[top + 20 : middle_row - 20, left + 20 : middle_column - 20].mean()
    dark = right[middle_row + 20 : bottom - 20, middle_column + 20 : end - 20].mean()
    assert bright > 2 * dark


def _colours(heat: list[list[float]]) -> np.ndarray[Any, Any]:
    word = WordMap("cat", np.array(heat))
    content = draw(Explanation("cat", [word], np.full((40, 40, 3), 0.8)))
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    return pixels[40:300, pixels.shape[1] // 2 + 20 : -20].reshape(-1, 3)


def test_attention_to_everything_alike_is_no_finding() -> None:
    """A little more than even is neither lit up nor outlined; the same places with most of the attention are."""
    weak, strong = _colours([[0.28, 0.24], [0.24, 0.24]]), _colours([[0.91, 0.03], [0.03, 0.03]])
    orange = [((colours[:, 0] - colours[:, 2]) > 100).sum() for colours in (weak, strong)]
    assert orange[0] == 0 and orange[1] > 100
    lit = [(colours.min(axis=1) > 180).mean() for colours in (weak, strong)]
    assert lit[1] > lit[0] + 0.1


def test_more_words_make_more_rows_and_hostile_words_are_drawn() -> None:
    short, long = (Image.open(io.BytesIO(draw(_explanation(*["cat"] * count)))).size for count in (4, 5))
    assert short[0] == long[0] and long[1] > 1.8 * short[1]
    assert draw(_explanation("$\\frac{", "\x1b[31mred", "<b>", "x" * 500, "犬"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explained") / "model"
    build("show_attend_tell", prompt=PROMPT).save(folder, OPTIONS)
    return folder


def test_image_file_to_png(saved: Path, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.png")
    found = explain_image(str(saved), str(image), tmp_path / "maps.png", overrides={"max_new_tokens": 5})
    assert Image.open(tmp_path / "maps.png").format == "PNG"
    assert found.words
    # The captioner saw 64 x 64 pixels; normalisation is undone.
    assert found.image.shape == (64, 64, 3)
    expected = np.asarray(Image.open(image).resize((64, 64), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(found.image, expected, atol=0.02)


def test_wrong_input(saved: Path, tmp_path: Path) -> None:
    image = str(write_image(tmp_path / "one.png"))
    write_image(tmp_path / "two.png")
    with pytest.raises(UserError, match=r"maps\.jpg: give a name that ends in \.png"):
        explain_image(str(saved), image, tmp_path / "maps.jpg")
    with pytest.raises(UserError, match="matches 2 images; give one"):
        explain_image(str(saved), str(tmp_path), tmp_path / "maps.png")
    with pytest.raises(UserError, match="num_beams"):
        explain_image(str(saved), image, tmp_path / "maps.png", overrides={"num_beams": 0})
    assert not (tmp_path / "maps.png").exists()


def test_captioner_that_says_nothing() -> None:
    captioner = build("show_attend_tell")
    with torch.no_grad():
        captioner.model.decoder.head.bias[captioner.end_token_id] = 1e4
    with pytest.raises(UserError, match="the generated caption is empty"):
        explain(captioner, pixel_values(captioner, 1), GenerateOptions(num_beams=1))
