"""Every kind of encoder, mapper and language model: packing, generation from the same logits, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import load_captioner
from hfcap.captioners.shared.pretrained import vision_tower
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.backbones import (
    DECODERS,
    ENCODERS,
    LANGUAGE_MODELS,
    WHOLE_MODELS,
    WITHOUT_POSITIONS,
    write_encoder,
    write_language_model,
    write_whole,
)
from tests.captioners.helpers import CORPUS, build, family_class, packed, packed_loss, pixel_values, random_captions
from tests.shared_data import SHARED, requires_shared

EFFICIENTNET = SHARED / "models" / "efficientnet-lite0"
MAPPERS = [("pooled", "mlp"), ("pooled", "transformer"), ("patches", "transformer"), ("patches", "linear")]
OPTIONS = GenerateOptions(num_beams=1, max_new_tokens=6)


@torch.no_grad()
def check_all(captioner: Captioner, folder: Path, trust_remote_code: bool = False) -> None:
    """Packing changes nothing, greedy words are the argmax of training's logits, a reload is bit-equal."""
    pixels = pixel_values(captioner, 2)
    captions = random_captions(captioner, [3, 2])
    states = captioner.encode(pixels)
    assert states.ndim == 3 and float((states[0] - states[1]).abs().max()) > 0
    alone = sum(
        float(packed_loss(captioner, pixels[image : image + 1], [[caption]]))
        for image, of_image in enumerate(captions)
        for caption in of_image
    )
    assert float(packed_loss(captioner, pixels, captions)) == pytest.approx(alone, rel=1e-5)

    start = torch.full((2, 1), captioner.start_token_id)
    for image, sequence in enumerate(captioner.generate(states, start, captioner.generation_config(OPTIONS)).tolist()):
        words = sequence[1:]
        if captioner.end_token_id in words:
            words = words[: words.index(captioner.end_token_id) + 1]
        logits = captioner.logits(states[image : image + 1], packed(captioner, [[words]]))[0]
        assert logits[: len(words)].argmax(-1).tolist() == words

    captioner.save(folder, OPTIONS)
    again = load_captioner(str(folder), trust_remote_code=trust_remote_code)
    rows = packed(captioner, captions)
    assert torch.equal(again.logits(again.encode(pixels), rows), captioner.logits(states, rows))


@pytest.mark.parametrize(("vision_feature", "mapper"), MAPPERS)
@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_prefix_from_any_encoder(encoder: str, vision_feature: str, mapper: str, tmp_path: Path) -> None:
    captioner = build(
        "clip_prefix",
        vision_config=ENCODERS[encoder],
        language_model_config=LANGUAGE_MODELS["gpt2"],
        vision_feature=vision_feature,
        mapper=mapper,
        mapper_layers=1,
        mapper_heads=2,
    )
    check_all(captioner, tmp_path / "model")


@pytest.mark.parametrize("language_model", sorted(LANGUAGE_MODELS))
def test_prefix_for_any_language_model(language_model: str, tmp_path: Path) -> None:
    captioner = build("clip_prefix", language_model_config=LANGUAGE_MODELS[language_model])
    check_all(captioner, tmp_path / "model")


@pytest.mark.parametrize("language_model", sorted(WITHOUT_POSITIONS))
def test_language_models_that_cannot_be_packed_are_refused(language_model: str) -> None:
    with pytest.raises(UserError, match=r"model\.language_model.*takes no position_ids.*choose"):
        build("clip_prefix", language_model_config=WITHOUT_POSITIONS[language_model])


def test_prefix_that_leaves_no_room_for_words_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.mapper.*49 prefix positions.*has 32.*prefix_length"):
        build(
            "clip_prefix",
            vision_config=ENCODERS["resnet"],
            language_model_config={**LANGUAGE_MODELS["gpt2"], "n_positions": 32},
            vision_feature="patches",
            mapper="linear",
        )


@requires_shared
@pytest.mark.parametrize(("vision_feature", "mapper"), [("pooled", "mlp"), ("patches", "linear")])
def test_backbone_with_its_own_code(vision_feature: str, mapper: str, tmp_path: Path) -> None:
    captioner = build(
        "clip_prefix",
        vision_config=None,
        vision=str(EFFICIENTNET),
        trust_remote_code=True,
        vision_feature=vision_feature,
        mapper=mapper,
        language_model_config=LANGUAGE_MODELS["llama"],
    )
    assert captioner.model.config.vision_tokens == (1 if vision_feature == "pooled" else 49)
    check_all(captioner, tmp_path / "model", trust_remote_code=True)
    assert str(SHARED) not in (tmp_path / "model" / "config.json").read_text()
    with pytest.raises(UserError, match="trust_remote_code"):
        load_captioner(str(tmp_path / "model"))


