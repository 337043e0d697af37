"""What the published models share: an image encoder (of transformers, or one with its own code), text behind it.

This file is published beside the weights and runs without hfcap: it imports only torch and transformers. Shapes:
B images, S image states, D encoder width, H text width, T text positions, V vocabulary.
"""

import importlib
import inspect
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

CHANNELS_FIRST, CHANNELS_LAST = "channels_first", "channels_last"
"""Layouts of a feature map: (B, D, height, width), or (B, height, width, D) as timm's Swin has it."""


def as_config(value: Any) -> Any:
    """Turn the nested dictionary of a saved config into the config object it stands for.

    A backbone that brings its own code stays a dictionary here; `new_vision_model` finds the code beside the weights.
    """
    if not isinstance(value, dict) or "auto_map" in value:
        return value
    arguments = dict(value)
    return AutoConfig.for_model(arguments.pop("model_type"), **arguments)


def new_vision_model(config: Any) -> Any:
    """Build the image encoder that `config.vision_config` describes, with random weights."""
    vision_config = config.vision_config
    if not isinstance(vision_config, dict):
        return without_parts(encoder_from_config(vision_config), getattr(config, "vision_unused", None) or [])
    # The backbone's own code lies beside this file: in the folder or repository the config was loaded from.
    location: Any = config.name_or_path
    names = vision_config["auto_map"]
    # The commit that the weights come from: code of a later one may not fit them.
    revision = getattr(config, "_commit_hash", None)
    config_class = get_class_from_dynamic_module(names["AutoConfig"], location, revision=revision)
    model_class = get_class_from_dynamic_module(names["AutoModel"], location, revision=revision)
    return model_class(config_class(**vision_config))


def encoder_from_config(config: Any) -> Any:
    """Build the image encoder of a config; AutoModel does not know every tower of a whole model (FLAVA, AltCLIP)."""
    if type(config) in AutoModel._model_mapping:
        return AutoModel.from_config(config)
    modeling = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    for name, value in vars(modeling).items():
        is_model = isinstance(value, type) and issubclass(value, PreTrainedModel) and name.endswith("Model")
        if is_model and value.config_class is type(config):
            return value(config)
    raise ValueError(f"transformers has no image encoder for model_type {config.model_type!r}; check config.json")


def without_parts(vision_model: Any, names: list[str]) -> Any:
    """Take parts out of a network of timm that no image state comes from, and return the encoder."""
    for name in names:
        setattr(vision_model.timm_model, name, nn.Identity())
    return vision_model


def image_states_from(outputs: Any, vision_feature: str, layout: str = CHANNELS_FIRST) -> torch.Tensor:
    """Return image states (B, S, D) from the output of any vision model.

    Feature maps become height * width states; a missing pooled vector is the mean of the states.

    Args:
        vision_feature: "pooled" (one vector per image) or "patches" (every patch or feature-map cell).
        layout: of a feature map, CHANNELS_FIRST or CHANNELS_LAST.
    """
    hidden = outputs.last_hidden_state
    if hidden.ndim == 4:
        hidden = hidden.flatten(1, 2) if layout == CHANNELS_LAST else hidden.flatten(2).transpose(1, 2)
    if vision_feature == "patches":
        return hidden
    pooled = getattr(outputs, "pooler_output", None)
    return hidden.mean(1, keepdim=True) if pooled is None else pooled.flatten(1)[:, None]


