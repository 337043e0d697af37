"""Florence-2 (Xiao et al. 2023, arXiv:2311.06242): an encoder reads image and task, a decoder writes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from hfcap.captioners.shared.masks import packed_attention_mask
from hfcap.captioners.vlm.adapter import VlmAdapter
from hfcap.generation.step_scores import drop_step_scores
from hfcap.schema import PackedCaptions


class Florence2(VlmAdapter):
    """Florence2ForConditionalGeneration; the prompt is a task such as <CAPTION>, read by the encoder once per image."""

    model_types = ("florence2",)
    usual_prompt = "<CAPTION>"  # microsoft/Florence-2-base
    styles: ClassVar[Mapping[str, str]] = {"short": "<CAPTION>", "detailed": "<MORE_DETAILED_CAPTION>"}

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """DaViT, the projector, and BART with its head."""
        inner = self.model.model
        return {
            "vision": [inner.vision_tower],
            "connector": [inner.multi_modal_projector],
            "text": [inner.language_model, self.model.lm_head],
        }

    def start_token_ids(self, prompt: str) -> list[int]:
        """The decoder's start token, and the token that the tokenizer begins every text with."""
        start = int(self.model.config.text_config.decoder_start_token_id)
        return [start, int(self.processor.tokenizer.bos_token_id)]

    def adjust_generation(self, config: GenerationConfig) -> None:
        """Force the second start token, as the published generation_config.json does."""
        start, bos = self.start_token_ids("")
        config.decoder_start_token_id = start
        config.bos_token_id = config.forced_bos_token_id = bos

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return DaViT's feature map as states, before the projector."""
        return self.model.model.vision_tower(pixel_values).last_hidden_state.flatten(2).transpose(1, 2)

    def _read(self, image_states: torch.Tensor) -> torch.Tensor:
        """Encode image and task: (B, S, D) -> (B, image and task tokens, H)."""
        inner = self.model.model
        side = math.isqrt(image_states.shape[1])
        features = inner.multi_modal_projector(image_states.transpose(1, 2).unflatten(2, (side, -1)))
        ids = self.prompt_inputs(self.captioner.prompt).input_ids.to(image_states.device)
        words = self.model.get_input_embeddings()(ids).expand(image_states.shape[0], -1, -1)
        in_image = (ids == self.model.config.image_token_id)[:, None].expand_as(words)
        embeddings = words.masked_scatter(in_image, features.to(words.dtype))
        return inner.language_model.encoder(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
        ).last_hidden_state

    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the model's own forward, its encoder's output given."""
        return self.model(**self._encoded(image_states), decoder_input_ids=input_ids, use_cache=False).logits

    def packed_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Run encoder and decoder; cross-attention keys and values are computed once per image."""
        read = self._read(image_states)
        decoder = self.model.model.language_model.decoder
        with _restarting_positions(decoder, packed.position_ids):
            return decoder(
                input_ids=packed.input_ids,
                attention_mask=packed_attention_mask(packed.caption_index, read.dtype),
                encoder_hidden_states=read,
                use_cache=False,
            ).last_hidden_state

    def packed_head(self, states: torch.Tensor) -> torch.Tensor:
        """Return the language model's head of the states."""
        return self.model.lm_head(states)

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate as the model does, its encoder's output given; the second start token is forced as there."""
        return self._generate(image_states, input_ids, config, {})

    def fast_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate without keeping the scores of every step."""
        return self._generate(image_states, input_ids, config, drop_step_scores(config))

    def started_with(self, input_ids: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Leave the start tokens as they are: the second one is forced."""
        return input_ids

    def _generate(
        self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig, faster: dict[str, Any]
    ) -> Any:
        output = self.model.generate(
            **self._encoded(image_states), decoder_input_ids=input_ids[:, :1], generation_config=config, **faster
        )
        return _without_forced_step(output)

    def _encoded(self, image_states: torch.Tensor) -> dict[str, Any]:
        read = self._read(image_states)
        mask = torch.ones(read.shape[:2], dtype=torch.long, device=read.device)
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=read), "attention_mask": mask}


@contextmanager
def _restarting_positions(decoder: Any, position_ids: torch.Tensor) -> Iterator[None]:
    """Let BART's decoder, which counts through the row, count again for each caption of it."""

    def restart(_module: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**named, "position_ids": position_ids}

    def one_per_row(_module: Any, _arguments: Any, positions: torch.Tensor) -> torch.Tensor:
        # BART expects the same positions in all rows, and puts an axis for them in front.
        return positions.reshape(*position_ids.shape, -1)

    hooks = [
        decoder.embed_positions.register_forward_pre_hook(restart, with_kwargs=True),
        decoder.embed_positions.register_forward_hook(one_per_row),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _without_forced_step(output: Any) -> Any:
    """Take the step of the forced token out of a generate output: the caller gave that token."""
    for name in ("scores", "logits"):
        if getattr(output, name, None) is not None:
            setattr(output, name, getattr(output, name)[1:])
    if getattr(output, "beam_indices", None) is not None:
        output.beam_indices = output.beam_indices[:, 1:]
    return output
