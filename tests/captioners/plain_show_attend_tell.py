"""Show, Attend and Tell for one caption, word by word as the paper states it, on torch's own LSTM and GRU cells."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call


class PlainCaption:
    """Loss, attention weights and regulariser of one caption of one image.

    Attributes:
        loss: summed negative log-likelihood of the words and the end token.
        penalty: (1 - attention summed over the words) squared, summed over cells.
        alphas: attention before each word and the end token.
    """

    def __init__(self, captioner: Any, cells: torch.Tensor, start: list[int], caption: list[int]) -> None:
        decoder = captioner.model.decoder
        self.decoder = decoder
        # Section 3.1.1 has raw features; the norm on them is ours.
        if captioner.model.config.feature_norm:
            centred = cells - cells.mean(1, keepdim=True)
            scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
            cells = scaled * decoder.feature_norm.weight + decoder.feature_norm.bias
        self.is_lstm = captioner.model.config.cell == "lstm"
        width = captioner.model.config.hidden_size
        first = torch.tanh(decoder.initial_state(cells.mean(0)))
        hidden, memory = first[:width], first[width:]
        inputs = [*start, *caption]
        targets = [*[None] * (len(start) - 1), *caption, captioner.end_token_id]
        self.loss = torch.zeros(())
        self.alphas: list[torch.Tensor] = []
        for word, target in zip(inputs, targets, strict=True):
            embedded = decoder.embedding.weight[word]
            alpha, context = self._attend(hidden, cells)
            hidden, memory = self._advance(torch.cat([embedded, context]), hidden, memory)
            deep = decoder.output_mlp
            mixed = torch.tanh(embedded + deep.state(hidden) + deep.context(context))
            logits = decoder.head.weight @ mixed + decoder.head.bias
            if target is not None:
                self.loss = self.loss - logits.log_softmax(-1)[target]
                self.alphas.append(alpha)
        self.penalty = (1 - torch.stack(self.alphas).sum(0)).square().sum()

    def _attend(self, hidden: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        attention = self.decoder.attention
        energies = []
        for cell in cells:
            together = attention.image.weight @ cell + attention.image.bias + attention.state.weight @ hidden
            energies.append((attention.score.weight[0] * torch.tanh(together)).sum())
        alpha = torch.stack(energies).softmax(0)
        beta = torch.sigmoid(attention.gate.weight @ hidden + attention.gate.bias)
        return alpha, beta * sum(weight * cell for weight, cell in zip(alpha, cells, strict=True))

    def _advance(
        self, inputs: torch.Tensor, hidden: torch.Tensor, memory: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cell = self.decoder.cell
        weights = {
            "weight_ih": torch.cat([cell.words.weight, cell.context.weight], 1),
            "bias_ih": cell.words.bias,
            "weight_hh": cell.state.weight,
            "bias_hh": torch.zeros_like(cell.words.bias) if cell.state.bias is None else cell.state.bias,
        }
        sizes = (inputs.shape[0], hidden.shape[0])
        if self.is_lstm:
            output, memory = functional_call(nn.LSTMCell(*sizes), weights, (inputs[None], (hidden[None], memory[None])))
            return output[0], memory[0]
        return functional_call(nn.GRUCell(*sizes), weights, (inputs[None], hidden[None]))[0], memory
