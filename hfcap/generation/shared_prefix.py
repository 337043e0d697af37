"""Generation after a prefix that is kept once: its keys and values serve all rows (beams, samples) of an image.

transformers copies the prefix for every row, runs the language model over each copy, and reorders the copies with the
beams. Here the language model reads each image's prefix once; `generate` then sees the text alone, at the positions
after the prefix, and attention looks at both. The loop, the scores and the choice of beams stay those of `generate`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from hfcap.generation.shared_attention import attention_by, can_share

_READING, _BEHIND = "hfcap_prefix_reading", "hfcap_behind_prefix"
"""Names under which the library's attention interface knows the two passes."""

_NEUTRAL = {"dropout", "scaling", "is_causal", "position_ids", "use_cache", "cache_position", "output_attentions"}
"""What a model may tell its attention without wanting anything but softmax(query key^T) value."""

Layers = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Layer number -> keys and values of the prefix, (B, heads, N, D)."""


class SharedPrefix:
    """The keys and values of prefixes, one per image.

    Attributes:
        length: N, number of prefix positions.
    """

    def __init__(self, layers: Layers, length: int) -> None:
        self._layers = layers
        self.length = length

    @classmethod
    def read(cls, language_model: Any, prefix: torch.Tensor) -> SharedPrefix | None:
        """Run a causal language model over prefix embeddings (B, N, H).

        Returns None where the prefix cannot be shared: not every layer attends plainly through the library's interface
        (recurrent layers, windows, soft caps), or positions cannot be given.
        """
        body = language_model.base_model
        if not can_share(language_model) or "position_ids" not in inspect.signature(body.forward).parameters:
            return None
        layers: Layers = {}
        plain = True

        def reading(
            module: Any,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            **arguments: Any,
        ) -> tuple[torch.Tensor, None]:
            nonlocal plain
            # As attention multiplies them: it would otherwise copy these views, part of a larger tensor, at every word.
            layers[getattr(module, "layer_idx", -1)] = (key.contiguous(), value.contiguous())
            plain &= all(name in _NEUTRAL or setting is None for name, setting in arguments.items())
            return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)

        AttentionInterface.register(_READING, reading)
        AttentionMaskInterface.register(_READING, sdpa_mask)
        with attention_by(language_model, _READING):
            body(inputs_embeds=prefix, use_cache=False)
        complete = sorted(layers) == list(range(language_model.config.get_text_config().num_hidden_layers))
        return cls(layers, prefix.shape[1]) if complete and plain else None

    def keep(self, images: torch.Tensor) -> None:
        """Go on with some of the images, given by their places."""
        self._layers = {number: (keys[images], values[images]) for number, (keys, values) in self._layers.items()}

    def inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arguments of `generate` for text (B, T) after the prefix."""
        positions = torch.arange(self.length, self.length + input_ids.shape[1], device=input_ids.device)
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "position_ids": positions.expand_as(input_ids),
        }

    @contextmanager
    def in_front_of(self, language_model: Any) -> Iterator[None]:
        """Let a language model attend to the prefix and its text, for the length of the block."""
        AttentionInterface.register(_BEHIND, self.attention)
        AttentionMaskInterface.register(_BEHIND, eager_mask)
        with attention_by(language_model, _BEHIND):
            yield

    def attention(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attend to the prefix of the row's image and to the row's own text.

        Rows of an image stand one after the other, as `generate` expands them.

        Args:
            query: (B * n, heads, T, D). key, value: (B * n, heads or fewer, S, D) of the text.
            attention_mask: (B * n or 1, 1, T, S), additive, over the text.

        Returns:
            (B * n, T, heads, D), and None for the weights.
        """
        prefix_key, prefix_value = self._layers[module.layer_idx]
        query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        to_prefix = _of_images(_by_image(query, prefix_key) @ prefix_key.mT, query)
        to_text = (_by_group(query, key) @ key.mT).reshape(*query.shape[:3], -1)
        if attention_mask is not None:
            to_text = to_text + attention_mask
        weights = torch.cat([to_prefix, to_text], dim=-1).softmax(-1, dtype=torch.float32).to(query.dtype)
        on_prefix, on_text = weights.split([self.length, key.shape[2]], dim=-1)
        from_prefix = _of_images(_by_image(on_prefix, prefix_key) @ prefix_value, query)
        from_text = (_by_group(on_text, key) @ value).reshape(query.shape)
        return (from_prefix + from_text).transpose(1, 2).contiguous(), None


def _by_group(values: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Put heads that read the same keys (rows, groups, ...) together: (rows, heads, T, D) -> (rows, groups, -1, D)."""
    return values.reshape(values.shape[0], keys.shape[1], -1, values.shape[-1])


def _by_image(values: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
    """Put all that reads the same keys together: (B * n, heads, T, D) -> (B, groups, n * heads / groups * T, D)."""
    images, groups = prefix.shape[:2]
    apart = values.reshape(images, values.shape[0] // images, groups, -1, values.shape[-1])
    return apart.transpose(1, 2).flatten(2, 3)


def _of_images(values: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Take apart what `_by_image` put together: (B, groups, n * heads / groups * T, X) -> (B * n, heads, T, X)."""
    apart = values.unflatten(2, (query.shape[0] // len(values), -1)).transpose(1, 2)
    return apart.reshape(*query.shape[:3], values.shape[-1])
