"""Known models whose image becomes tokens of the prompt: prompt and image stand once before all captions of a row.

Every caption sees them and itself (a shared prefix), where `Generic` gives each caption a row of its own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import GenerationConfig

from hfcap.captioners.probe import penalises_repetition
from hfcap.captioners.shared.masks import prefix_attention_mask
from hfcap.captioners.vlm.adapter import PromptInputs
from hfcap.captioners.vlm.generic import Generic
from hfcap.errors import UserError
from hfcap.generation.early_exit import leaving
from hfcap.generation.shared_prefix import SharedPrefix
from hfcap.schema import PackedCaptions


class Prefix(Generic):
    """A model that hfcap knows masks and positions of, so that it packs."""

    shares_prefix: ClassVar[bool] = True
    """Whether the prefix is read as any text is: causally, at positions 0, 1, 2, ..."""

    def embeddings(self, image_states: torch.Tensor, prompt: PromptInputs) -> torch.Tensor:
        """Embed prompt and image without the prompt's last token: (B, N, H)."""
        self.check_prompt()
        ids = prompt.input_ids[:-1].to(image_states.device)
        in_image = torch.eq(ids, self.image_token_id() or 0)
        # Some placeholders lie outside the vocabulary.
        words = self.model.get_input_embeddings()(ids.masked_fill(in_image, 0))
        features = self.project(image_states).to(words.dtype)
        if int(in_image.sum()) != features.shape[1]:
            raise UserError(
                f"model.pretrained: {type(self.model).__name__} makes {features.shape[1]} states of an image, but its "
                f"processor leaves {int(in_image.sum())} places; images must not be split or vary in size"
            )
        rows = words.expand(image_states.shape[0], -1, -1)
        return rows.masked_scatter(in_image[:, None].expand_as(rows), features)

    def positions(self, prompt: PromptInputs, device: torch.device) -> torch.Tensor:
        """Return positions of the whole prompt (..., 1, N + 1), as the model counts them."""
        return torch.arange(len(prompt.input_ids), device=device)[None]

    def mask(self, caption_index: torch.Tensor, n_prefix: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the additive mask over prefix and packed captions."""
        return prefix_attention_mask(caption_index, n_prefix, dtype)

    def packed_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Run the language model over prefix and packed captions."""
        prompt = self.prompt_inputs(self.captioner.prompt)
        prefix = self.embeddings(image_states, prompt)
        words = self.model.get_input_embeddings()(packed.input_ids)
        batch, n_prefix, _ = prefix.shape
        at = self.positions(prompt, words.device)
        before = at[..., :-1].expand(*at.shape[:-2], batch, n_prefix)
        hidden = self.language_model().base_model(
            inputs_embeds=torch.cat([prefix, words], dim=1),
            attention_mask=self.mask(packed.caption_index, n_prefix, words.dtype),
            position_ids=torch.cat([before, at[..., -1:] + packed.position_ids], dim=-1),
            use_cache=False,
        )
        return hidden.last_hidden_state[:, n_prefix:]

    def packed_head(self, states: torch.Tensor) -> torch.Tensor:
        """Return the head of the states."""
        return self.language_model().get_output_embeddings()(states)

    def fast_generate(self, image_states: Any, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate with one prefix for all rows of an image, where that can be."""
        if len(image_states) == config.num_beams == config.num_return_sequences == 1:
            return self.plain_generate(image_states, input_ids, config)  # one row has nothing to share or to leave
        of_one_length = isinstance(image_states, torch.Tensor)
        # The model's own generate also forbids to repeat the prompt.
        if self.shares_prefix and of_one_length and not penalises_repetition(config):
            language_model = self.language_model()
            prefix = self.embeddings(image_states, self.prompt_inputs(self.captioner.prompt))
            shared = SharedPrefix.read(language_model, prefix)
            if shared is not None:
                with shared.in_front_of(language_model):
                    return language_model.generate(
                        **shared.inputs(input_ids), generation_config=config, **leaving(config, shared.keep)
                    )
        return super().fast_generate(image_states, input_ids, config)

    def language_model(self) -> Any:
        """Return the model whose base takes embeddings, and whose head makes logits."""
        return self.model
