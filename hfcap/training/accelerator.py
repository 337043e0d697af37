"""The Accelerator of a run: refused where it would train otherwise than asked, and what it really computes in."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, DynamoBackend, parse_flag_from_env

from hfcap.captioners.base import Captioner
from hfcap.environment import prepare_processor
from hfcap.errors import UserError, WorkError, reason_of
from hfcap.failures.system import is_cut_off
from hfcap.progress import error_console
from hfcap.training.zero import ZeroAccelerator, new_zero_accelerator

_AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""`train.mixed_precision` -> the number type of products."""

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
            accelerator: Accelerator = new_zero_accelerator(_AUTOCAST[mixed_precision], **arguments)
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
    if used != _AUTOCAST[mixed_precision]:
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


def used_precision(captioner: Captioner, accelerator: Any) -> dict[str, Any]:
    """Return what training computes in, for environment.json and the card.

    The keys: autocast (number type of products, None where they are computed in the weights' own), weights (number
    types of all weights) and tf32 (which float32 products a GPU rounds to TF32).
    """
    autocast = autocast_type(accelerator)
    device, tf32 = accelerator.device, []
    if autocast is None and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8:
        tf32 += ["matrix products"] if torch.get_float32_matmul_precision() != "highest" else []
        tf32 += ["convolutions"] if torch.backends.cudnn.allow_tf32 else []
    return {
        "autocast": None if autocast is None else _name(autocast),
        "weights": sorted({_name(weight.dtype) for weight in captioner.model.parameters()}),
        "tf32": tf32,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
