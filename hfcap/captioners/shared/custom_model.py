"""What families share whose model is hfcap's own: any image encoder, modelling code published with the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from pydantic import Field
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, CLIPProcessor

from hfcap.captioners.base import BaseModel, Captioner
from hfcap.captioners.published.modeling_image_encoder import CHANNELS_LAST, encoder_from_config, image_states_from
from hfcap.captioners.shared.feature_map import map_layout, take_out_unused, timm_network
from hfcap.captioners.shared.pretrained import (
    config_from_mapping,
    copy_remote_code,
    from_pretrained,
    load_encoder,
    load_image_processor,
    loading_problem,
    new_image_processor,
    require_positions,
    unreadable_files,
    vision_tower,
    whole_model,
)
from hfcap.captioners.shared.tokenizers import load_tokenizer, special_token_ids, token_number
from hfcap.errors import UserError
from hfcap.generation.attention_maps import square_grid
from hfcap.places import Location
from hfcap.recipe.blocks import GenerateOptions, ModelOptions


class VisionOptions(ModelOptions):
    """Keys of `model` that name the image encoder."""

    vision: Location | None = Field(
        None, description="Hub id or folder of the image encoder (CLIP, SigLIP, ViT, ResNet, ...)"
    )
    vision_config: dict[str, Any] | None = Field(None, description="config with model_type, for random weights")
    vision_revision: str | None = Field(None, description="commit, tag or branch of `vision`")


class ConfigTokensMixin(Captioner):
    """A captioner whose special tokens are those of its model's config."""

    @property
    def start_token_id(self) -> int:
        """bos_token_id of the model's config."""
        return token_number(self.model.config.bos_token_id, "bos_token_id")

    @property
    def end_token_id(self) -> int:
        """eos_token_id of the model's config."""
        return token_number(self.model.config.eos_token_id, "eos_token_id")

    @property
    def pad_token_id(self) -> int:
        """pad_token_id of the model's config."""
        return token_number(self.model.config.pad_token_id, "pad_token_id")


