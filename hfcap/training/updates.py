"""One step of the optimiser: whether it changed the weights, which fp16 may forbid, and memory that is too small."""

from __future__ import annotations

from typing import Any

from hfcap.errors import WorkError
from hfcap.failures.memory import is_full_memory

_SMALLEST_SCALE = 2.0**-10
"""Scale of the loss below which fp16 is given up: gradients that overflow even so are wrong, not large."""


class Stepper:
    """Lets the optimiser change the weights, and says whether it did.

    With fp16 the scaler of the loss makes the optimiser leave everything as it is where a gradient is infinite, and
    tries half the scale at the next batch. Accelerate 1.15 takes a call of `step` for a change, but torch calls its
    fused optimisers always, which look at the gradients on the device. So it is the scale that tells: it falls where
    an update was left out, and only there (`torch.amp.GradScaler.update`).
    """

    def __init__(self, accelerator: Any, optimizer: Any) -> None:
        self.accelerator = accelerator
        self.optimizer = optimizer
        self._scale = 0.0  # unknown

    def step(self, number: int) -> bool:
        """Make an update from the gradients, and forget them; False where fp16 left it out.

        Args:
            number: which update it is.

        Raises:
            WorkError: with fp16, gradients overflow at every scale; or the memory is too small for the optimiser.
        """
        scaler = self.accelerator.scaler
        before = 0.0 if scaler is None else self._scale or float(scaler.get_scale())
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if not is_full_memory(error):
                raise
            # No smaller batch would help, since what batches keep is gone by now; and some weights may have changed.
            raise WorkError(
                f"step {number}: the memory is too small for weights, gradients and the state of the optimiser "
                "together; choose one that keeps less (train.optim: adamw_bnb_8bit, adafactor or sgd), train adapters "
                "(the block lora), or cut them into pieces over several GPUs (recipes/accelerate/fsdp2.yaml); the same "
                "command goes on from the last checkpoint"
            ) from error
        self.optimizer.zero_grad()
        if scaler is None:
            return not self.accelerator.optimizer_step_was_skipped
        after = self._scale = float(scaler.get_scale())  # waits for the device: once an update
        if after < _SMALLEST_SCALE:
            raise WorkError(
                f"step {number}: gradients overflow in fp16, however small the loss is scaled; lower "
                "train.learning_rate, or use mixed_precision: bf16 instead of fp16"
            )
        return after >= before
