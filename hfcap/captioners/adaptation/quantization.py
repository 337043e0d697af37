"""Weights of fewer bits: QLoRA's frozen linear layers while LoRA trains, and what captions alone.

QLoRA: Dettmers et al. 2023, arXiv:2305.14314, by bitsandbytes. For captioning alone: weight-only rounding by torchao.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from hfcap.captioners.adaptation.merging import is_quantized
from hfcap.captioners.base import Captioner
from hfcap.captioners.shared.linear_layers import layers_below
from hfcap.errors import MissingPackageError, OptionError, UserError, shown

WeightOnly = Literal["int8", "int4"]
"""Weights rounded for captioning: int8 with one scale a row, int4 with one for every 32 values of a row."""

NumberType = Literal["bfloat16", "float32"]
"""What captioning computes in. Not float16: models trained in other types overflow in it, and say nonsense."""

_GROUP = 32


@dataclass(frozen=True, slots=True)
class Weights:
    """How weights are held while a captioner captions.

    Attributes:
        dtype: their number type, in which everything is computed; None = the one that they were loaded in.
        quantization: those of linear layers in fewer bits; None = as they are.
    """

    dtype: NumberType | None = None
    quantization: WeightOnly | None = None


def require_bitsandbytes(key: str, value: str, alternative: str, device: torch.device) -> Any:
    """Return the module bitsandbytes.

    Raises:
        UserError: it is not installed, or the weights are neither on a CUDA GPU nor on a CPU.
    """
    if device.type not in ("cuda", "cpu"):
        raise UserError(
            f"{key}: {value} needs a CUDA GPU or a CPU, and training runs on {device.type}; set it to {alternative}"
        )
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise MissingPackageError(
            "bitsandbytes", f"{key}: {value}", f", or set it to {alternative} ({error})"
        ) from error


def keep_layout(model: nn.Module) -> None:
    """Stop 4-bit layers from rewriting their weights at the first evaluation on a processor with AVX512-BF16.

    bitsandbytes (0.50) packs them for inference there, once and for all: gradients through packed weights are wrong.
    Processors with it: Intel's Cooper Lake (2020) and servers from Sapphire Rapids on, AMD's from Zen 4 on; on others,
    and on GPUs, nothing is packed.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def store_as_bfloat16(model: nn.Module) -> None:
    """Let 4-bit weights lie in memory as bfloat16 numbers, bit for bit the same: such weights can be cut into pieces.

    Accelerate leaves weights that are stored in bytes whole in each process. A layer keeps its scales, which torch
    does not cut, and bitsandbytes puts them back to gathered weights (`fix_4bit_weight_quant_state_from_module`).
    """
    for layer in _four_bit_layers(model):
        weight = layer.weight
        stored = weight.detach().as_subclass(torch.Tensor)
        if not weight.bnb_quantized or stored.dtype != torch.uint8 or stored.numel() % 2:
            continue
        layer.quant_state, layer.quant_storage = weight.quant_state, torch.bfloat16
        layer.weight = type(weight)(
            stored.reshape(-1).view(torch.bfloat16)[:, None],
            quant_state=weight.quant_state,
            blocksize=weight.blocksize,
            compress_statistics=weight.compress_statistics,
            quant_type=weight.quant_type,
            quant_storage=torch.bfloat16,
            module=layer,
            bnb_quantized=True,
        )


def plain_compute_type() -> torch.dtype:
    """Return what layers with 4-bit weights compute in without mixed precision: bfloat16, or float32 on GPUs without.

    Not float16 on GPUs without bfloat16: where nothing scales the loss, small gradients vanish in it.
    """
    has_bfloat16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float32


def compute_four_bits_in(model: nn.Module, number_type: torch.dtype) -> None:
    """Let layers with 4-bit weights bring weights and inputs into a number type for their products."""
    for layer in _four_bit_layers(model):
        layer.compute_dtype, layer.compute_type_is_set = number_type, True


def four_bit_compute_type(model: nn.Module) -> torch.dtype | None:
    """Return what layers with 4-bit weights compute in; None where a model has no such layers."""
    layers = _four_bit_layers(model)
    found: torch.dtype | None = layers[0].compute_dtype if layers else None
    return found


def number_type_of(weight: torch.Tensor) -> str:
    """Name what a weight is stored in: torch's number type, or bitsandbytes' kind of 4 bits (nf4, fp4)."""
    if type(weight).__name__ == "Params4bit":
        kind: Any = weight
        return str(kind.quant_type)
    return str(weight.dtype).removeprefix("torch.")


def _four_bit_layers(model: nn.Module) -> list[Any]:
    return [
        module
        for module in model.modules()
        for name, weight in module.named_parameters(recurse=False)
        if name == "weight" and type(weight).__name__ == "Params4bit"
    ]


