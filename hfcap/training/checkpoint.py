"""Checkpoints that resume exactly: safetensors for tensors, JSON for numbers, nothing pickled.

A checkpoint folder `step-00000123` holds trained weights and buffers (model.safetensors), the optimiser's state
(optimizer.safetensors), random states per process (random-<rank>.safetensors), state.json, and the SHA-256 of all these
files (checksums.json). It is written under a temporary name and renamed when complete; one that is damaged later is set
aside, and training continues from the one before.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn

from hfcap.errors import UserError, WorkError
from hfcap.files import folder_being_written, read_json, sha256_of, write_bytes, write_json
from hfcap.generation.random_state import random_states, restore_random_states
from hfcap.progress import error_console
from hfcap.training.optimization import MovingAverage, trained_tensors
from hfcap.training.sharding import cut_like, gathered, gathered_optimizer, load_optimizer


@dataclass
class Progress:
    """Where training stands.

    Attributes:
        step: optimiser updates done. epoch, window: epoch number and updates done inside it.
        best_value: best validation value so far (loss: lower; cider: higher), at step best_step.
        bad_validations: validations since then.
        train_seconds: time spent training, over all interruptions.
        processes: how many trained together; random states and the order of images depend on it.
        steps_per_epoch: updates of an epoch, in which `window` counts; 0 in checkpoints of earlier versions.
        batch_parts: into how many parts batches are cut, because the memory is too small for them as they are.
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
    steps_per_epoch: int = 0
    batch_parts: int = 1
    unlogged_loss: float = 0.0
    unlogged_units: float = 0.0
    unlogged_sums: dict[str, float] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    average_updates: int = 0

    def advance(self, images: int, captions: int, seconds: float, steps_per_epoch: int) -> None:
        """Count one more update."""
        self.step += 1
        self.window += 1
        if self.window == steps_per_epoch:
            self.epoch, self.window = self.epoch + 1, 0
        self.images_seen += images
        self.captions_seen += captions
        self.train_seconds += seconds


CHECKSUMS = "checksums.json"
_SCHEDULE = ("last_epoch", "_step_count")
_NAME = re.compile(r"step-(\d{8,12})", re.ASCII)


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending; folders of other names (copies, say) are none."""
    names = [_NAME.fullmatch(path.name) for path in folder.glob("step-*") if path.is_dir()]
    return sorted(int(name[1]) for name in names if name is not None)


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
    _save_random_state(random_folder / f"random-{accelerator.process_index}.safetensors", accelerator.device)
    accelerator.wait_for_everyone()
    tensors = {
        "model": gathered(trained_tensors(model), accelerator),
        "optimizer": gathered_optimizer(model, optimizer, accelerator),
    }
    if average is not None:
        tensors["average"] = gathered(average.average, accelerator)
    if accelerator.is_main_process:
        with folder_being_written(target) as temporary:
            for name, entries in tensors.items():
                save_file(_for_file(entries), temporary / f"{name}.safetensors")
            for path in random_folder.iterdir():
                shutil.copy(path, temporary / path.name)
            write_json(temporary / "state.json", asdict(progress))
            write_json(temporary / CHECKSUMS, {path.name: sha256_of(path) for path in sorted(temporary.iterdir())})
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
    other_seed: int | None = None,
) -> Progress:
    """Restore weights, optimiser and random state; return where training stood.

    Args:
        other_seed: another number of processes may continue; they draw from this seed on. None = they may not.

    Raises:
        UserError: another number of processes trains.
        WorkError: the checkpoint is damaged, does not belong to this recipe, or its moving average is none.
    """
    progress = read_progress(path)
    same_processes = progress.processes == accelerator.num_processes
    if not same_processes and other_seed is None:
        raise UserError(
            f"{path}: was written by {progress.processes} processes, but {accelerator.num_processes} train now; "
            f"continue with {progress.processes}, or give --accept-changes to go on with other random numbers, or "
            "start again with another name (name=...)"
        )
    load_weights(path, model)
    load_optimizer(_read_tensors(path / "optimizer.safetensors"), model, optimizer, accelerator)
    if average is not None:
        for name, tensor in _read_average(path).items():
            average.average[name].copy_(cut_like(tensor, average.average[name]))
        average.updates = progress.average_updates
    if same_processes:
        _load_random_state(path / f"random-{accelerator.process_index}.safetensors", accelerator.device)
    else:
        assert other_seed is not None
        set_seed(other_seed + progress.step, device_specific=True)
        progress.processes = accelerator.num_processes
    return progress


def read_progress(path: Path) -> Progress:
    """Return where training stood at a checkpoint; keys that a later version of hfcap wrote are left out.

    Raises:
        WorkError: state.json is damaged.
    """
    try:
        values = read_json(path / "state.json", "checkpoint state")
        known = {entry.name for entry in fields(Progress)}
        progress = TypeAdapter(Progress).validate_python({key: values[key] for key in known & values.keys()})
        if not all(isinstance(progress.scheduler.get(key), int) for key in _SCHEDULE):
            raise WorkError(f"{path / 'state.json'}: damaged checkpoint (no place in the schedule); delete the folder")
        return progress
    except (UserError, AttributeError, ValidationError) as error:
        raise WorkError(
            f"{path / 'state.json'}: damaged checkpoint ({str(error).splitlines()[0]}); delete the folder"
        ) from error


def damage_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint: files that are missing or changed, weights that are no numbers."""
    try:
        progress = read_progress(path)
        for name, value in _checksums(path).items():
            if sha256_of(path / name) != value:
                return f"{path / name}: damaged checkpoint (not the content that was written)"
        for name in ("model", "optimizer", *(f"random-{rank}" for rank in range(progress.processes))):
            with safe_open(path / f"{name}.safetensors", framework="pt"):
                pass  # complete as far as its header tells, also where an earlier version wrote no checksums
        files = [path / "model.safetensors", *path.glob("average.safetensors")]
        weights = [entry for file in files for entry in _read_tensors(file).items()]
        state = _read_tensors(path / "optimizer.safetensors")
    except (OSError, SafetensorError, UserError) as error:
        return f"{path}: damaged checkpoint ({error})"
    except WorkError as error:
        return str(error)
    wrong = [name for name, tensor in weights if not _are_numbers(tensor)]
    wrong += [f"{name} of the optimiser" for name, tensor in state.items() if bool(tensor.isnan().any())]
    return f"{path}: weights that are no longer numbers ({wrong[0]})" if wrong else None


