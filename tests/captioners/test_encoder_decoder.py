"""CNN-transformer and image transformer: every kind of encoder and decoder, and what their keys mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModel, AutoModelForCausalLM

from hfcap.captioners.adaptation.lora import add_lora
from hfcap.captioners.image_transformer import Architecture
from hfcap.captioners.loading import load_captioner
from hfcap.errors import UserError
from hfcap.recipe.blocks import LoraOptions
from tests.captioners.backbones import DECODERS, ENCODERS, LANGUAGE_MODELS, write_encoder, write_language_model
from tests.captioners.helpers import build, family_class, pixel_values
from tests.captioners.test_backbones import EFFICIENTNET, build_from_folders, check_all
from tests.shared_data import requires_shared


@pytest.mark.parametrize("vision_feature", ["patches", "pooled"])
@pytest.mark.parametrize("encoder", ["resnet", "swin", "clip"])
def test_any_encoder(encoder: str, vision_feature: str, tmp_path: Path) -> None:
    captioner = build("cnn_transformer", vision_config=ENCODERS[encoder], vision_feature=vision_feature)
    check_all(captioner, tmp_path / "model")


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_any_decoder(decoder: str, tmp_path: Path) -> None:
    captioner = build("cnn_transformer", vision_config=ENCODERS["resnet"], decoder_config=DECODERS[decoder])
    check_all(captioner, tmp_path / "model")


@requires_shared
@pytest.mark.parametrize("family", ["cnn_transformer", "show_attend_tell"])
def test_backbone_with_its_own_code(family: str, tmp_path: Path) -> None:
    captioner = build(family, vision_config=None, vision=str(EFFICIENTNET), trust_remote_code=True)
    assert captioner.model.config.vision_grid == [7, 7]
    check_all(captioner, tmp_path / "model", trust_remote_code=True)
    with pytest.raises(UserError, match="trust_remote_code"):
        load_captioner(str(tmp_path / "model"))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("encoder", ["resnet", "vit"])
def test_show_attend_tell_reads_any_encoder(encoder: str, cell: str, tmp_path: Path) -> None:
    check_all(build("show_attend_tell", vision_config=ENCODERS[encoder], cell=cell), tmp_path / "model")


def test_pretrained_encoder_and_decoder_are_joined(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", ENCODERS["resnet"])
    words = write_language_model(tmp_path / "words", DECODERS["gpt2"])
    captioner = build_from_folders("cnn_transformer", vision=str(encoder), decoder=str(words))
    pixels = pixel_values(captioner, 2)
    plain: Any = AutoModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        expected = plain(pixel_values=pixels).last_hidden_state.flatten(2).transpose(1, 2)
        assert torch.equal(captioner.encode(pixels), expected)
    kept: Any = AutoModelForCausalLM.from_pretrained(words)
    own = captioner.model.decoder.state_dict()
    assert all(torch.equal(own[name], value) for name, value in kept.state_dict().items())
    assert [(model.id, model.role) for model in captioner.base_models] == [
        (str(words), "decoder"),
        (str(encoder), "vision"),
    ]
    assert captioner.lora_modules_to_save == ["bridge", "crossattention", "ln_cross_attn"]
    check_all(captioner, tmp_path / "model")

    again = load_captioner(str(tmp_path / "model"))
    assert again.lora_modules_to_save == []  # what was random is trained by now
    add_lora(again, LoraOptions(r=2))


def test_decoder_without_cross_attention_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.decoder_config.*no cross-attention.*clip_prefix"):
        build("cnn_transformer", decoder_config=LANGUAGE_MODELS["llama"])


def test_image_transformer_has_the_sizes_of_its_keys() -> None:
    sizes = {"image_size": 48, "patch_size": 16, "width": 48, "heads": 3, "encoder_layers": 1, "decoder_layers": 2}
    captioner = build("image_transformer", architecture={**sizes, "feed_forward": 80, "max_positions": 40})
    config = captioner.model.config
    assert config.vision_grid == [3, 3]
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size) == (48, 1, 80)
    assert (text.n_embd, text.n_layer, text.n_inner, text.n_head, text.n_positions) == (48, 2, 80, 3, 40)


def test_image_transformer_may_start_from_a_pretrained_encoder(tmp_path: Path) -> None:
    vision = write_encoder(tmp_path / "vit", ENCODERS["vit"])
    shape = {"width": 48, "heads": 3, "decoder_layers": 1}
    options: dict[str, Any] = {"vision": str(vision), "architecture": shape, "tokenizer": {}}
    family = family_class("image_transformer")
    captioner = family.build(family.options_class(**options), ["a red cat"])
    captioner.model.eval()
    plain: Any = AutoModel.from_pretrained(vision).eval()
    pixels = pixel_values(captioner, 2)
    with torch.no_grad():
        assert torch.equal(captioner.encode(pixels), plain(pixel_values=pixels).last_hidden_state)
    assert captioner.model.decoder.config.n_embd == 48


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"width": 50, "heads": 4}, "width 50 must be a multiple of heads 4"),
        ({"image_size": 100}, "image_size 100 must be a multiple of patch_size 16"),
        ({"widht": 64}, "Extra inputs are not permitted"),
    ],
)
def test_architecture_that_cannot_be(values: dict[str, int], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Architecture(**values)


def test_encoder_of_a_whole_captioner_cannot_be_exchanged() -> None:
    values = {"pretrained": "somebody/model", "vision": "somebody/vit"}
    with pytest.raises(ValidationError, match="pretrained holds its own encoder"):
        family_class("image_transformer").options_class(**values)


@torch.no_grad()
@pytest.mark.parametrize("family", ["cnn_transformer", "image_transformer"])
def test_word_attention_is_the_cross_attention_of_the_last_layer(family: str) -> None:
    """Both tiny decoders have two layers: the last half is one. Its weights by hand: softmax of q k / sqrt(width)."""
    captioner = build(family)
    states = captioner.encode(pixel_values(captioner, 1))
    ids = torch.tensor([[captioner.start_token_id, 7, 9, 11]])
    before = captioner.model.decoder.config._attn_implementation
    maps = captioner.word_attention(states, ids)
    assert captioner.model.decoder.config._attn_implementation == before
    assert maps.shape == (3, 2, 2)

    block = captioner.model.decoder.transformer.h[-1]
    seen: dict[str, torch.Tensor] = {}
    block.crossattention.q_attn.register_forward_hook(lambda module, inputs, output: seen.update(queries=output))
    bridged = captioner.model.bridge(states)
    captioner.model.decoder(input_ids=ids[:, :-1], encoder_hidden_states=bridged)
    keys = block.crossattention.c_attn(bridged).split(32, dim=2)[0]
    queries, keys = (value.unflatten(2, (2, 16)).transpose(1, 2) for value in (seen["queries"], keys))
    weights = (queries @ keys.transpose(2, 3) / 4).softmax(-1).mean(1)[0]
    torch.testing.assert_close(maps.flatten(1), weights[:, -4:])


def test_pooled_vector_has_no_map() -> None:
    captioner = build("cnn_transformer", vision_feature="pooled")
    states = captioner.encode(pixel_values(captioner, 1))
    with pytest.raises(UserError, match="no grid"):
        captioner.word_attention(states, torch.tensor([[captioner.start_token_id, 7]]))
