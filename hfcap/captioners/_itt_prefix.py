"""Models whose picture becomes tokens of the prompt: [prompt with the picture in it][caption], one language model.

LLaVA (Liu et al. 2023, arXiv:2304.08485) made the layout common. Prompt and picture stand once before all captions of
a row (a shared prefix), every caption sees them and itself.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hfcap.captioners._itt_kind import Kind, PromptInputs, expand
from hfcap.captioners.parts import prefix_attention_mask
from hfcap.captioners.step_scores import without_steps
from hfcap.errors import UserError
from hfcap.schema import PackedCaptions


class Prefix(Kind):
    """Any model with `get_image_features` and a placeholder token for the picture.

    This class alone serves models that hfcap has no file for: each caption gets a row of its own in the model's own
    forward, which knows its masks and positions; the picture is still encoded once. Known kinds pack.
    """

    speaks_chat = True
    packs: ClassVar[bool] = False
    tower_names: ClassVar[tuple[str, ...]] = ("vision_tower", "vision_model", "visual", "image_encoder")
    connector_names: ClassVar[tuple[str, ...]] = ("multi_modal_projector", "connector", "embed_vision", "aligner")

    # ---- modules -----------------------------------------------------------------------------------------------

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Everything `get_image_features` may run is vision; the rest is text."""
        inner = self.model.base_model
        vision = [getattr(inner, name) for name in (*self.tower_names, *self.connector_names) if hasattr(inner, name)]
        return {"vision": vision, "connector": [], "text": [*_rest(self.model, vision)]}

    def check(self) -> None:
        """Raise a UserError for a model that takes its picture in another way."""
        name = type(self.model).__name__
        usable = hasattr(self.model, "get_image_features") and self.image_token_id() is not None
        if not usable or "mm_encoder_outputs" not in inspect.signature(self.model.forward).parameters:
            raise UserError(
                f"model.pretrained: hfcap cannot caption with {name}: it does not take the picture as tokens of its "
                "prompt; choose GIT, BLIP-2 (OPT), Florence-2, PaliGemma, SmolVLM, Idefics3, LLaVA or Qwen-VL"
            )
        if int(self.prompt_inputs("").input_ids[-1]) == self.image_token_id():
            raise UserError(f"model.prompt: {name} needs text between picture and caption; give a prompt")

    def positions_before_text(self) -> int:
        """Return the length of prompt and picture, whose last token begins each text."""
        return len(self.prompt_inputs(self.captioner.prompt).input_ids) - 1

    def image_token_id(self) -> int | None:
        """Token that stands for the picture."""
        config = self.model.config
        for key in ("image_token_id", "image_token_index"):
            if getattr(config, key, None) is not None:
                return int(getattr(config, key))
        return None

    # ---- picture -----------------------------------------------------------------------------------------------

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the features that the model puts in place of the picture's tokens."""
        return _stacked(self._image_features(pixel_values))

    def project(self, image_states: torch.Tensor) -> torch.Tensor:
        """Run what stands between `encode` and the language model: (B, S, D) -> (B, tokens of the picture, H)."""
        return image_states

    def features_as_list(self) -> bool:
        """Whether the model hands its image features on as a list of one tensor per picture."""
        return isinstance(self._image_features(self._blank_pixels()), (list, tuple))

    def _image_features(self, pixel_values: torch.Tensor) -> Any:
        output = self.model.get_image_features(pixel_values=pixel_values, return_dict=True)
        return getattr(output, "pooler_output", output)

    def _blank_pixels(self) -> torch.Tensor:
        from PIL import Image

        pixels = self.captioner.image_processor(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
        return pixels.to(self.captioner.device, self.model.dtype)

    # ---- words -------------------------------------------------------------------------------------------------

    def embeddings(self, image_states: torch.Tensor, prompt: PromptInputs) -> torch.Tensor:
        """Embed prompt and picture without the prompt's last token: (B, N, H)."""
        ids = prompt.input_ids[:-1].to(image_states.device)
        in_picture = torch.eq(ids, self.image_token_id() or 0)
        # Some placeholders lie outside the vocabulary.
        words = self.model.get_input_embeddings()(ids.masked_fill(in_picture, 0))
        features = self.project(image_states).to(words.dtype)
        if int(in_picture.sum()) != features.shape[1]:
            raise UserError(
                f"model.pretrained: {type(self.model).__name__} makes {features.shape[1]} states of a picture, but its "
                f"processor leaves {int(in_picture.sum())} places; pictures must not be split or vary in size"
            )
        rows = words.expand(image_states.shape[0], -1, -1)
        return rows.masked_scatter(in_picture[:, None].expand_as(rows), features)

    def positions(self, prompt: PromptInputs, device: torch.device) -> torch.Tensor:
        """Return positions of the whole prompt (..., 1, N + 1), as the model counts them."""
        return torch.arange(len(prompt.input_ids), device=device)[None]

    def mask(self, caption_index: torch.Tensor, n_prefix: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the additive mask over prefix and packed captions."""
        return prefix_attention_mask(caption_index, n_prefix, dtype)

    def decoder_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Run the language model over prefix and packed captions; for unknown kinds logits of one caption per row."""
        if not self.packs:
            return self._logits_in_rows(image_states, packed)
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

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Return the head of the states; those of unknown kinds are logits already."""
        return self.language_model().get_output_embeddings()(states) if self.packs else states

    def language_model(self) -> Any:
        """Return the model whose base takes embeddings, and whose head makes logits."""
        return self.model

    def _logits_in_rows(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Give each caption a row of the model's own forward, which knows its masks and positions best."""
        prompt, device = self.prompt_inputs(self.captioner.prompt), image_states.device
        inside = packed.caption_index >= 0
        per_image, longest = int(packed.caption_index.max()) + 1, int(packed.position_ids.max()) + 1
        count, n_prefix = len(image_states) * per_image, len(prompt.input_ids) - 1
        first_row = torch.arange(len(image_states), device=device)[:, None] * per_image
        rows, columns = (first_row + packed.caption_index)[inside], n_prefix + packed.position_ids[inside]
        ids = expand(prompt.input_ids[None], count, device)
        ids = torch.cat([ids, ids.new_full((count, longest - 1), self.captioner.pad_token_id)], dim=1)
        ids[rows, columns] = packed.input_ids[inside]
        mask = torch.zeros_like(ids)
        mask[:, :n_prefix] = 1
        mask[rows, columns] = 1
        features = self.project(image_states).repeat_interleave(per_image, dim=0)
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            mm_encoder_outputs={"image": self.as_output(features)},
            logits_to_keep=longest,
            use_cache=False,
            **{name: _for_rows(value, n_prefix + 1, ids) for name, value in prompt.extras.items()},
        ).logits
        packed_logits = logits.new_zeros(*packed.input_ids.shape, logits.shape[-1])
        packed_logits[inside] = logits[rows, columns - n_prefix]
        return packed_logits

    # ---- generation --------------------------------------------------------------------------------------------

    def generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate as the model does from the processor's inputs, with the picture's features given."""
        prompt = self.prompt_inputs(self.captioner.prompt)
        batch, device = image_states.shape[0], image_states.device
        before = expand(prompt.input_ids[None, :-1], batch, device)
        ids = torch.cat([before, input_ids.to(device)], dim=1)
        features = self.project(image_states).to(self.model.dtype)
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_encoder_outputs={"image": self.as_output(features)},
            generation_config=config,
            **without_steps(config),
            **{name: expand(value, batch, device) for name, value in prompt.extras.items()},
        )
        return without_prefix(output, before.shape[1])

    def as_output(self, features: torch.Tensor) -> Any:
        """Wrap image features as `get_image_features` returns them."""
        handed_on: Any = list(features) if self.features_as_list() else features
        return BaseModelOutputWithPooling(pooler_output=handed_on)


def without_prefix(output: Any, n_prefix: int) -> Any:
    """Cut the first `n_prefix` tokens off the sequences of a generate output."""
    if isinstance(output, torch.Tensor):
        return output[:, n_prefix:]
    output.sequences = output.sequences[:, n_prefix:]
    return output


def _for_rows(value: torch.Tensor, n_prompt: int, ids: torch.Tensor) -> torch.Tensor:
    """Repeat a processor's output for every row; what it says of each token, it says of captions as of the last one."""
    rows = expand(value, len(ids), ids.device)
    if value.shape != (1, n_prompt):
        return rows
    return torch.cat([rows, rows[:, -1:].expand(-1, ids.shape[1] - n_prompt)], dim=1)


def _stacked(features: Any) -> torch.Tensor:
    return features if isinstance(features, torch.Tensor) else torch.stack(list(features))


def _rest(model: Any, taken: list[nn.Module]) -> list[nn.Module]:
    """Modules that hold the parameters outside `taken`, as few as possible."""
    inside = {id(parameter) for module in taken for parameter in module.parameters()}
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        parameters = list(module.parameters())
        if not parameters:
            return
        if not any(id(parameter) in inside for parameter in parameters):
            found.append(module)
            return
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in inside]
        if own:
            found.append(nn.ParameterList(own))
        for child in module.children():
            if child not in taken:
                visit(child)

    visit(model)
    return found
