"""model.attn_implementation: what is chosen is used, gives the same loss, and is refused where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hfcap.captioners.shared.attn_implementation import choose_attention
from hfcap.errors import UserError
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.training.build import build_captioner
from tests.captioners.helpers import build, family_class, packed_loss, pixel_values, random_captions
from tests.captioners.itt_models import itt
from tests.captioners.itt_more_models import more


def kernels(captioner: Any) -> set[str]:
    """Names of the kernels in all configurations of the captioner's model."""
    return {
        module.config._attn_implementation
        for module in captioner.model.modules()
        if hasattr(getattr(module, "config", None), "_attn_implementation")
    }


@pytest.mark.parametrize("name", ["clip_prefix", "vit_gpt2", "image_transformer", "image_text_to_text"])
def test_eager_attention_gives_the_same_loss(name: str) -> None:
    captioner = build(name)
    pixels, captions = pixel_values(captioner, 2), random_captions(captioner, [2, 1])
    with torch.no_grad():
        expected = float(packed_loss(captioner, pixels, captions))
        choose_attention(captioner, "eager")
        assert kernels(captioner) == {"eager"}
        assert float(packed_loss(captioner, pixels, captions)) == pytest.approx(expected, rel=1e-5)


def test_one_kernel_for_a_part() -> None:
    captioner = itt("llava")
    choose_attention(captioner, {"vision": "eager"})
    assert captioner.model.model.vision_tower.config._attn_implementation == "eager"
    assert captioner.model.model.language_model.config._attn_implementation == "sdpa"


def test_the_recipe_s_key_reaches_the_model() -> None:
    values: dict[str, Any] = {
        "name": "x",
        "captioner": "vit_gpt2",
        "model": {**family_class("vit_gpt2").tiny(), "attn_implementation": "eager"},
        "data": {"source": "scenes"},
        "train": {"max_steps": 1},
    }
    from hfcap.data.sources import scenes

    records = scenes.REGISTERED.load(recipe_from_mapping(values, "test").data, "test")[:2]
    assert kernels(build_captioner(recipe_from_mapping(values, "test"), records)) == {"eager"}
    values["model"]["attn_implementation"] = "fastest"
    with pytest.raises(UserError, match=r"model\.attn_implementation"):
        recipe_from_mapping(values, "test")


def test_flash_kernels_are_refused_where_captions_are_packed() -> None:
    for choice in ("flash_attention_2", {"text": "flash_attention_2"}):
        with pytest.raises(UserError, match=r"packed captions.*\{vision: flash_attention_2\}"):
            choose_attention(itt("llava"), choice)
    assert not more("janus").packs_captions


@pytest.mark.skipif(torch.cuda.is_available(), reason="may work on a GPU")
def test_what_the_machine_cannot_do_is_said() -> None:
    with pytest.raises(UserError, match=r"vision part.*cannot use flash_attention_2 here: .*leave the key out"):
        choose_attention(itt("llava"), {"vision": "flash_attention_2"})


def test_families_and_parts_without_a_choice() -> None:
    with pytest.raises(UserError, match="BLIP does not support attn_implementation"):
        choose_attention(build("blip"), "eager")
    with pytest.raises(UserError, match="has no part 'tail'; choose one of vision, connector, text"):
        choose_attention(itt("llava"), {"tail": "eager"})
    with pytest.raises(UserError, match="the text part of Image-text-to-text has no kernel of its own"):
        choose_attention(build("image_text_to_text"), {"text": "eager"})
