"""QLoRA (Dettmers et al. 2023, arXiv:2305.14314): the frozen linear layers of a decoder in 4 bits while LoRA trains."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.errors import MissingPackageError, UserError


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


def quantize_linear_layers(captioner: Captioner, names: list[str], bitsandbytes: Any) -> None:
    """Put NF4 layers with double quantisation in place of the linear layers of these names; they stay frozen."""
    for name in names:
        parent = captioner.model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], _four_bits(captioner.model.get_submodule(name), bitsandbytes))
    keep_layout(captioner.model)


def _four_bits(layer: Any, bitsandbytes: Any) -> nn.Module:
    # GPT-2's Conv1D keeps its weight transposed.
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
    n_out, n_in = weight.shape
    replacement: nn.Module = bitsandbytes.nn.Linear4bit(
        n_in, n_out, bias=layer.bias is not None, compute_dtype=torch.bfloat16, quant_type="nf4"
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