@requires_shared
def test_own_code_is_not_run_unasked() -> None:
    with pytest.raises(UserError, match=r"model\.vision.*--trust-remote-code"):
        build("clip_prefix", vision_config=None, vision=str(EFFICIENTNET))


@requires_shared
def test_vit_gpt2_refuses_a_backbone_with_its_own_code() -> None:
    with pytest.raises(UserError, match=r"model\.encoder.*its own code.*clip_prefix"):
        build("vit_gpt2", encoder_config=None, encoder=str(EFFICIENTNET), trust_remote_code=True)


@pytest.mark.parametrize("model_type", sorted(WHOLE_MODELS))
def test_model_of_image_and_text_gives_its_image_tower(model_type: str, tmp_path: Path) -> None:
    clip = write_whole(tmp_path / "clip", model_type)
    language_model = write_language_model(tmp_path / "words", LANGUAGE_MODELS["gpt2"])
    captioner = build_from_folders("clip_prefix", vision=str(clip), language_model=str(language_model))
    pixels = pixel_values(captioner, 2)
    assert pixels.shape == (2, 3, 32, 32)
    whole: Any = AutoModel.from_pretrained(clip).eval()
    with torch.no_grad():
        expected = vision_tower(whole)(pixel_values=pixels).pooler_output
        assert torch.equal(captioner.encode(pixels)[:, 0], expected)
    assert not any("text_model" in name for name, _ in captioner.model.vision_model.named_parameters())
    assert [(model.id, model.role) for model in captioner.base_models] == [
        (str(clip), "vision"),
        (str(language_model), "text"),
    ]
    check_all(captioner, tmp_path / "model")
    for path in (tmp_path / "model").glob("*.json"):
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def build_from_folders(family: str, **changes: Any) -> Captioner:
    """Build without touching the weights that the folders hold."""
    values = {key: value for key, value in family_class(family).tiny().items() if not key.endswith("_config")}
    values.pop("tokenizer")
    options = family_class(family).options_class(**{**values, **changes})
    captioner = family_class(family).build(options, CORPUS)
    captioner.model.eval()
    return captioner


@pytest.mark.parametrize("encoder", ["deit", "swin", "clip"])
@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_vision_encoder_decoder_pairs(encoder: str, decoder: str, tmp_path: Path) -> None:
    captioner = build("vit_gpt2", encoder_config=ENCODERS[encoder], decoder_config=DECODERS[decoder])
    check_all(captioner, tmp_path / "model")


def test_roberta_decoder_trains_at_the_positions_of_plain_transformers() -> None:
    """RoBERTa counts positions from behind its padding index: a plain forward knows, packing must too."""
    captioner = build("vit_gpt2", decoder_config=DECODERS["roberta"])
    pixels = pixel_values(captioner, 1)
    [[caption]] = random_captions(captioner, [1])
    labels = torch.tensor([[*caption, captioner.end_token_id]])
    with torch.no_grad():
        plain = captioner.model(pixel_values=pixels, labels=labels).loss * labels.numel()
        assert float(packed_loss(captioner, pixels, [[caption]])) == pytest.approx(float(plain), rel=1e-5)


def test_pretrained_encoder_and_decoder_are_joined(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", ENCODERS["vit"])
    decoder = write_language_model(tmp_path / "decoder", DECODERS["gpt2"])
    captioner = build_from_folders("vit_gpt2", encoder=str(encoder), decoder=str(decoder))
    plain: Any = AutoModel.from_pretrained(encoder).eval()
    pixels = pixel_values(captioner, 2)
    with torch.no_grad():
        assert torch.equal(captioner.encode(pixels), plain(pixel_values=pixels).last_hidden_state)
    assert captioner.assembled
    assert captioner.lora_modules_to_save == ["crossattention", "ln_cross_attn"]
    check_all(captioner, tmp_path / "model")
    for path in (tmp_path / "model").glob("*.json"):
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize("key", ["encoder_config", "encoder"])
def test_feature_maps_are_refused_by_vit_gpt2(key: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"encoder_config": ENCODERS["resnet"]}
    if key == "encoder":
        changes = {"encoder_config": None, "encoder": str(write_encoder(tmp_path, ENCODERS["resnet"]))}
    with pytest.raises(UserError, match=rf"model\.{key}.*feature map.*clip_prefix"):
        build("vit_gpt2", **changes)


def test_decoder_without_cross_attention_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.decoder.*no cross-attention.*clip_prefix"):
        build("vit_gpt2", decoder_config=LANGUAGE_MODELS["llama"])