class CustomModelCaptioner(ConfigTokensMixin):
    """A captioner whose model has `vision_model`, `encode`, `generate` and the ids of special tokens in its config."""

    model_class: ClassVar[Any]
    """The published model class; its config_class holds `vision_config`."""

    @classmethod
    def register(cls) -> None:
        """Let transformers' Auto classes find config and model inside this process."""
        config_class = cls.model_class.config_class
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForImageTextToText.register(config_class, cls.model_class, exist_ok=True)

    @classmethod
    def from_folder(cls, location: str, revision: str | None, trust_remote_code: bool) -> Self:
        """Load a saved captioner; a backbone with its own code needs `trust_remote_code`."""
        with unreadable_files(lambda error: f"model.pretrained: {location}: {loading_problem(error)}"):
            config = cls.model_class.config_class.from_pretrained(location, revision=revision or "main")
        if isinstance(config.vision_config, dict) and not trust_remote_code:
            raise UserError(
                f"{location}: its image encoder brings its own code, which would run on this machine; "
                "set trust_remote_code (--trust-remote-code) if you trust it"
            )
        model = whole_model(cls.model_class, location, revision, config=config)
        tokenizer = load_tokenizer(location, "model.pretrained", revision, trust_remote_code)
        image_processor = load_image_processor(location, "model.pretrained", revision, trust_remote_code)
        return cls(model, CLIPProcessor(image_processor, tokenizer))

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return pooled vector or patches of the image encoder, before anything that reads them."""
        return self.model.encode(pixel_values)

    def save(self, folder: Path, options: GenerateOptions) -> None:
        """Save as `Captioner.save`, with the modelling code, so that plain transformers can load the folder."""
        self.model_class.config_class.register_for_auto_class()
        self.model_class.register_for_auto_class("AutoModelForImageTextToText")
        super().save(folder, options)
        copy_remote_code(self.model.vision_model, folder)


def build_vision(options: VisionOptions, base_models: list[BaseModel]) -> tuple[Any, Any]:
    """Return the image encoder that the keys name, pretrained or from its config, and its image processor.

    Raises:
        UserError: it cannot be loaded, or could not be loaded again from a saved captioner.
    """
    if options.vision is None:
        config = config_from_mapping(options.vision_config or {}, "model.vision_config")
        try:
            model = encoder_from_config(config)
        except (ImportError, ValueError) as error:  # timm's networks, for example
            raise UserError(f"model.vision_config: {' '.join(str(error).split())}; correct it") from error
        return model, new_image_processor(getattr(config, "image_size", None) or _image_size_of(model))
    revision, trust = options.vision_revision, options.trust_remote_code
    model = load_encoder(options.vision, "model.vision", revision, trust)
    base_models.append(BaseModel(options.vision, revision, "vision"))
    tower = vision_tower(model)
    own_code = type(tower).__module__.startswith("transformers_modules")
    if own_code and not getattr(tower.config, "auto_map", None):
        raise UserError(
            f"model.vision: the image tower of {options.vision} brings its own code but cannot be loaded alone (its "
            "config has no auto_map); choose an encoder that is part of transformers or a repository of the tower alone"
        )
    return tower, load_image_processor(options.vision, "model.vision", revision, trust)


def _image_size_of(vision_model: Any) -> int:
    """Side of the images that a network of timm was made for; 224 for encoders that name none."""
    network = timm_network(vision_model)
    return 224 if network is None else int(network.pretrained_cfg["input_size"][-1])


def vision_settings(vision_model: Any, image_processor: Any, vision_feature: str) -> dict[str, Any]:
    """Return what a captioner's config says about its encoder: vision_config, vision_feature, width, tokens, grid, ...

    `vision_grid` is (height, width) of the encoder's last states as places in the image, None where the states are
    no grid. The encoder is tried out on a blank image; it is left in evaluation mode, without the parts that no state
    comes from.

    Raises:
        UserError: what it gives cannot be read as states of places in the image.
    """
    # Any image will do: what its processor makes of it has the right size.
    blank = image_processor(images=Image.new("RGB", (256, 256)), return_tensors="pt")["pixel_values"]
    vision_model.eval()
    config = vision_model.config
    if timm_network(vision_model) is not None:
        config.do_pooling = vision_feature == "pooled"
    layout = map_layout(vision_model, blank, "model.vision")
    unused = take_out_unused(vision_model, blank, vision_feature)
    with torch.no_grad():
        outputs = vision_model(pixel_values=blank)
    states = image_states_from(outputs, vision_feature, layout)
    hidden = outputs.last_hidden_state
    sides = hidden.shape[1:3] if layout == CHANNELS_LAST else hidden.shape[2:]
    grid = tuple(sides) if hidden.ndim == 4 else square_grid(hidden.shape[1])
    return {
        "vision_config": config.to_dict() if getattr(config, "auto_map", None) else config,
        "vision_feature": vision_feature,
        "vision_width": states.shape[2],
        "vision_tokens": states.shape[1],
        "vision_grid": list(grid) if grid is not None and vision_feature == "patches" else None,
        "vision_layout": layout,
        "vision_unused": unused,
    }


def as_decoder(tokenizer: Any, values: dict[str, Any], key: str) -> Any:
    """Build a causal language model with cross-attention and random weights from a config mapping."""
    config = {
        **values,
        "is_decoder": True,
        "add_cross_attention": True,
        **special_token_ids(tokenizer),
        "vocab_size": len(tokenizer),
    }
    return require_cross_attention(AutoModelForCausalLM.from_config(config_from_mapping(config, key)), key)


def load_as_decoder(location: str, key: str, revision: str | None, trust_remote_code: bool) -> Any:
    """Load a causal language model and give it cross-attention with random weights."""
    try:
        config = AutoConfig.from_pretrained(
            location,
            revision=revision,
            trust_remote_code=trust_remote_code,
            is_decoder=True,
            add_cross_attention=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {location}: {str(error).splitlines()[0]}; choose another model") from error
    decoder = from_pretrained(AutoModelForCausalLM, location, key, config=config, revision=revision)
    return require_cross_attention(decoder, key)


def require_cross_attention(decoder: Any, key: str) -> Any:
    """Return the decoder, or refuse one that cannot read images through cross-attention.

    Raises:
        UserError: transformers gives it no cross-attention, or it takes no positions.
    """
    if not any("cross" in name.lower() for name, _ in decoder.named_modules()):
        raise UserError(
            f"{key}: {type(decoder).__name__} has no cross-attention; choose one that transformers can "
            "give cross-attention (GPT-2, BERT, RoBERTa, Electra), or captioner: clip_prefix"
        )
    require_positions(decoder, key)
    return decoder
