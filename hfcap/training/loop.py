"""The one training loop: every captioner, full or LoRA, one process or many."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import set_seed
from accelerate.utils.memory import clear_device_cache

from hfcap.captioners.base import Captioner
from hfcap.data.loading import BatchLoader, CaptionBatch, CaptionDataset, Collate, batch_keys
from hfcap.data.sampling.epochs import EpochBatches, epoch_batches
from hfcap.errors import StoppedError, UserError, WorkError
from hfcap.failures.memory import is_full_memory, more_parts, windows_of
from hfcap.failures.system import failures_of_the_system
from hfcap.progress import error_console, progress_bar
from hfcap.recipe.blocks import Recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.training.checkpoint import (
    Progress,
    checkpoint_path,
    checkpoint_steps,
    fit_progress,
    load_checkpoint,
    load_weights,
    prune_checkpoints,
    remove_unfinished,
    restore_schedule,
    save_checkpoint,
    set_aside_if_damaged,
    set_damaged_aside,
)
from hfcap.training.objectives.cross_entropy import CrossEntropy
from hfcap.training.optimization import (
    MovingAverage,
    build_optimizer,
    build_scheduler,
    frozen_modules,
    trained_parameters,
)
from hfcap.training.processes import Hosts, stop_on_signal, summed
from hfcap.training.records.log import LogWindow, TrainingLog, peak_memory_bytes
from hfcap.training.sharding import WholeCaptioner, around_forward, may_retry, prepared, to_validate, whole_tensor
from hfcap.training.updates import Stepper
from hfcap.training.validation import Validator


class TrainingRun:
    """Training of one captioner in one run directory; `train()` starts or continues it."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunDirectory,
        captioner: Captioner,
        dataset: CaptionDataset,
        validator: Validator,
        accelerator: Any,
        objective: CrossEntropy,
        accept_changes: bool = False,
        whole: WholeCaptioner | None = None,
    ) -> None:
        self.options = recipe.train
        self.whole = whole
        self._accept_changes = accept_changes
        self.run = run
        self.captioner = captioner
        self.dataset = dataset
        self.validator = validator
        self.accelerator = accelerator
        self.plain_objective = objective
        self.collate = Collate(
            captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id, dataset.inputs
        )
        self.loader = BatchLoader(dataset, self.collate, self.options.loading_workers, accelerator.device)
        self.lengths = batch_keys(dataset)
        self.steps_per_epoch = math.ceil(len(self._micro_batches(0)) / self.options.gradient_accumulation_steps)
        if self.steps_per_epoch == 0:
            raise UserError(
                f"data: {len(self.lengths)} training images are fewer than the processes that train; start fewer"
            )
        self.total_steps = self.options.max_steps or round((self.options.num_train_epochs or 0) * self.steps_per_epoch)
        if self.total_steps == 0:
            raise UserError(f"train.num_train_epochs: {self.options.num_train_epochs} is less than one update")
        self.log = TrainingLog(run.log, accelerator)
        self._prepare()

    def _prepare(self) -> None:
        self.optimizer = build_optimizer(self.captioner, self.options)
        self.scheduler = build_scheduler(self.optimizer, self.options, self.total_steps)
        # Accelerate's wrapper (processes, precision) computes the loss; what counts and reports is after it.
        self.objective, self.prepared_optimizer = prepared(
            self.accelerator, self.plain_objective, self.optimizer, self.captioner, self.dataset
        )
        self.stepper = Stepper(self.accelerator, self.prepared_optimizer)
        self.parameters = trained_parameters(self.captioner.model)
        decay = self.options.ema_decay
        self.average = None if decay is None else MovingAverage(self.parameters, decay)
        self.progress = Progress(processes=self.accelerator.num_processes)
        self._since = self._new_window()
        self._hosts = Hosts(self.accelerator)
        self._stop_requested = False
        self._stop_agreed = False

    # ---- the loop ----------------------------------------------------------------------------------------------

    def train(self) -> Progress:
        """Train to the end, continuing from the newest checkpoint; return where training ended.

        Raises:
            StoppedError: stopped on request; a checkpoint of the last update was written.
            WorkError: the loss is no longer a number, or the memory is too small.
        """
        self._resume()
        if self.accelerator.is_main_process and self.progress.step and not self._done():
            error_console.print(f"Continuing at step {self.progress.step} of {self.total_steps}")
        self._set_training_mode()
        with stop_on_signal(self._request_stop), progress_bar("status") as bar, failures_of_the_system(self._where):
            task = bar.add_task(
                "Training",
                total=self.total_steps,
                completed=self.progress.step,
                visible=self.accelerator.is_main_process,
                status="",
            )
            self._since.started = time.perf_counter()
            while not self._done():
                for window, waited in self._windows():
                    if not self._update(window, waited):
                        break  # the same update again, in smaller parts
                    if self.progress.step % self.options.logging_steps == 0 or self.progress.step == self.total_steps:
                        bar.update(task, status=self._write_log())
                    bar.update(task, completed=self.progress.step)
                    self._validate_and_save()
                    if self._done():
                        break
            # A stop that arrives while the last checkpoint is saved keeps every process from starting the next stage.
            self._stop_if(summed(self.accelerator, self._stop_requested)[0] > 0)
        self._finish()
        return self.progress

    def _new_window(self, loss: float = 0.0) -> LogWindow:
        return LogWindow(self.accelerator.device, loss, overflow_is_handled=self.accelerator.scaler is not None)

    def end_here(self) -> Progress:
        """Take the checkpoints that are there for the end of the training; return where it ended.

        Raises:
            WorkError: none of them is whole.
        """
        self._resume()
        if self.progress.step == 0:
            raise WorkError(f"{self.run.checkpoints}: no checkpoint is whole; give the command again without --finish")
        if self.accelerator.is_main_process:
            error_console.print(f"Ending the training at step {self.progress.step} of {self.total_steps}")
        self._finish()
        return self.progress

    def _where(self) -> str:
        return f"step {self.progress.step + 1} of the training"

    def _done(self) -> bool:
        return self.progress.step >= self.total_steps or self.progress.stopped_early

    def _micro_batches(self, epoch: int) -> EpochBatches:
        return epoch_batches(
            self.lengths,
            self.options.per_device_train_batch_size,
            self.options.seed,
            epoch,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )

    def _windows(self) -> Iterator[tuple[list[CaptionBatch], float]]:
        """Micro-batches of one update and the seconds spent waiting for them, from where the epoch stands."""
        size = self.options.gradient_accumulation_steps
        batches = self._micro_batches(self.progress.epoch)[self.progress.window * size :]
        cut, counts = windows_of(batches, size, self.progress.batch_parts)
        loader = self.loader.load(cut, self.progress.epoch)
        for count in counts:
            started = time.perf_counter()
            yield [next(loader).to(self.accelerator.device) for _ in range(count)], time.perf_counter() - started

    def _update(self, window: Sequence[CaptionBatch], waited: float) -> bool:
        """Make one update; False: the memory is too small, nothing was changed, and batches are smaller from now on."""
        started = time.perf_counter()
        units, images, captions = self._counts(window)
        # Data-parallel training averages gradients over processes; this makes that the mean over all units.
        self.plain_objective.before_update()
        loss_sum = self._add_gradients(window, self.accelerator.num_processes / units)
        if loss_sum is None:
            return False
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.options.max_grad_norm or math.inf)
        self._since.add_loss(self.progress.step + 1, loss_sum, None if norm is None else whole_tensor(norm))
        if self.stepper.step(self.progress.step + 1):
            self.scheduler.step()
            if self.average is not None:
                self.average.update()
        self._since.count(units, images, captions, waited)
        seconds = waited + time.perf_counter() - started
        self.progress.advance(int(images), int(captions), seconds, self.steps_per_epoch)
        return True

    def _add_gradients(self, window: Sequence[CaptionBatch], scale: float) -> torch.Tensor | None:
        """Add the gradients of an update and return its summed loss; None where the memory is too small for it."""
        loss_sum = torch.zeros((), device=self.accelerator.device)
        sums = self.plain_objective.unread_sums()
        try:
            for number, batch in enumerate(window):
                last = number == len(window) - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
                    with around_forward(self.accelerator):
                        loss = self.objective(batch)
                    self.accelerator.backward(loss * scale)
                loss_sum += loss.detach()
            return loss_sum
        except RuntimeError as error:
            # The other processes of several wait for these gradients.
            if not may_retry(self.accelerator) or not is_full_memory(error):
                raise
            sizes = [len(batch.images) for batch in window]
            self.progress.batch_parts = more_parts(sizes, self.progress.batch_parts, self._where())
        # The error, which held what the batch had computed, is gone here.
        self.prepared_optimizer.zero_grad()
        self.plain_objective.restart_sums(sums)
        clear_device_cache(garbage_collection=True)
        return None

    def _counts(self, window: Sequence[CaptionBatch]) -> list[float]:
        """Units of the loss, images and captions of an update over all processes; also agrees on stopping."""
        *counts, stops = self._hosts.summed(
            sum(self.plain_objective.units(batch) for batch in window),
            sum(len(batch.images) for batch in window),
            sum(batch.n_captions for batch in window),
            self._stop_requested or self.run.stop_request.exists(),
        )
        self._stop_agreed = stops > 0
        return counts

    def _set_training_mode(self) -> None:
        self.objective.train()
        for module in frozen_modules(self.captioner):
            module.eval()

    # ---- records, validation, checkpoints ----------------------------------------------------------------------

    def _write_log(self) -> str:
        since, self._since = self._since, self._new_window()
        own_loss, grad_norm = since.read()
        seconds = max(time.perf_counter() - since.started, 1e-9)
        own_sums = self.plain_objective.sums
        loss, *sums = summed(self.accelerator, own_loss, *own_sums.values())
        named_sums = dict(zip(own_sums, sums, strict=True))
        self.plain_objective.restart_sums({})
        row = {
            "step": self.progress.step,
            "epoch": round(self.progress.epoch + self.progress.window / self.steps_per_epoch, 4),
            "loss": loss / since.units,
            "learning_rate": self.scheduler.get_last_lr()[0],
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "images_per_second": since.images / seconds,
            "captions_per_second": since.captions / seconds,
            "data_wait_share": since.waited / seconds,
            "train_seconds": self.progress.train_seconds,
            "peak_memory_bytes": peak_memory_bytes(self.accelerator.device),
            **self.plain_objective.report(named_sums, self.accelerator.num_processes),
        }
        self.log.write(row)
        self.plain_objective.check(row)
        return f"loss {row['loss']:.3f}  {row['images_per_second']:.0f} images/s"

    def _validate_and_save(self) -> None:
        step, at_end = self.progress.step, self.progress.step >= self.total_steps
        epoch_ended = self.progress.window == 0
        due = step % self.options.eval_steps == 0 if self.options.eval_steps else epoch_ended
        improved = False
        if due or at_end:
            improved = self._validate()
        save_due = step % self.options.save_steps == 0 if self.options.save_steps else due
        stop = self._stop_wanted()
        if save_due or improved or self._done() or stop:
            self._save()
        self._stop_if(stop)

    def _request_stop(self, number: int) -> None:
        # Launchers of several processes pass the signal on to those that already have it from the terminal.
        if self._stop_requested and number == signal.SIGINT and self.accelerator.num_processes == 1:
            raise KeyboardInterrupt
        self._stop_requested = True

    def _stop_wanted(self) -> bool:
        # One process need not wait for the others to hear of the signal.
        return self._stop_agreed or (self._stop_requested and self.accelerator.num_processes == 1)

    def _stop_if(self, wanted: bool) -> None:
        if wanted:
            step = self.progress.step
            raise StoppedError(
                f"stopped at step {step} of {self.total_steps}; the same command continues there, and with --finish it "
                "ends the training there"
            )

    def _validate(self) -> bool:
        self._since.read()  # numbers that are none are the update's, not the validation's
        averaged = contextlib.nullcontext() if self.average is None else self.average.in_place()
        with averaged, to_validate(self.whole, self.objective, self.captioner) as objective:
            values = self.validator.values(objective, self.collate)
        self._set_training_mode()
        if not all(map(math.isfinite, values.values())):
            raise WorkError(
                f"step {self.progress.step}: validation gives {values}; lower train.learning_rate, or use "
                "mixed_precision: bf16 instead of fp16"
            )
        row: dict[str, Any] = {"step": self.progress.step}
        row |= {f"validation_{name}": value for name, value in values.items()}
        self.log.write(row | ({"samples": self.validator.samples} if self.validator.samples else {}))
        self.plain_objective.check(row)
        name = self.options.metric_for_best_model
        value, best = values[name], self.progress.best_value
        improved = best is None or (value < best if name == "loss" else value > best)
        if improved:
            self.progress.best_value, self.progress.best_step = value, self.progress.step
            self.progress.bad_validations = 0
        else:
            self.progress.bad_validations += 1
            patience = self.options.early_stopping_patience
            self.progress.stopped_early = patience is not None and self.progress.bad_validations >= patience
        self.validator.say(self.progress.step, values, improved)
        return improved

    def _save(self) -> None:
        self.progress.scheduler = {
            name: value for name, value in self.scheduler.state_dict().items() if name != "lr_lambdas"
        }
        scaler = self.accelerator.scaler
        self.progress.scaler = {} if scaler is None else scaler.state_dict()
        self.progress.average_updates = 0 if self.average is None else self.average.updates
        self.progress.steps_per_epoch = self.steps_per_epoch
        sums = self.plain_objective.sums
        self.progress.unlogged_loss, *totals = summed(self.accelerator, self._since.read()[0], *sums.values())
        self.progress.unlogged_sums = dict(zip(sums, totals, strict=True))
        self.progress.unlogged_units = self._since.units
        save_checkpoint(
            self.run.checkpoints, self.captioner.model, self.optimizer, self.progress, self.average, self.accelerator
        )
        if self.accelerator.is_main_process:
            prune_checkpoints(self.run.checkpoints, self.options.save_total_limit, self.progress.best_step)

    def _resume(self) -> None:
        if self.accelerator.is_main_process:
            self.run.stop_request.unlink(missing_ok=True)
            remove_unfinished(self.run.checkpoints)
            set_damaged_aside(self.run.checkpoints)
        self.accelerator.wait_for_everyone()
        steps = checkpoint_steps(self.run.checkpoints)
        if not steps:
            # Each process its own dropout; also, how the captioner was built must not matter.
            set_seed(self.options.seed, device_specific=True)
            self.log.truncate_after(0)
            return
        path = checkpoint_path(self.run.checkpoints, steps[-1])
        seed = self.options.seed if self._accept_changes else None
        self.progress = load_checkpoint(
            path, self.captioner.model, self.optimizer, self.average, self.accelerator, seed
        )
        fit_progress(self.progress, self.run.checkpoints, self.steps_per_epoch)
        if self.accelerator.is_main_process:
            self._since = self._new_window(self.progress.unlogged_loss)
            self.plain_objective.restart_sums(self.progress.unlogged_sums)
        else:
            # The same names: rows of the log add them up over the processes.
            self.plain_objective.restart_sums(dict.fromkeys(self.progress.unlogged_sums, 0.0))
        self._since.units = self.progress.unlogged_units
        restore_schedule(self.scheduler, self.optimizer, self.progress)
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        self.log.truncate_after(self.progress.step)

    def _finish(self) -> None:
        if self.accelerator.is_main_process and self.progress.best_step is not None:
            set_aside_if_damaged(
                checkpoint_path(self.run.checkpoints, self.progress.best_step), "the last one is taken"
            )
        self.accelerator.wait_for_everyone()
        fit_progress(self.progress, self.run.checkpoints, self.steps_per_epoch)
        best = self.progress.best_step
        averaged = self.average is not None
        step = best if self.options.load_best_model_at_end and best is not None else self.progress.step
        model = self.captioner.model if self.whole is None else self.whole.trainable.captioner.model
        load_weights(checkpoint_path(self.run.checkpoints, step), model, averaged)
        model.eval()
