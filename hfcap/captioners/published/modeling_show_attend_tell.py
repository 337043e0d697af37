"""Show, Attend and Tell (Xu et al. 2015, arXiv:1502.03044): feature map -> soft attention -> LSTM or GRU.

This file is published beside the weights and runs without hfcap: it imports only torch and transformers. Shapes:
B images, S image states (cells of the feature map), D their width, K captions of an image, A attention width,
E embedding width, H state width, T text positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .modeling_image_encoder import (
    ImageCaptioner,
    ImageCaptionerConfig,
    new_vision_model,
    next_token_loss,
    refuse_unknown,
)

CACHE_FIELDS = [name for name in ("cache", "past_key_values") if name in CausalLMOutputWithPast.__dataclass_fields__]
"""Under which name `generate` takes a step's state from the output: "cache" since transformers 5.24."""


class ShowAttendTellConfig(ImageCaptionerConfig):
    """Configuration of a Show-Attend-Tell captioner; what it shares with others is in ImageCaptionerConfig.

    `vision_feature` is always "patches": every cell of the feature map.

    Args:
        cell: "lstm" or "gru".
        hidden_size: H. embedding_size: E. attention_size: A.
        dropout: on word embeddings and before the head.
        attention_penalty: lambda of the paper's equation 14, the weight of the doubly stochastic regulariser.
        feature_norm: whether a layer norm stands before the decoder. CNNs end in sparse positive features of any
            scale.
    """

    model_type = "show_attend_tell"

    def __init__(
        self,
        vision_width: int = 2048,
        vision_tokens: int = 49,
        vocab_size: int = 1000,
        cell: str = "lstm",
        hidden_size: int = 512,
        embedding_size: int = 512,
        attention_size: int = 512,
        dropout: float = 0.5,
        attention_penalty: float = 1.0,
        feature_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.cell = cell
        self.hidden_size = hidden_size
        self.embedding_size = embedding_size
        self.attention_size = attention_size
        self.dropout = dropout
        self.attention_penalty = attention_penalty
        self.feature_norm = feature_norm
        super().__init__(vision_width=vision_width, vision_tokens=vision_tokens, **kwargs)


class SoftAttention(nn.Module):
    """The paper's equations 4 to 6 and 13 (section 4.2.1): weights over the cells, gated expected context."""

    def __init__(self, config: ShowAttendTellConfig) -> None:
        super().__init__()
        self.image = nn.Linear(config.vision_width, config.attention_size)
        self.state = nn.Linear(config.hidden_size, config.attention_size, bias=False)
        self.score = nn.Linear(config.attention_size, 1, bias=False)
        self.gate = nn.Linear(config.hidden_size, config.vision_width)

    def forward(
        self, hidden: torch.Tensor, keys: torch.Tensor, image_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, K, H), keys (B, S, A) = `image(image_states)`, (B, S, D) -> context (B, K, D), weights (B, K, S)."""
        energies = self.score(torch.tanh(keys[:, None] + self.state(hidden)[:, :, None])).squeeze(-1)
        weights = energies.softmax(-1)
        context = torch.sigmoid(self.gate(hidden)) * torch.matmul(weights.to(image_states.dtype), image_states)
        return context, weights


class LstmCell(nn.Module):
    """LSTM (Hochreiter and Schmidhuber 1997); what words contribute is computed for all positions at once."""

    n_states = 2

    def __init__(self, config: ShowAttendTellConfig) -> None:
        super().__init__()
        self.words = nn.Linear(config.embedding_size, 4 * config.hidden_size)
        self.context = nn.Linear(config.vision_width, 4 * config.hidden_size, bias=False)
        self.state = nn.Linear(config.hidden_size, 4 * config.hidden_size, bias=False)

    def forward(
        self, words: torch.Tensor, context: torch.Tensor, hidden: torch.Tensor, state: torch.Tensor
    ) -> torch.Tensor:
        """Words' part (B, K, 4H), context (B, K, D), output (B, K, H), state (B, K, 2H) with memory -> next state."""
        memory = state.chunk(2, dim=-1)[1]
        gates = words + self.context(context) + self.state(hidden)
        let_in, keep, new, let_out = gates.to(state.dtype).chunk(4, dim=-1)
        memory = torch.sigmoid(keep) * memory + torch.sigmoid(let_in) * torch.tanh(new)
        return torch.cat([torch.sigmoid(let_out) * torch.tanh(memory), memory], dim=-1)


class GruCell(nn.Module):
    """Gated recurrent unit (Cho et al. 2014), in the form of torch's GRUCell."""

    n_states = 1

    def __init__(self, config: ShowAttendTellConfig) -> None:
        super().__init__()
        self.words = nn.Linear(config.embedding_size, 3 * config.hidden_size)
        self.context = nn.Linear(config.vision_width, 3 * config.hidden_size, bias=False)
        self.state = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(
        self, words: torch.Tensor, context: torch.Tensor, hidden: torch.Tensor, state: torch.Tensor
    ) -> torch.Tensor:
        """Words' part (B, K, 3H), context (B, K, D), output (B, K, H), state (the same in float32) -> next state."""
        reset, keep, new = (words + self.context(context)).to(state.dtype).chunk(3, dim=-1)
        old_reset, old_keep, old_new = self.state(hidden).to(state.dtype).chunk(3, dim=-1)
        keep = torch.sigmoid(keep + old_keep)
        new = torch.tanh(new + torch.sigmoid(reset + old_reset) * old_new)
        return new + keep * (state - new)


class DeepOutput(nn.Module):
    """The paper's equation 7 before L_o; tanh and dropout as in the authors' code."""

    def __init__(self, config: ShowAttendTellConfig) -> None:
        super().__init__()
        self.state = nn.Linear(config.hidden_size, config.embedding_size)
        self.context = nn.Linear(config.vision_width, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, words: torch.Tensor, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Previous words (…, E), LSTM outputs (…, H), contexts (…, D) -> (…, E)."""
        return self.dropout(torch.tanh(words + self.state(hidden.to(words.dtype)) + self.context(context)))


@dataclass
class Steps:
    """What a run over several steps gave; entries of step t start behind those of earlier steps along dimension 1.

    Attributes:
        hidden: (B, N, H). context: (B, N, D). weights: (B, N, S). state: (B, K, H or 2H) behind the last step.
    """

    hidden: torch.Tensor
    context: torch.Tensor
    weights: torch.Tensor
    state: torch.Tensor


class RecurrentState:
    """The recurrent state of rows that are being generated, as the cache of `generate`."""

    def __init__(self, value: torch.Tensor, length: int) -> None:
        self.value = value
        self.length = length

    def get_seq_length(self) -> int:
        """Return how many tokens the state has read."""
        return self.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let row i continue the former row `beam_idx[i]`."""
        self.value = self.value.index_select(0, beam_idx.to(self.value.device))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with these rows."""
        self.reorder_cache(indices)


class AttendTellDecoder(PreTrainedModel, GenerationMixin):
    """Attention, recurrent cell and deep output; `generate` runs here, on encoded pictures."""

    config_class = ShowAttendTellConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _is_stateful = True
    _input_embed_layer = "embedding"

    def __init__(self, config: ShowAttendTellConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.feature_norm = nn.LayerNorm(config.vision_width) if config.feature_norm else nn.Identity()
        self.cell = LstmCell(config) if config.cell == "lstm" else GruCell(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.initial_state = nn.Linear(config.vision_width, self.cell.n_states * config.hidden_size)
        self.attention = SoftAttention(config)
        self.output_mlp = DeepOutput(config)
        self.head = nn.Linear(config.embedding_size, config.vocab_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            # As large as a cell of the normed feature map: smaller words are lost beside it in the gates.
            nn.init.normal_(module.weight, std=1.0)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # The cache is a RecurrentState, which forward makes.
        return False

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.head

    def cells(self, image_states: torch.Tensor) -> torch.Tensor:
        """Image states as the encoder gives them -> what the decoder looks at, both (B, S, D)."""
        cells: torch.Tensor = self.feature_norm(image_states)
        return cells

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, T, E)."""
        return self.embedding_dropout(self.embedding(input_ids))

    def run(
        self,
        image_states: torch.Tensor,
        words: Sequence[torch.Tensor],
        state: torch.Tensor | None = None,
        keys: torch.Tensor | None = None,
    ) -> Steps:
        """Run the recurrence.

        Args:
            image_states: `cells` of the encoder's output, (B, S, D).
            words: for each step `cell.words(embedded)` of the rows that go on, (B, K, 4H or 3H); K may fall from step
                to step, then the last rows of each image end.
            state: (B, K, ...) to continue from; by default computed from the mean image state (section 3.1.2).
            keys: `attention.image(image_states)`, where it is already known.
        """
        if keys is None:
            keys = self.attention.image(image_states)
        if state is None:
            first = torch.tanh(self.initial_state(image_states.mean(1)))
            # Kept in float32 whatever the precision of the layers: rounding would add up over the steps.
            state = first.float()[:, None].expand(-1, words[0].shape[1], -1)
        found = []
        for step_words in words:
            arguments = (step_words, state[:, : step_words.shape[1]], keys, image_states)
            if self.gradient_checkpointing and self.training:
                step = self._gradient_checkpointing_func(self._step, *arguments)
            else:
                step = self._step(*arguments)
            found.append(step)
            state = step[2]
        hidden = [step[2][..., : self.config.hidden_size] for step in found]
        context, weights = ([step[number] for step in found] for number in (0, 1))
        return Steps(torch.cat(hidden, 1), torch.cat(context, 1), torch.cat(weights, 1), state)

    def _step(
        self, words: torch.Tensor, state: torch.Tensor, keys: torch.Tensor, image_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Contiguous: one matrix product for all rows instead of one for each image, and the same rounding everywhere.
        hidden = state[..., : self.config.hidden_size].to(words.dtype).contiguous()
        context, weights = self.attention(hidden, keys, image_states)
        return context, weights, self.cell(words, context, hidden, state)

    def forward(
        self,
        input_ids: torch.Tensor,
        image_states: torch.Tensor,
        image_keys: torch.Tensor | None = None,
        cache: RecurrentState | None = None,
        past_key_values: RecurrentState | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Read tokens (B, T), one row per image; `image_states` are its `cells`, `attentions` the weights (B, T, S).

        The state to go on from comes as `cache` or, as before transformers 5.24, as `past_key_values`. Rows are not
        filled up: `attention_mask` says nothing.
        """
        refuse_unknown(self, kwargs)
        before = past_key_values if cache is None else cache
        embedded = self.embed(input_ids)
        words = self.cell.words(embedded)
        state = None if before is None else before.value[:, None]
        steps = self.run(image_states, words.split(1, dim=1), state, image_keys)
        length = input_ids.shape[1] + (0 if before is None else before.get_seq_length())
        output: Any = CausalLMOutputWithPast
        return output(
            logits=self.head(self.output_mlp(embedded, steps.hidden, steps.context)),
            attentions=(steps.weights,),
            **dict.fromkeys(CACHE_FIELDS[:1], RecurrentState(steps.state[:, 0], length)),
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, image_states: Any = None, image_keys: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the arguments of `forward` for the next step of sequences (B, T).

        With the state of an earlier step, only the tokens behind it are read. Where `generate` of some release does
        not hand the state on, everything is read again: slower, and the same words.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "image_states": image_states, "image_keys": image_keys}
        state = next((value for value in kwargs.values() if isinstance(value, RecurrentState)), None)
        if state is not None:
            inputs |= {"input_ids": input_ids[:, state.get_seq_length() :], "cache": state}
        return inputs


class ShowAttendTellForConditionalGeneration(ImageCaptioner):
    """A Show-Attend-Tell captioner for `AutoModelForImageTextToText`; `generate(pixel_values=...)` captions."""

    config_class = ShowAttendTellConfig
    base_model_prefix = "show_attend_tell"

    def __init__(self, config: ShowAttendTellConfig, vision_model: Any = None) -> None:
        super().__init__(config)
        self.vision_model = new_vision_model(config) if vision_model is None else vision_model
        self.decoder: Any = AttendTellDecoder(config)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, V), and the cross-entropy when `labels` (B, T) are given (without the regulariser)."""
        image_states, input_ids = self.states_and_text(pixel_values, image_states, input_ids)
        refuse_unknown(self, kwargs)
        output = self.decoder(input_ids=input_ids, image_states=self.decoder.cells(image_states))
        output.loss = next_token_loss(output.logits, labels)
        return output

    def continue_text(self, image_states: torch.Tensor, input_ids: torch.Tensor, **options: Any) -> Any:
        """As in ImageCaptioner."""
        cells = self.decoder.cells(image_states)
        return self.decoder.generate(
            input_ids=input_ids,
            image_states=cells,
            image_keys=self.decoder.attention.image(cells),
            **options,
        )
