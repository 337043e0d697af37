"""The Accelerator of a run: refused where it would train otherwise than asked, and what it really computes in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, DynamoBackend, parse_flag_from_env

from hfcap.captioners.adaptation.quantization import four_bit_compute_type, number_type_of
from hfcap.captioners.base import Captioner
from hfcap.environment import prepare_processor
from hfcap.errors import UserError, WorkError, reason_of
from hfcap.failures.system import is_cut_off
from hfcap.progress import error_console
from hfcap.training.zero import ZeroAccelerator, new_zero_accelerator

AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""`train.mixed_precision` -> the number type of products."""

_CUDNN: Any = torch.backends.cudnn
"""Its switches are there at run time alone."""

_SHARDING = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""What `accelerate launch` sets -> what it asks for. Each cuts weights into pieces, and hfcap would save those."""

_REMEDY = (
    "hfcap trains in one process, data-parallel, or in pieces by FSDP2 or DeepSpeed: set distributed_type to 'NO', "
    "MULTI_GPU, MULTI_CPU, FSDP or DEEPSPEED (recipes/accelerate/)"
)
_FSDP = {
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "fsdp_cpu_ram_efficient_loading: false (each process reads the weights itself)",
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params: false",
    "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_activation_checkpointing: false, and train.gradient_checkpointing: true",
}
"""Switches of FSDP that must be off -> what to set."""


class PrecisionError(UserError):
    """`train.mixed_precision` names what this device lacks."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"train.mixed_precision: {problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy


def new_accelerator(mixed_precision: str, **arguments: Any) -> Accelerator:
    """Create an Accelerator, and prepare the processor for it.

    Args:
        mixed_precision: no, bf16 or fp16. arguments: as Accelerator takes them.

    Raises:
        PrecisionError: the device cannot compute in that precision.
        UserError: the accelerate configuration asks for what hfcap does not do, or for a package that is not there.
        WorkError: another process cannot be reached.
    """
    for name, what in _SHARDING.items():
        if parse_flag_from_env(name):
            raise UserError(f"the accelerate configuration asks for {what}; {_REMEDY}")
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        _require_fsdp2()
    prepare_processor()
    try:
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        if mixed_precision == "fp16" and state.device.type == "cpu":
            # Accelerate would train in float32 without a word.
            raise PrecisionError("fp16 needs a GPU, and training runs on the CPU", "set it to no or bf16 here")
        if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
            accelerator: Accelerator = new_zero_accelerator(AUTOCAST[mixed_precision], **arguments)
        else:
            accelerator = Accelerator(mixed_precision=mixed_precision, **arguments)
    except ImportError as error:
        raise UserError(
            f"the accelerate configuration needs a package that is not installed: {error}; install it, or "
            "run accelerate config"
        ) from error
    except (ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, RuntimeError) and is_cut_off(error):
            raise WorkError(
                f"the processes of this training do not find each other ({reason_of(error)}); start all "
                "of them, with the same address and port, and give the same command again"
            ) from error
        raise UserError(
            f"accelerate refuses its configuration, or train.mixed_precision: {error}; change them"
        ) from error
    _require_plain(accelerator)
    used = autocast_type(accelerator)
    if used != AUTOCAST[mixed_precision]:
        raise PrecisionError(
            f"{mixed_precision} is not what accelerate computes in on {accelerator.device.type} "
            f"({_name(used) if used else 'float32'})",
            "set it to no or bf16 here",
        )
    _say_what_is_overridden(accelerator, mixed_precision)
    return accelerator


def _require_fsdp2() -> None:
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "the accelerate configuration asks for FSDP of version 1, which torch replaces; set fsdp_version: 2 "
            "(recipes/accelerate/fsdp2.yaml)"
        )
    for name, remedy in _FSDP.items():
        if parse_flag_from_env(name):
            raise UserError(f"the accelerate configuration: hfcap does not train so; set {remedy}")


