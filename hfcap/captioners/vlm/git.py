"""GIT (Wang et al. 2022, arXiv:2205.14100): image states stand before the words of one transformer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from hfcap.captioners.shared.masks import prefix_attention_mask
from hfcap.captioners.shared.tokenizers import wrap_texts
from hfcap.captioners.vlm.adapter import VlmAdapter
from hfcap.generation.step_scores import drop_step_scores
from hfcap.schema import PackedCaptions


class Git(VlmAdapter):
    """GitForCausalLM: the prompt is the beginning of the caption; image states see one another, words look back."""

    model_types = ("git",)
    prompt_in_rows = True

    def prepare(self) -> None:
        """Let the tokenizer write [CLS] before a text and nothing after it: GIT's prompts go on with the caption."""
        tokenizer = self.processor.tokenizer
        tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token
        tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
        wrap_texts(tokenizer, start=True, end=False)

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """CLIP image encoder, projection, and the transformer with its head."""
        git = self.model.git
        temporal = [git.img_temporal_embedding] if hasattr(git, "img_temporal_embedding") else []
        return {
            "vision": [git.image_encoder],
            "connector": [git.visual_projection, *temporal],
            "text": [git.embeddings, git.encoder, self.model.output],
        }

    def start_token_ids(self, prompt: str) -> list[int]:
        """[CLS] and the prompt's tokens."""
        tokenizer = self.processor.tokenizer
        start = int(tokenizer.bos_token_id)
        text = prompt.strip()
        return [start, *(tokenizer(text, add_special_tokens=False)["input_ids"] if text else [])]

    def prompt_separator(self, prompt: str) -> str:
        """A space, where there is a prompt to continue."""
        return " " if prompt.strip() else ""

    def adjust_generation(self, config: GenerationConfig) -> None:
        """Nothing: without a prompt, `generate` starts from bos_token_id, which is set already."""
        config.decoder_start_token_id = None

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the image encoder's last hidden state, before the projection."""
        return self.model.git.image_encoder(pixel_values).last_hidden_state

    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the model's own forward, its image encoder replaced by the states it gave before."""
        with _encoder_returning_its_input(self.model.git):
            output = self.model(input_ids=input_ids, pixel_values=image_states[:, None], use_cache=False)
        return output.logits[:, -input_ids.shape[1] :]

    def packed_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Run the transformer over image and packed words; positions count words only."""
        git = self.model.git
        prefix = git.visual_projection(image_states)
        words = git.embeddings(input_ids=packed.input_ids, position_ids=packed.position_ids)
        n_prefix = prefix.shape[1]
        mask = prefix_attention_mask(packed.caption_index, n_prefix, words.dtype, bidirectional=True)
        hidden = git.encoder(torch.cat([prefix.to(words.dtype), words], dim=1), attention_mask=mask, use_cache=False)
        return hidden.last_hidden_state[:, n_prefix:]

    def packed_head(self, states: torch.Tensor) -> torch.Tensor:
        """Return GIT's output layer of the states."""
        return self.model.output(states)

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate as the model does, its image encoder replaced by the states it gave before."""
        return self._generate(image_states, input_ids, config, {})

    def fast_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate without keeping the scores of every step."""
        return self._generate(image_states, input_ids, config, drop_step_scores(config))

    def _generate(
        self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig, faster: dict[str, Any]
    ) -> Any:
        with _encoder_returning_its_input(self.model.git):
            return self.model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                # Four dimensions, as of an image: GIT takes five for a film.
                pixel_values=image_states[:, None],
                generation_config=config,
                **faster,
            )


class _States(nn.Module):
    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """Return the states that stand in for a film of one image."""
        return BaseModelOutput(last_hidden_state=pixel_values[:, 0])


@contextmanager
def _encoder_returning_its_input(git: Any) -> Iterator[None]:
    encoder = git.image_encoder
    git.image_encoder = _States()
    try:
        yield
    finally:
        git.image_encoder = encoder
