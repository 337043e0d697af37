"""EVA (Paischer et al. 2024, arXiv:2410.07170): LoRA begins with what the adapted layers see of the training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import initialize_lora_eva_weights

from hfcap.captioners.base import Captioner
from hfcap.data.loading import BatchLoader, CaptionBatch, CaptionDataset, Collate, batch_keys, epoch_batches
from hfcap.errors import UserError
from hfcap.training.objectives.cross_entropy import CrossEntropy

_BATCHES = 16
"""Batches of the first epoch that the layers are watched on; they are gone through again until nothing moves."""


def begin_with_data(peft_model: Any, captioner: Captioner, dataset: CaptionDataset, batch_size: int, seed: int) -> None:
    """Give the adapters of `init_lora_weights: eva` their first weights; the model is where it will be trained.

    Every process sees the same batches, and so begins with the same weights.

    Raises:
        UserError: the batches hold fewer tokens than the adapters have ranks.
    """
    collate = Collate(captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id, dataset.inputs)
    chosen = epoch_batches(batch_keys(dataset), batch_size, seed, 0)[:_BATCHES]
    batches = list(BatchLoader(dataset, collate, 0, captioner.device).load(chosen, 0))
    _require_tokens(batches, peft_model)
    objective = CrossEntropy(captioner, 0.0)

    def forward(_model: Any, number: torch.Tensor) -> None:
        """Let the layers see one batch; PEFT's hooks take what goes into them."""
        objective(batches[int(number)].to(captioner.device))

    def rows(layer_input: Any, _number: torch.Tensor, _name: str) -> torch.Tensor:
        """Return what goes into a layer, one token a row (tokens, width), float32."""
        states = layer_input if isinstance(layer_input, torch.Tensor) else layer_input[0]
        return states.flatten(0, -2).float()

    initialize_lora_eva_weights(
        peft_model,
        list(torch.arange(len(batches))),
        forward_fn=forward,
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=rows,
        gather_distributed_inputs=False,
        show_progress_bar=False,
    )


def _require_tokens(batches: Sequence[CaptionBatch], peft_model: Any) -> None:
    most = max(batch.packed.input_ids.numel() for batch in batches)
    config = next(iter(peft_model.peft_config.values()))
    rank = max(config.r, *config.rank_pattern.values()) if config.rank_pattern else config.r
    wanted = round(rank * config.eva_config.rho)
    if most < wanted:
        raise UserError(
            f"lora.init_lora_weights: eva needs at least {wanted} tokens in a batch for r: {rank}, and the largest has "
            f"{most}; raise train.per_device_train_batch_size, or lower lora.r"
        )
