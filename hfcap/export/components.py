"""The three programs of an exported captioner, made by transformers' own exporters: encoder, prefill, decode."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.exporters.auto import AutoHfExporter
from transformers.exporters.base import ExportedModel
from transformers.exporters.configs import OnnxConfig, OpenVINOConfig

from hfcap.captioners.base import Captioner
from hfcap.captioners.shared.encoder_decoder import ReadsByCrossAttention
from hfcap.generation.shared_attention import cache_argument

_ANY = torch.export.Dim.AUTO
# Sizes of 0 and 1 would be taken for fixed.
_IMAGES, _TOKENS = 2, 3


class _Encoder(nn.Module):
    """Pixel values -> the states that the decoder reads."""

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.model = captioner.model
        self._captioner = [captioner]

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the states (B, S, H) of pixel values (B, 3, height, width), under the decoder's name for them."""
        (captioner,) = self._captioner
        assert isinstance(captioner, ReadsByCrossAttention)
        return {"encoder_hidden_states": captioner.read_states(captioner.encode(pixel_values))}


def write_components(captioner: Captioner, pixel_values: torch.Tensor, export_format: str, folder: Path) -> str:
    """Export encoder, prefill and decode into `folder`, for any number of images, words and earlier words.

    Args:
        captioner: on the CPU, in evaluation mode; a ReadsByCrossAttention.
        pixel_values: of one image or more, (B, 3, height, width).
        export_format: onnx or openvino.

    Returns what the decoder calls its cache.
    """
    assert isinstance(captioner, ReadsByCrossAttention)
    decoder, encoder = captioner.reader, _Encoder(captioner).eval()
    name = cache_argument(decoder)
    pixel_values = pixel_values[:1].repeat(_IMAGES, 1, 1, 1)
    words = torch.full((_IMAGES, _TOKENS), captioner.start_token_id)
    with _quiet():
        with torch.no_grad():
            states = encoder(pixel_values)["encoder_hidden_states"].clone()
            read = {"encoder_hidden_states": states, "use_cache": True}
            cache = decoder(input_ids=words, **read, **{name: _empty_cache()})[name]
        first = _Program(export_format, encoder, {"pixel_values": pixel_values}, {"pixel_values": {0: _ANY}})
        shapes = {"input_ids": {0: _ANY, 1: _ANY}, "encoder_hidden_states": {0: _ANY}}
        prefill = _Program(
            export_format, decoder, {"input_ids": words, **read, name: _empty_cache()}, {**shapes, name: []}
        )
        layers = len(cache.self_attention_cache.layers)
        earlier = [{0: _ANY, 2: _ANY}] * (2 * layers) + [{0: _ANY}] * (2 * layers)  # keys and values of each layer
        shapes["input_ids"] = {0: _ANY}
        decode = _Program(
            export_format, decoder, {"input_ids": words[:, :1], **read, name: cache}, {**shapes, name: earlier}
        )
        own = type(captioner.model).__module__.startswith("transformers.")
        ExportedModel(
            {"encoder": first.component, "prefill": prefill.component, "decode": decode.component},
            export_format,
            # Of a model class that transformers does not have, it could not be read again.
            config=captioner.model.config if own else None,
        ).save_pretrained(folder)
    return name


class _Program:
    """One exported program."""

    def __init__(self, export_format: str, module: Any, inputs: dict[str, Any], shapes: dict[str, Any]) -> None:
        # State kept inside the program would have to be reset by whoever runs it.
        config = (
            OnnxConfig(dynamic_shapes=shapes)
            if export_format == "onnx"
            else OpenVINOConfig(dynamic_shapes=shapes, stateful=False)
        )
        exporter = AutoHfExporter.from_config(config)
        self.component = exporter.export(module, inputs, config).components["model"]


def _empty_cache() -> EncoderDecoderCache:
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch's and transformers' exporters print about their own work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