class LinearMapper(nn.Module):
    """One text-wide vector per image state: projection, learned position, layer norm."""

    def __init__(self, vision_width: int, vision_tokens: int, text_width: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(vision_width, text_width)
        self.position = nn.Parameter(torch.randn(vision_tokens, text_width) * 0.02)
        self.norm = nn.LayerNorm(text_width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, image_states: torch.Tensor) -> torch.Tensor:
        """(B, S, D) -> (B, S, H)."""
        return self.dropout(self.norm(self.project(image_states) + self.position))


def start_ids(config: Any, image_states: torch.Tensor, input_ids: torch.Tensor | None = None) -> torch.Tensor:
    """Return the tokens that generation starts from, (B, T): the start token, then the prompt `input_ids` if any.

    A prompt may bring the start token (tokenizers add it) or not.
    """
    start = torch.full((image_states.shape[0], 1), config.bos_token_id, device=image_states.device)
    if input_ids is None or input_ids.shape[1] == 0:
        return start
    if bool((input_ids[:, :1] != start).any()):
        return torch.cat([start, input_ids.to(start)], dim=1)
    return input_ids


class ImageCaptionerConfig(PreTrainedConfig):
    """Configuration of an image encoder in front of a text model: what is the same for all of them.

    Args:
        vision_config: config of the image encoder.
        vision_feature: "pooled" (one vector per image) or "patches" (every patch or feature-map cell).
        vision_width: D. vision_tokens: S. vision_grid: (height, width) of the last states as places in the picture.
        vision_layout: where the channels of a feature map stand, CHANNELS_FIRST or CHANNELS_LAST.
        vision_unused: parts of a network of timm that are left out, because no image state comes from them.
    """

    text_config: Any = None

    def __init__(
        self,
        vision_config: Any = None,
        vision_feature: str = "patches",
        vision_width: int = 768,
        vision_tokens: int = 1,
        vision_grid: list[int] | None = None,
        vision_layout: str = CHANNELS_FIRST,
        vision_unused: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vision_config = as_config(vision_config)
        self.vision_feature = vision_feature
        self.vision_width = vision_width
        self.vision_tokens = vision_tokens
        self.vision_grid = vision_grid
        self.vision_layout = vision_layout
        self.vision_unused = vision_unused or []
        super().__init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        """Return the config that `generate` reads vocabulary and layers from: the text model's, where it has one."""
        return self.text_config if self.text_config is not None else self


class ImageCaptioner(PreTrainedModel, GenerationMixin):
    """An image encoder, `vision_model`, in front of a text model: what is the same for all of them.

    Attributes:
        text_model_name: attribute that holds the text model; its word embeddings and head are those of the captioner.
    """

    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    text_model_name = "decoder"
    vision_model: Any

    def get_input_embeddings(self) -> Any:
        """Return the text model's word embeddings."""
        return getattr(self, self.text_model_name).get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text model's word embeddings."""
        getattr(self, self.text_model_name).set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """Return the text model's head."""
        return getattr(self, self.text_model_name).get_output_embeddings()

    def tied_text_weights(self) -> dict[str, str]:
        """Return which weights the text model shares, under the names that they have here."""
        name = self.text_model_name
        tied = getattr(getattr(self, name), "_tied_weights_keys", None) or {}
        return {f"{name}.{target}": f"{name}.{source}" for target, source in tied.items()}

    def encode(self, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """(B, 3, height, width) -> image states (B, S, D)."""
        config = self.config
        states = image_states_from(
            self.vision_model(pixel_values=pixel_values), config.vision_feature, config.vision_layout
        )
        if states.shape[-1] != config.vision_width:
            raise ValueError(
                f"the image encoder gives states of width {states.shape[-1]}, not {config.vision_width}; check "
                "config.json"
            )
        return states

    def states_and_text(
        self, pixel_values: torch.Tensor | None, image_states: torch.Tensor | None, input_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image states (B, S, D), encoded unless they are given, and text (B, T), by default the start token."""
        if image_states is None:
            image_states = self.encode(pixel_values)
        return image_states, start_ids(self.config, image_states) if input_ids is None else input_ids

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Caption pictures; `input_ids` (B, T) is an optional prompt; sequences begin with start token and prompt."""
        if image_states is None:
            image_states = self.encode(pixel_values)
        input_ids = start_ids(self.config, image_states, input_ids)
        generation_config = self.generation_config if generation_config is None else generation_config
        return self.continue_text(image_states, input_ids, generation_config=generation_config, **kwargs)

    def continue_text(self, image_states: torch.Tensor, input_ids: torch.Tensor, **options: Any) -> Any:
        """Let the text model go on after `input_ids` (B, T), looking at image states (B, S, D).

        Args:
            options: what the text model's `generate` takes, `generation_config` among it.
        """
        raise NotImplementedError


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor | None:
    """Mean cross-entropy of logits (B, T, V) with the labels (B, T) one position on; -100 does not count."""
    if labels is None:
        return None
    flat = logits[:, :-1].flatten(0, 1).float()
    return nn.functional.cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=-100)


def cache_argument(model: Any) -> str:
    """Return what a model's forward calls its cache: `cache` since transformers 5.24, `past_key_values` before."""
    parameters = inspect.signature(model.forward).parameters
    return next(name for name in ("cache", "past_key_values") if name in parameters)


def refuse_unknown(model: Any, arguments: dict[str, Any]) -> None:
    """Raise a TypeError for arguments of `forward` that would change its result if they were not ignored."""
    harmless = {"use_cache", "return_dict", "output_attentions", "output_hidden_states", "logits_to_keep"}
    harmless |= {"num_items_in_batch", "token_type_ids"}
    unknown = sorted(name for name, value in arguments.items() if value is not None and name not in harmless)
    if unknown:
        raise TypeError(f"{type(model).__name__}.forward does not know {', '.join(unknown)}")


def position_offset(language_model: Any) -> int:
    """Position of the first token: RoBERTa-like models count from behind their padding index, all others from 0."""
    for name, module in language_model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0