def _are_numbers(tensor: torch.Tensor) -> bool:
    # Gemma 4 keeps the bounds of its layers in buffers of one number each, infinite where there is none.
    return not bool(tensor.isnan()) if tensor.ndim == 0 else bool(tensor.isfinite().all())


def _checksums(path: Path) -> dict[str, str]:
    if not (path / CHECKSUMS).is_file():
        return {}
    values = read_json(path / CHECKSUMS, "checksums of a checkpoint")
    good = isinstance(values, dict) and all(isinstance(value, str) for value in values.values())
    if not good or not all(Path(name).name == name for name in values):
        raise WorkError(f"{path / CHECKSUMS}: damaged checkpoint (no JSON object of checksums); delete the folder")
    return dict(values)


def set_damaged_aside(folder: Path) -> None:
    """Rename damaged checkpoints that training would continue from or keep as the best, and say so.

    Afterwards the newest checkpoint is whole, and so is the best one that it names, if that is still there.
    """
    for step in reversed(checkpoint_steps(folder)):
        path = checkpoint_path(folder, step)
        before = [earlier for earlier in checkpoint_steps(folder) if earlier < step]
        if not set_aside_if_damaged(
            path,
            f"continuing from the one before, step {before[-1]}"
            if before
            else "there is none before it, so that training begins again",
        ):
            best = read_progress(path).best_step
            if best in before:
                best_path = checkpoint_path(folder, best)
                set_aside_if_damaged(best_path, "the best of the checkpoints after it is taken in its place")
            return


def set_aside_if_damaged(path: Path, what_follows: str) -> bool:
    """Rename a checkpoint that is damaged, and say so with what follows from it; returns whether it was."""
    problem = damage_of(path)
    if problem is None:
        return False
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.replace(aside)
    error_console.print(
        f"warning: {problem}; {what_follows}. The damaged one is now {aside.name}, and may be deleted",
        markup=False,
        soft_wrap=True,
    )
    return True


def fit_progress(progress: Progress, folder: Path, steps_per_epoch: int) -> None:
    """Bring a checkpoint's progress in line with what is there: the best checkpoint, and the length of an epoch."""
    if progress.best_step is not None and progress.best_step not in checkpoint_steps(folder):
        progress.best_step, progress.best_value, progress.bad_validations = None, None, 0
    if progress.steps_per_epoch not in (0, steps_per_epoch):
        # Accepted changes: other data or batches. The same share of the epoch counts as done.
        share = progress.window / progress.steps_per_epoch
        progress.window = min(round(share * steps_per_epoch), steps_per_epoch - 1)


def restore_schedule(scheduler: Any, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Take up a learning-rate schedule where it stood, with the recipe's rates: they may be other ones than before.

    Args:
        scheduler: a LambdaLR.
    """
    place = {key: progress.scheduler[key] for key in _SCHEDULE}
    rates = [
        base * factor(place["last_epoch"])
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    scheduler.load_state_dict({**scheduler.state_dict(), **place, "_last_lr": rates})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def load_weights(path: Path, model: nn.Module, averaged: bool = False) -> None:
    """Restore the trained weights and buffers of a checkpoint (with `averaged`, the moving average of the weights)."""
    tensors = _read_tensors(path / "model.safetensors")
    if averaged:
        tensors.update(_read_average(path))
    expected = trained_tensors(model)
    if tensors.keys() != expected.keys():
        different = sorted(tensors.keys() ^ expected.keys())
        raise WorkError(
            f"{path}: holds other weights than this recipe trains ({len(different)} differ, first {different[0]}); "
            "the recipe was changed after the run began: choose another name, or delete the run directory"
        )
    try:
        model.load_state_dict(
            {name: cut_like(tensor, expected[name]) for name, tensor in tensors.items()}, strict=False
        )
    except RuntimeError as error:  # another shape
        raise WorkError(
            f"{path}: holds weights of another size than this recipe trains ({str(error).splitlines()[-1].strip()}); "
            "choose another name (name=...), or train again with 'hfcap train' and --force"
        ) from error


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WorkError(
            f"{path}: damaged checkpoint ({error}); give the command again, which then continues from the one before"
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


def _for_file(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU: safetensors refuses tensors that share or skip memory."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _save_random_state(path: Path, device: torch.device) -> None:
    tensors = random_states(device)
    python_state = json.dumps(random.getstate()).encode()
    tensors["python"] = torch.frombuffer(bytearray(python_state), dtype=torch.uint8)
    write_bytes(path, save(tensors))


def _load_random_state(path: Path, device: torch.device) -> None:
    tensors = _read_tensors(path)
    try:
        restore_random_states(tensors, device)  # of another kind of device than it was written on: the CPU's alone
        version, internal, gauss = json.loads(bytes(tensors["python"].tolist()))
        random.setstate((version, tuple(internal), gauss))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise WorkError(
            f"{path}: damaged random state ({error}); delete the folder {path.parent.name}, the run then continues "
            "from the one before"
        ) from error
