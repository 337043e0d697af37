"""Forbidden words: left out as plain transformers does it, in any case, and found where they come in all the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from hfcap.captioners.base import Captioner
from hfcap.captioning import Finishing, QualityGate, caption_images, find_images, forbidden_words
from hfcap.captioning import images as images_module
from hfcap.captioning.forbidden import bad_words_ids, held_words
from hfcap.data.loading import PixelInputs
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import Prediction
from tests.captioners.helpers import build, pixel_values, write_image
from tests.captioning.conftest import OPTIONS
from tests.training.harness import FAMILIES


def generated_ids(
    captioner: Captioner, pixels: torch.Tensor, options: GenerateOptions, plain: bool = False
) -> list[list[int]]:
    """The tokens of each caption, without what comes after its end."""
    start = torch.tensor([[captioner.start_token_id]] * len(pixels))
    config = captioner.generation_config(options)
    config.return_dict_in_generate = True
    way = captioner.plain_generate if plain else captioner.generate
    with torch.inference_mode():
        output = way(captioner.encode(pixels), start, config)
    rows = output.sequences[:, 1:].tolist()
    end = captioner.end_token_id
    return [row[: row.index(end)] if end in row else row for row in rows]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "image_text_to_text"])
@pytest.mark.parametrize("beams", [1, 3])
def test_no_caption_holds_one(family: str, beams: int) -> None:
    captioner = build(family)
    options, pixels = GenerateOptions(num_beams=beams, max_new_tokens=8), pixel_values(captioner, 3)
    forbidden = next(token for row in generated_ids(captioner, pixels, options) for token in row)
    without = options.model_copy(update={"bad_words_ids": [[forbidden]]})
    found = generated_ids(captioner, pixels, without)
    assert all(forbidden not in row for row in found) and any(found)
    assert found == generated_ids(captioner, pixels, without, plain=True)


def test_it_reaches_the_captions_and_what_is_saved(
    model: tuple[Captioner, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, asked = write_image(tmp_path / "a.png"), []
    [before] = caption_images(model[1], [str(image)])
    pixels = PixelInputs(find_images([str(image)]), model[0].image_processor).pixel_values([0])
    ids = generated_ids(model[0], pixels, OPTIONS)[0][:1]

    def token_of_the_caption(captioner: Captioner, words: Sequence[str]) -> list[list[int]]:
        asked.append(words)
        return [ids]

    monkeypatch.setattr(images_module, "bad_words_ids", token_of_the_caption)
    [after] = caption_images(model[1], [str(image)], finishing=Finishing(gate=QualityGate(forbidden=("x",))))
    assert asked == [("x",)] and after.caption != before.caption and after.review == ""
    model[0].save(tmp_path / "other", OPTIONS.model_copy(update={"bad_words_ids": [ids]}))
    assert caption_images(str(tmp_path / "other"), [str(image)])[0].caption == after.caption


def test_a_caption_that_holds_one_all_the_same_is_marked() -> None:
    gate = QualityGate(min_score=-1.0, forbidden=("photo", "dog"))
    predictions = [Prediction("0", "0", "a Photo of a dog", -2.0), Prediction("1", "1", "a cat", -0.5)]
    assert [one.review for one in gate.examined([], predictions)] == [
        "score -2.000 is below -1; holds 'photo'; holds 'dog'",
        "",
    ]


def test_ids_of_all_spellings() -> None:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a red Car, RED CAR, Red car and a red car"], vocab_size=300)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)
    captioner: Any = SimpleNamespace(trains_by_gradients=True, tokenizer=tokenizer)
    spelled = {tokenizer.decode(ids) for ids in bad_words_ids(captioner, ["red Car"])}
    assert spelled == {space + word for space in ("", " ") for word in ("red Car", "red car", "RED CAR", "Red car")}
    with pytest.raises(UserError, match="does not write captions word by word"):
        bad_words_ids(build("retrieval"), ["x"])


def test_which_words_are_held() -> None:
    words = ("photo", "image of", "c++")
    assert held_words("A PHOTO of a photographer", words) == ["photo"]
    assert held_words("photography", words) == []
    assert held_words("an image of c++", words) == ["image of", "c++"]


def test_lists_of_words() -> None:
    assert forbidden_words(" photo, image  of,,photo") == ("photo", "image of")
    with pytest.raises(UserError, match="--forbid-words"):
        forbidden_words(" , ")
