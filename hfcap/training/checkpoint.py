"""Checkpoints that resume exactly: safetensors for tensors, JSON for numbers, nothing pickled.

A checkpoint folder `step-00000123` holds trained weights and buffers (model.safetensors), the optimiser's state
(optimizer.safetensors), random states per process (random-<rank>.safetensors) and state.json. It is written under a
temporary name and renamed when complete.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import nn

from hfcap.errors import WorkError
from hfcap.files import folder_being_written, read_json, write_bytes, write_json
from hfcap.training.optimization import MovingAverage, trained_parameters


@dataclass
class Progress:
    """Where training stands.

    Attributes:
        step: optimiser updates done. epoch, window: epoch number and updates done inside it.
        best_value: best validation value so far (loss: lower; cider: higher), at step best_step.
        bad_validations: validations since then.
        train_seconds: time spent training, over all interruptions.
        processes: how many trained together; random states and the order of pictures depend on it.
        unlogged_loss, unlogged_units, unlogged_sums: sums since the last row of the log.
    """

    step: int = 0
    epoch: int = 0
    window: int = 0
    images_seen: int = 0
    captions_seen: int = 0
    train_seconds: float = 0.0
    best_value: float | None = None
    best_step: int | None = None
    bad_validations: int = 0
    stopped_early: bool = False
    processes: int = 1
    unlogged_loss: float = 0.0
    unlogged_units: float = 0.0
    unlogged_sums: dict[str, float] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    average_updates: int = 0


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-[0-9]*") if path.is_dir())


def checkpoint_path(folder: Path, step: int) -> Path:
    """Folder of the checkpoint of one step."""
    return folder / f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    average: MovingAverage | None,
    accelerator: Any,
) -> None:
    """Write the checkpoint of the current step; every process calls this."""
    target = checkpoint_path(folder, progress.step)
    random_folder = folder / f".random-{progress.step:08d}"
    random_folder.mkdir(parents=True, exist_ok=True)
    _save_random_state(random_folder / f"random-{accelerator.process_index}.safetensors")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with folder_being_written(target) as temporary:
            save_file(_for_file(_model_tensors(model)), temporary / "model.safetensors")
            save_file(_for_file(_optimizer_tensors(model, optimizer)), temporary / "optimizer.safetensors")
            if average is not None:
                save_file(_for_file(average.average), temporary / "average.safetensors")
            for path in random_folder.iterdir():
                shutil.copy(path, temporary / path.name)
            write_json(temporary / "state.json", asdict(progress))
        shutil.rmtree(random_folder)
    accelerator.wait_for_everyone()


def remove_unfinished(folder: Path) -> None:
    """Delete what a process that was killed while saving left behind."""
    for pattern in (".step-*", ".random-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def prune_checkpoints(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints; the best one always stays."""
    for step in checkpoint_steps(folder)[:-keep]:
        if step != best_step:
            path = checkpoint_path(folder, step)
            # Renamed first, so that a kill during the deletion leaves no half checkpoint under a valid name.
            condemned = path.with_name(f".{path.name}.old")
            path.replace(condemned)
            shutil.rmtree(condemned)


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    accelerator: Any,
) -> Progress:
    """Restore weights, optimiser and random state; return where training stood.

    Raises:
        WorkError: the checkpoint is damaged, or does not belong to this recipe or this number of processes, or its
            moving average is none.
    """
    progress = Progress(**read_json(path / "state.json", "checkpoint state"))
    if progress.processes != accelerator.num_processes:
        raise WorkError(
            f"{path}: was written by {progress.processes} processes, but {accelerator.num_processes} train now; "
            f"continue with {progress.processes}, or start again with another name"
        )
    load_weights(path, model)
    _load_optimizer(path / "optimizer.safetensors", model, optimizer)
    if average is not None:
        for name, tensor in _read_average(path).items():
            average.average[name].copy_(tensor)
        average.updates = progress.average_updates
    _load_random_state(path / f"random-{accelerator.process_index}.safetensors")
    return progress


def load_weights(path: Path, model: nn.Module, averaged: bool = False) -> None:
    """Restore the trained weights and buffers of a checkpoint (with `averaged`, the moving average of the weights)."""
    tensors = _read_tensors(path / "model.safetensors")
    if averaged:
        tensors.update(_read_average(path))
    expected = set(_model_tensors(model))
    if set(tensors) != expected:
        different = sorted(set(tensors) ^ expected)
        raise WorkError(
            f"{path}: holds other weights than this recipe trains ({len(different)} differ, first {different[0]}); "
            "the recipe was changed after the run began: choose another name, or delete the run directory"
        )
    model.load_state_dict(tensors, strict=False)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WorkError(
            f"{path}: damaged checkpoint ({error}); delete the folder {path.parent.name}, the run then continues from "
            "the one before"
        ) from error


def _read_average(path: Path) -> dict[str, torch.Tensor]:
    """The moving average of a checkpoint.

    Raises:
        WorkError: an earlier hfcap kept it in half precision, where it stood still: its numbers are not an average.
    """
    tensors = _read_tensors(path / "average.safetensors")
    rounded = sorted({str(tensor.dtype) for tensor in tensors.values()} - {str(torch.float32)})
    if rounded:
        raise WorkError(
            f"{path}: an earlier hfcap kept this moving average in {rounded[0].removeprefix('torch.')}, too coarse for "
            "it to follow the weights; train again: choose another name, or delete the run directory"
        )
    return tensors


def _model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trained weights and persistent buffers, as the model holds them."""
    tensors = {name: parameter.detach() for name, parameter in trained_parameters(model).items()}
    persistent = set(model.state_dict())
    tensors.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    return tensors


def _for_file(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU: safetensors refuses tensors that share or skip memory."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in trained_parameters(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            # bitsandbytes counts steps in plain integers, torch in float32 tensors.
            tensors[f"{name}|{key}"] = torch.tensor(value) if isinstance(value, int) else value
    return tensors


def _load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = trained_parameters(model)
    for key, value in _read_tensors(path).items():
        name, entry = key.rsplit("|", 1)
        parameter = parameters[name]
        is_integer = value.ndim == 0 and value.dtype == torch.int64
        # Step counters of the fused optimiser live on the parameter's device too.
        optimizer.state[parameter][entry] = int(value) if is_integer else value.to(parameter.device)


def _save_random_state(path: Path) -> None:
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    python_state = json.dumps(random.getstate()).encode()
    tensors["python"] = torch.frombuffer(bytearray(python_state), dtype=torch.uint8)
    write_bytes(path, save(tensors))


def _load_random_state(path: Path) -> None:
    tensors = _read_tensors(path)
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    version, internal, gauss = json.loads(bytes(tensors["python"].tolist()))
    random.setstate((version, tuple(internal), gauss))
