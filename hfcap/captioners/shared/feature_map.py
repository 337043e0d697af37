"""What an image encoder gives: which numbers are channels and which are places, and what it has but does not need."""

from __future__ import annotations

from typing import Any

import torch

from hfcap.captioners.published.modeling_image_encoder import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    image_states_from,
    without_parts,
)
from hfcap.errors import UserError

_LAYOUTS = {"NCHW": CHANNELS_FIRST, "NHWC": CHANNELS_LAST}
"""timm's names."""

_WIDTHS = ("hidden_size", "num_features", "hidden_dim", "embed_dim", "hidden_sizes", "neck_hidden_sizes", "embed_dims")
"""Keys by which configurations of transformers name the width of the last states, or those of all stages."""


def timm_network(vision_model: Any) -> Any:
    """Return timm's network inside transformers' wrapper; None for other encoders."""
    return getattr(vision_model, "timm_model", None)


def map_layout(vision_model: Any, pixel_values: torch.Tensor, key: str) -> str:
    """Return where the channels of an encoder's map (B, ., ., .) stand; CHANNELS_FIRST for what is no map.

    Known from what the network declares (timm's `output_fmt`); else by an image of twice the size, since places follow
    it and channels do not; else, where the network takes one size alone, by the width that its configuration names.

    Raises:
        UserError: the encoder gives several maps or none, or nothing tells channels from places.
    """
    with torch.no_grad():
        hidden = vision_model(pixel_values=pixel_values).last_hidden_state
    if not isinstance(hidden, torch.Tensor) or hidden.ndim not in (3, 4):
        what = f"a tensor of {hidden.ndim} dimensions" if isinstance(hidden, torch.Tensor) else type(hidden).__name__
        raise UserError(
            f"{key}: the last states of {_name(vision_model)} are {what}, neither one feature map nor one row of "
            "patches; choose another image encoder"
        )
    widths = _declared_widths(vision_model)
    if hidden.ndim == 3:
        if timm_network(vision_model) is not None and hidden.shape[2] not in widths:
            raise _unclear(vision_model, hidden, key)
        return CHANNELS_FIRST
    layout = _LAYOUTS.get(str(getattr(timm_network(vision_model), "output_fmt", None)))
    if layout is None:
        ways = [lambda: _by_a_larger_image(vision_model, pixel_values, hidden), lambda: _by_width(hidden, widths)]
        # timm names the width of just these states, a configuration of transformers one of several.
        ways = ways if timm_network(vision_model) is None else ways[::-1]
        layout = next((found for way in ways if (found := way()) is not None), None)
    elif hidden.shape[1 if layout == CHANNELS_FIRST else 3] not in widths:
        layout = None
    if layout is None:
        raise _unclear(vision_model, hidden, key)
    return layout


def _by_a_larger_image(vision_model: Any, pixel_values: torch.Tensor, hidden: torch.Tensor) -> str | None:
    larger = pixel_values.repeat(1, 1, 2, 2)
    try:
        with torch.no_grad():
            shape = vision_model(pixel_values=larger).last_hidden_state.shape
    except (AssertionError, RuntimeError, ValueError):
        return None  # it takes images of one size alone
    moved = [size != before for size, before in zip(shape, hidden.shape, strict=True)]
    return {(False, True, True): CHANNELS_FIRST, (True, True, False): CHANNELS_LAST}.get(tuple(moved[1:]))


def _by_width(hidden: torch.Tensor, widths: set[int]) -> str | None:
    first, last = hidden.shape[1] in widths, hidden.shape[3] in widths
    if first == last:
        return None
    return CHANNELS_FIRST if first else CHANNELS_LAST


def _declared_widths(vision_model: Any) -> set[int]:
    network = timm_network(vision_model)
    if network is not None:
        return {int(network.num_features)}
    values = [getattr(vision_model.config, name, None) for name in _WIDTHS]
    return {int(value[-1] if isinstance(value, list | tuple) else value) for value in values if value}


def _name(vision_model: Any) -> str:
    return str(getattr(vision_model.config, "architecture", type(vision_model).__name__))


def _unclear(vision_model: Any, hidden: torch.Tensor, key: str) -> UserError:
    return UserError(
        f"{key}: it is not clear which dimension of {_name(vision_model)}'s states {tuple(hidden.shape[1:])} holds the "
        "channels and which the places in the image; choose another image encoder"
    )


def take_out_unused(vision_model: Any, pixel_values: torch.Tensor, vision_feature: str) -> list[str]:
    """Take the parts out of timm's network that the states do not come from, and return their names.

    Some networks end in layers that only a classifier reads: 120 of VGG-11's 129 million weights. They would be
    loaded, kept in the optimiser and published for nothing. Other encoders are left alone.
    """
    network = timm_network(vision_model)
    if network is None:
        return []
    before = _states(vision_model, pixel_values, vision_feature)
    before.sum().backward()
    unused = [
        name
        for name, part in network.named_children()
        if any(True for _ in part.parameters()) and all(weight.grad is None for weight in part.parameters())
    ]
    vision_model.zero_grad(set_to_none=True)
    without_parts(vision_model, unused)
    with torch.no_grad():
        assert torch.equal(_states(vision_model, pixel_values, vision_feature), before), unused
    return unused


def _states(vision_model: Any, pixel_values: torch.Tensor, vision_feature: str) -> torch.Tensor:
    return image_states_from(vision_model(pixel_values=pixel_values), vision_feature)