def _require_plain(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and not accelerator.is_fsdp2:
        raise UserError(
            f"the accelerate configuration asks for FSDP, which Accelerate does with several GPUs alone, and here it "
            f"has {accelerator.num_processes} x {accelerator.device.type}; use recipes/accelerate/cpu.yaml or "
            "single_gpu_bf16.yaml"
        )
    in_pieces = accelerator.is_fsdp2 or isinstance(accelerator, ZeroAccelerator)
    if not in_pieces and kind != DistributedType.NO and not kind.value.startswith("MULTI_"):
        raise UserError(f"the accelerate configuration asks for distributed_type {kind.value}; {_REMEDY}")
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise UserError(
            "the accelerate configuration has a dynamo_backend, which would compile the model in another way than "
            "hfcap checks (and switch TF32 on); set it to 'no', and train.torch_compile: true in the recipe"
        )


def _say_what_is_overridden(accelerator: Accelerator, mixed_precision: str) -> None:
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if configured not in ("no", mixed_precision) and accelerator.is_main_process:
        error_console.print(
            f"train.mixed_precision: {mixed_precision} counts; the accelerate configuration says {configured}",
            markup=False,
        )


def autocast_type(accelerator: Any) -> torch.dtype | None:
    """Return the number type that products are computed in inside the Accelerator's autocast; None: as they come."""
    device = accelerator.device.type
    with accelerator.autocast():
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def require_number_types(captioner: Captioner, device: torch.device) -> None:
    """Refuse to train through float16 weights on a CPU: small gradients vanish there, and nothing scales the loss.

    Raises:
        UserError: names model.dtype where the family has that key.
    """
    if device.type == "cpu" and any(weight.dtype == torch.float16 for weight in captioner.model.parameters()):
        key = "model.dtype" if "dtype" in captioner.options_class.model_fields else "model"
        raise UserError(
            f"{key}: the weights are float16, which needs a GPU to train with, and training runs on the CPU; use "
            "float32 or bfloat16 weights here"
        )


def require_tf32(tf32: bool | None, device: torch.device) -> None:
    """Refuse TF32 where the device has none, as transformers' TrainingArguments do.

    Raises:
        UserError: names train.tf32 and the device.
    """
    if tf32 and not _has_tf32(device):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise UserError(
            f"train.tf32: true needs a CUDA GPU of NVIDIA's Ampere generation or a later one, and training runs on "
            f"{name}; set it to null"
        )


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_tf32_supported()


@contextlib.contextmanager
def float32_products(tf32: bool | None) -> Iterator[None]:
    """Let CUDA GPUs round float32 products to TF32 while the block runs, or not; None: as torch is set."""
    switches = [torch.backends.cuda.matmul, _CUDNN.conv, _CUDNN.rnn]
    before = [switch.fp32_precision for switch in switches]
    if tf32 is not None:
        for switch in switches:
            switch.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        if tf32 is not None:
            for switch, precision in zip(switches, before, strict=True):
                switch.fp32_precision = precision


def used_precision(captioner: Captioner, accelerator: Any) -> dict[str, Any]:
    """Return what training computes in, for environment.json and the card.

    The keys: autocast (number type of products, None where they are computed in the weights' own), weights (number
    types of all weights), four_bit_layers (number type of the products of layers with 4-bit weights, where there are
    some) and tf32 (which float32 products a GPU rounds to TF32).
    """
    autocast = autocast_type(accelerator)
    tf32 = []
    if autocast is None and _has_tf32(accelerator.device):
        tf32 += ["matrix products"] if torch.backends.cuda.matmul.fp32_precision == "tf32" else []
        tf32 += ["convolutions"] if _CUDNN.conv.fp32_precision == "tf32" else []
    four_bits = four_bit_compute_type(captioner.model)
    return {
        "autocast": None if autocast is None else _name(autocast),
        "weights": sorted({number_type_of(weight) for weight in captioner.model.parameters()}),
        **({} if four_bits is None else {"four_bit_layers": _name(four_bits)}),
        "tf32": tf32,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