def quantize_linear_layers(captioner: Captioner, names: list[str], bitsandbytes: Any) -> None:
    """Put NF4 layers with double quantisation in place of the linear layers of these names; they stay frozen."""
    for name in names:
        parent = captioner.model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], _four_bits(captioner.model.get_submodule(name), bitsandbytes))
    keep_layout(captioner.model)


def hold_for_captioning(captioner: Captioner, weights: Weights) -> None:
    """Bring the weights into another number type, and round them, in place: for captioning, not for training or saving.

    Raises:
        OptionError: no such number type or quantisation, or this captioner has no weights for it.
        UserError: torchao is needed and not installed.
    """
    if weights.dtype is not None:
        if weights.dtype not in get_args(NumberType):
            raise OptionError(f"dtype: choose bfloat16 or float32, not {shown(weights.dtype)}")
        if not captioner.trains_by_gradients:
            raise OptionError(f"dtype: {captioner.card_facts.title} computes in a type of its own; leave it out")
        if is_quantized(captioner.model):
            raise OptionError("dtype: the model's weights are stored in few bits; leave it out")
        captioner.model.to(getattr(torch, weights.dtype))
        captioner.model.captions_in = getattr(torch, weights.dtype)
    if weights.quantization is not None:
        quantize_for_captioning(captioner, weights.quantization)


def as_held(captioner: Captioner, values: Any) -> Any:
    """Return pixel values or image states in the number type that `hold_for_captioning` chose, if it did."""
    number_type = getattr(captioner.model, "captions_in", None)
    return values.to(number_type) if number_type is not None and isinstance(values, torch.Tensor) else values


def quantize_for_captioning(captioner: Captioner, quantization: WeightOnly) -> None:
    """Round the weights of the linear layers, heads left out, in place: for captioning, not for training or saving.

    Activations keep their number type. 4-bit values take a byte each in memory: torchao 0.18 packs two into one on
    CUDA GPUs alone.

    Raises:
        OptionError: no such quantisation, or this captioner has no layers for it.
        UserError: torchao is not installed.
    """
    if quantization not in get_args(WeightOnly):
        raise OptionError(f"quantization: choose int8 or int4, not {shown(quantization)}")
    title = captioner.card_facts.title
    if not captioner.trains_by_gradients:
        raise OptionError(f"quantization: {title} has no linear layers of its own to quantise; leave it out")
    if is_quantized(captioner.model):
        raise OptionError("quantization: the model's weights are stored in few bits already; leave it out")
    names = [
        name
        for name in layers_below(captioner.model, [captioner.model])
        if quantization == "int8" or _plain_weight(captioner.model.get_submodule(name)).shape[1] % _GROUP == 0
    ]
    if not names:
        raise OptionError(f"quantization: no linear layer of {title} suits {quantization}; leave it out")
    try:
        torchao = importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise MissingPackageError("torchao", f"quantization: {quantization}", f", or leave it out ({error})") from error
    for name in names:
        _round(captioner.model, name, quantization, torchao)


def _round(model: nn.Module, name: str, quantization: WeightOnly, torchao: Any) -> None:
    if quantization == "int8":
        config = torchao.Int8WeightOnlyConfig(set_inductor_config=False)
    else:
        four_bits: Any = torch.int4  # type: ignore[attr-defined]  # torch does not annotate it
        config = torchao.IntxWeightOnlyConfig(four_bits, torchao.PerGroup(_GROUP))
    layer: Any = model.get_submodule(name)
    if not isinstance(layer, nn.Linear):  # torchao knows no other
        weight, bias = _plain_weight(layer), layer.bias
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
        layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
        layer.bias = bias
        layer.training = False
        setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layer)
    torchao.quantize_(layer, config)


def _plain_weight(layer: Any) -> torch.Tensor:
    """Weight (out, in) of a linear layer; GPT-2's Conv1D keeps its own transposed."""
    weight: torch.Tensor = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
    return weight


def _four_bits(layer: Any, bitsandbytes: Any) -> nn.Module:
    weight = _plain_weight(layer)
    n_out, n_in = weight.shape
    replacement: nn.Module = bitsandbytes.nn.Linear4bit(
        n_in, n_out, bias=layer.bias is not None, compute_dtype=plain_compute_type(), quant_type="nf4"
    )
    replacement.weight = bitsandbytes.nn.Params4bit(
        weight.detach().contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    if layer.bias is not None:
        replacement.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    # bitsandbytes quantises when weights are moved to the device they are trained on.
    return (
        replacement.to(weight.device) if weight.device.type == "cpu" and not torch.cuda.is_available() else replacement
    )
