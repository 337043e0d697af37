"""BLIP-2 (Li et al. 2023, arXiv:2301.12597): ViT, Q-Former, and a language model that reads the Q-Former's queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationConfig

from hfcap.captioners.asking.prompts import CHAT_STYLES
from hfcap.captioners.shared.pretrained import require_positions
from hfcap.captioners.vlm.adapter import CHAT_PROMPT, expand
from hfcap.captioners.vlm.prefix import Prefix
from hfcap.captioners.vlm.rows import without_prefix
from hfcap.errors import UserError


class Blip2(Prefix):
    """Blip2ForConditionalGeneration with a decoder-only language model (OPT)."""

    model_types = ("blip-2",)
    usual_prompt = ""
    styles: ClassVar[Mapping[str, str]] = {}
    speaks_chat = False

    def prepare(self) -> None:
        """Older repositories leave the number of queries out; the image would get no places."""
        if self.processor.num_query_tokens is None:
            self.processor.num_query_tokens = self.model.config.num_query_tokens

    def check_model(self) -> None:
        """Raise a UserError for Flan-T5: its relative positions cannot restart within a row."""
        if not self.model.config.use_decoder_only_language_model:
            raise UserError(
                "model.pretrained: a Q-Former before an encoder-decoder language model (Flan-T5) is not supported; "
                "choose one with OPT, such as Salesforce/blip2-opt-2.7b, or with Vicuna"
            )
        require_positions(self.model.language_model, "model.pretrained")

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """ViT; Q-Former with its queries and projection; language model."""
        model = self.model
        return {
            "vision": [model.vision_model],
            "connector": [nn.ParameterList([model.query_tokens]), model.qformer, model.language_projection],
            "text": [model.language_model],
        }

    def generating_models(self) -> list[Any]:
        """Also the language model, whose `generate` BLIP-2's own calls."""
        return [self.model, self.model.language_model]

    def prompt_separator(self, prompt: str) -> str:
        """A space, where there is a prompt to continue."""
        return " " if prompt.strip() else ""

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the ViT's last hidden state, before the Q-Former."""
        return self.model.vision_model(pixel_values=pixel_values).last_hidden_state

    def project(self, image_states: torch.Tensor) -> torch.Tensor:
        """Let the queries read the image, and project them to the language model's width."""
        model = self.model
        queries = model.query_tokens.expand(image_states.shape[0], -1, -1)
        read = model.qformer(
            query_embeds=queries,
            encoder_hidden_states=image_states.to(queries.dtype),
            encoder_attention_mask=torch.ones(image_states.shape[:2], dtype=torch.long, device=image_states.device),
            **self.words_beside_queries(queries),
        ).last_hidden_state[:, : queries.shape[1]]
        # The Q-Former stays in float32 in half-precision models. Quantised weights are whole numbers: not followed.
        weight = model.language_projection.weight
        return model.language_projection(read.to(weight.dtype) if weight.is_floating_point() else read)

    def words_beside_queries(self, queries: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return arguments of the Q-Former for words that it reads besides its queries (B, Q, D): none."""
        return {}

    def language_model(self) -> Any:
        """Return OPT itself; BLIP-2's forward wants pixels."""
        return self.model.language_model

    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the language model over queries, prompt and caption, as Blip2ForConditionalGeneration.forward does."""
        prefix = self.embeddings(image_states, self.prompt_inputs(self.captioner.prompt))
        rows = torch.cat([prefix, self.model.get_input_embeddings()(input_ids)], dim=1)
        output = self.model.language_model(
            inputs_embeds=rows,
            attention_mask=torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device),
            use_cache=False,
        )
        return output.logits[:, prefix.shape[1] :]

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate as Blip2ForConditionalGeneration.generate does."""
        return self._generate(image_states, input_ids, config, {})

    def started_with(self, input_ids: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Go on with the words after the prompt, which stands in embeddings."""
        return torch.cat([input_ids, words[:, None]], dim=1)

    def _generate(
        self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig, faster: dict[str, Any]
    ) -> Any:
        prompt = self.prompt_inputs(self.captioner.prompt)
        prefix = self.embeddings(image_states, prompt)
        before = expand(prompt.input_ids[None, :-1], image_states.shape[0], image_states.device)
        ids = torch.cat([before, input_ids], dim=1)
        output = self.model.language_model.generate(
            input_ids=ids,
            inputs_embeds=torch.cat([prefix, self.model.get_input_embeddings()(input_ids)], dim=1),
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            **faster,
        )
        return without_prefix(output, before.shape[1])


class InstructBlip(Blip2):
    """InstructBLIP (Dai et al. 2023, arXiv:2305.06500) with Vicuna: the Q-Former reads the instruction, too."""

    model_types = ("instructblip",)
    usual_prompt = CHAT_PROMPT
    styles: ClassVar[Mapping[str, str]] = CHAT_STYLES

    def words_beside_queries(self, queries: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the instruction in the Q-Former's own tokens."""
        extras = self.prompt_inputs(self.captioner.prompt).extras
        ids, mask = (
            expand(extras[name], len(queries), queries.device)
            for name in ("qformer_input_ids", "qformer_attention_mask")
        )
        return {"input_ids": ids, "attention_mask": torch.cat([mask.new_ones(queries.shape[:2]), mask], dim=1)}
