"""The image encoder inside hfcap's own captioners: any model of transformers, or a backbone that brings its own code.

This file is published beside the weights and runs without hfcap: it imports only torch and transformers. Shapes:
B images, S image states, D encoder width.
"""

import importlib
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module


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
        return encoder_from_config(vision_config)
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
    raise ValueError(f"transformers has no image encoder for model_type {config.model_type!r}")


def image_states_from(outputs: Any, vision_feature: str) -> torch.Tensor:
    """Return image states (B, S, D) from the output of any vision model.

    Feature maps (B, D, height, width) become height * width states; a missing pooled vector is the mean of the states.

    Args:
        vision_feature: "pooled" (one vector per image) or "patches" (every patch or feature-map cell).
    """
    hidden = outputs.last_hidden_state
    if hidden.ndim == 4:
        hidden = hidden.flatten(2).transpose(1, 2)
    if vision_feature == "patches":
        return hidden
    pooled = getattr(outputs, "pooler_output", None)
    return hidden.mean(1, keepdim=True) if pooled is None else pooled.flatten(1)[:, None]
