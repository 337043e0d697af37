"""What every captioner family provides, and the parts that are the same for all.

A family file (`hfcap/captioners/<family>.py`) defines one subclass of `Captioner` and names it `REGISTERED`. Shape
letters: B images, S image states, D width, K captions of an image, P positions of a packed row, V vocabulary.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import GenerationConfig

from hfcap import registry
from hfcap.captioners.asking.prompts import PromptDefaults
from hfcap.captioners.asking.thinking import answers
from hfcap.captioners.facts import BaseModel, CardFacts, GeneratedCaption
from hfcap.captioners.probe import generated, may_pack
from hfcap.captioners.shared.linear_layers import layers_below
from hfcap.captioners.shared.metadata import SIDECAR, without_places
from hfcap.captioners.shared.spaces import close_spaces
from hfcap.errors import UserError
from hfcap.files import read_json, write_json
from hfcap.generation.rows import as_rows
from hfcap.generation.verdicts import note_untested_release
from hfcap.recipe.blocks import SAMPLING_ONLY, GenerateOptions, ModelOptions
from hfcap.schema import IMAGE_BACKEND, PackedCaptions

__all__ = ["BaseModel", "Captioner", "CardFacts", "GeneratedCaption"]


class Captioner(PromptDefaults, ABC):
    """A loaded captioner: transformers model, processor and what the family knows about both.

    Attributes:
        model: the transformers model; LoRA layers are injected into it in place.
        processor: image processor and tokenizer as one saved object.
    """

    options_class: ClassVar[type[ModelOptions]]
    parts: ClassVar[tuple[str, ...]]
    model_types: ClassVar[tuple[str, ...]]
    card_facts: ClassVar[CardFacts]
    lora_target_modules: ClassVar[str]
    """Regular expression (peft's full-match form) over module names: the linear layers that 'auto' adapts. Empty: all
    of the language model."""
    publishing_limits: ClassVar[Mapping[str, str]] = {}
    """What is not possible with published models of this family -> the reason; keys: publish, adapter, pipeline."""
    trains_by_gradients: ClassVar[bool] = True
    """False for families that are fitted in one pass instead (captioners/shared/nonparametric.py)."""
    attention_is_fixed: ClassVar[bool] = False
    """True where hfcap's own attention stands in place of the model's, so that no other can be chosen."""
    own_shapes: bool = False
    """True where each image keeps its shape: pixel values and image states are `SizedImages`."""
    sees_one_image: bool = True
    """False where pixel values are not (3, height, width), so that nobody can look at them."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        prompt: str = "",
        base_models: Sequence[BaseModel] = (),
        assembled: bool = False,
    ) -> None:
        note_untested_release()
        self.model = model
        self.processor = processor
        close_spaces(getattr(processor, "tokenizer", None))  # an index of captions has none
        self.ask(prompt)
        self.base_models = list(base_models)
        self.assembled = assembled
        """True when no repository holds these weights as a whole (parts put together, or built from a config)."""
        self._packed = False
        self.verdicts: dict[str, bool] = {}
        """Which faster ways of computing gave the same as the plain ones (probe.py); once settled, no more is tried."""
        self.settled = False

    @classmethod
    def effective_decoding(cls, options: Any, generate: GenerateOptions) -> GenerateOptions | None:
        """Return what a recipe's `model` and `generate` blocks come to, for the card; None where nothing is decoded."""
        return generate

    # ---- what a family must say -------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def build(cls, options: Any, training_captions: Iterable[str]) -> Self:
        """Build from the recipe's `model` block; `training_captions` is read only to train a tokenizer.

        Raises:
            UserError: the base model cannot be found or has no safetensors weights.
        """

    @classmethod
    @abstractmethod
    def from_folder(cls, location: str, revision: str | None, trust_remote_code: bool) -> Self:
        """Load a saved captioner of this family from a folder or a Hub id."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> dict[str, Any]:
        """Return a `model` block that builds the smallest real captioner of this family, for tests."""

    @property
    @abstractmethod
    def start_token_id(self) -> int:
        """Token that training and generation both start from."""

    @property
    @abstractmethod
    def end_token_id(self) -> int:
        """Token that ends a caption; always supervised."""

    @property
    @abstractmethod
    def pad_token_id(self) -> int:
        """Token that fills rows; never supervised."""

    @abstractmethod
    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Return the modules of each part named in `parts`; together they cover all parameters."""

    @abstractmethod
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Run the image encoder: (B, 3, height, width) float -> image states (B, S, D)."""

    @abstractmethod
    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the model's own forward with one caption per row: (B, S, D), (B, T) -> logits (B, T, V).

        Rows begin with the start token and the prompt, and may be filled up at the end with any tokens.
        """

    @abstractmethod
    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate from image states (B, S, D) and start tokens (B, T) by the documented `generate` of the model.

        Returns transformers' generate output; its sequences begin with `input_ids`.
        """

    @property
    def lora_modules_to_save(self) -> list[str]:
        """Modules trained in full besides LoRA because they start from random weights; empty by default."""
        return []

    def language_modules(self) -> list[nn.Module]:
        """Return the language model, whose linear layers LoRA is to reach."""
        return self.part_modules().get("text", [])

    def lora_layers(self) -> list[str]:
        """Return the names of the layers that `lora.target_modules: auto` adapts."""
        names = layers_below(self.model, [self.model] if self.lora_target_modules else self.language_modules())
        return [name for name in names if re.fullmatch(self.lora_target_modules or ".*", name)]

    # ---- what a family may say ---------------------------------------------------------------------------------

    def packed_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Run everything after the encoder but the head over packed captions: (B, S, D) and (B, P) -> (B, P, H).

        Optional: saves reading an image again for each of its captions. `packed_head` of it must equal `plain_logits`
        at every caption's positions; that is checked before it is used.
        """
        raise NotImplementedError

    def packed_head(self, states: torch.Tensor) -> torch.Tensor:
        """Run the head over any number of positions of `packed_states`: (..., H) -> (..., V)."""
        return states

    def fast_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate what `plain_generate` does in less time; optional, and checked before it is used."""
        raise NotImplementedError

    def check_decoding(self, options: GenerateOptions) -> None:  # most families follow all options
        """Raise an OptionError for options that this captioner cannot follow, before the first caption."""

    def identity(self) -> str:
        """Return what captions depend on besides weights, options and prompt; empty where that is all."""
        return ""

    def started_with(self, input_ids: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Return start tokens (B, T) that go on with another word (B,) for each image, for the check of generation."""
        return torch.cat([input_ids, words[:, None]], dim=1)

    def images_of(self, size: tuple[int, int]) -> AbstractContextManager[None]:
        """Compute tensors of images of this (width, height) inside the block; needed only where `own_shapes`."""
        return nullcontext()

    def states_and_penalty(
        self, image_states: torch.Tensor, packed: PackedCaptions
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return `decoder_states`, and a scalar that training adds to the summed cross-entropy (None: none).

        The penalty is a sum over captions, as the cross-entropy is; validation leaves it out.
        """
        return self.decoder_states(image_states, packed), None

    def word_attention(self, image_states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Return where the captioner looked for each token of one caption.

        Args:
            image_states: (1, S, D). token_ids: (1, T), start token and prompt first.

        Returns:
            (T - 1, height, width) over the image's grid; row t belongs to token t + 1. Each map sums to at most 1.

        Raises:
            UserError: the family has no attention from words to places in the image.
        """
        raise UserError(
            f"{self.card_facts.title} has no attention from words to places in the image; heat maps need a captioner "
            "whose decoder reads the image through attention"
        )

    @property
    def positions_before_text(self) -> int:
        """Positions of the text model that stand before every text: those of a prefix, or of an offset."""
        return 0

    @property
    def max_text_tokens(self) -> int | None:
        """Tokens that the text model reads at most, start token and prompt included; None where it has no limit."""
        limit = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return None if limit is None else int(limit) - self.positions_before_text

    def transformers_start_token(self, pixel_values: torch.Tensor, config: GenerationConfig) -> int:
        """Return the token that plain transformers starts a caption from, called as users of the published model do."""
        output = self.model.generate(pixel_values=pixel_values[:1], generation_config=config)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        return int(sequences[0, 0])

    # ---- the same for all families -----------------------------------------------------------------------------

    def logits(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Run everything after the encoder over packed captions: (B, S, D) and (B, P) -> (B, P, V)."""
        return self.head(self.decoder_states(image_states, packed))

    def decoder_states(
        self, image_states: torch.Tensor, packed: PackedCaptions, length: int | None = None
    ) -> torch.Tensor:
        """Run everything after the encoder but the head: (B, S, D) and (B, P) -> (B, P, H).

        Training computes the head only where labels are. Where captions cannot be packed, these are the logits of one
        row per caption, put back to where they are packed, and the head leaves them as they are. `length` is that of
        the rows that these are parts of, which decides for all of them.
        """
        self._packed = self.packs_captions and may_pack(self, image_states, length or packed.input_ids.shape[1])
        if self._packed:
            return self.packed_states(image_states, packed)
        rows = as_rows(packed)
        return rows.packed(self.plain_logits(image_states.repeat_interleave(rows.per_image, dim=0), rows.input_ids))

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Run the head over any number of positions of `decoder_states`: (..., H) -> (..., V)."""
        return self.packed_head(states) if self._packed else states

    def generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate as `plain_generate` does, the fast way where that gives the same (then perhaps `FoundCaptions`)."""
        return generated(self, image_states, input_ids, config)

    @classmethod
    def from_pretrained(cls, options: ModelOptions) -> Self:
        """Load the whole captioner that `model.pretrained` names."""
        assert options.pretrained is not None
        captioner = cls.from_folder(options.pretrained, options.revision, options.trust_remote_code)
        captioner.ask(options.prompt)
        captioner.base_models = [BaseModel(options.pretrained, options.revision, "captioner")]
        return captioner

    @property
    def family(self) -> str:
        """Name that recipes and saved models call this family by."""
        return registry.name_of("captioners", type(self).__module__)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def image_processor(self) -> Any:
        """The processor's image processor."""
        return self.processor.image_processor

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def captions_from_pixels(self) -> bool:
        """Whether plain transformers captions with this model from pixel values, and at most the prompt's tokens."""
        return True

    @property
    def states_dtype(self) -> torch.dtype:
        """Number type of the weights, those that are quantised left out."""
        return next(weight.dtype for weight in self.model.parameters() if weight.is_floating_point())

    @property
    def packs_captions(self) -> bool:
        """Whether the captions of an image can stand in one row, which needs a mask of its own."""
        return type(self).packed_states is not Captioner.packed_states

    @property
    def generates_fast(self) -> bool:
        """Whether there is a faster way than the model's own `generate`."""
        return type(self).fast_generate is not Captioner.fast_generate

    @property
    def prompt_separator(self) -> str:
        """Text between prompt and caption: byte-level tokenizers write the space as part of the next word."""
        return " " if self.prompt.strip() else ""

    def start_token_ids(self, prompt: str | None = None) -> list[int]:
        """Return the start token followed by the prompt's tokens (the captioner's own prompt unless one is given)."""
        text = (self.prompt if prompt is None else prompt).strip()
        prompt_ids = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return [self.start_token_id, *prompt_ids]

    def caption_token_ids(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Tokenise captions as they follow the prompt, without special tokens, each cut to `max_tokens`.

        Text that spells a special token ("<end>", "[SEP]") stays text: captions come from strangers.
        """
        encoded = self.tokenizer(
            [self.prompt_separator + " ".join(text.split()) for text in captions],
            add_special_tokens=False,
            split_special_tokens=True,
        )
        return [ids[:max_tokens] for ids in encoded["input_ids"]]

    def generation_config(self, options: GenerateOptions) -> GenerationConfig:
        """Return transformers' GenerationConfig for the recipe's `generate` block."""
        values = options.model_dump(exclude={"style", *(["seed"] if options.do_sample else SAMPLING_ONLY)})
        return GenerationConfig(
            **values,
            bos_token_id=self.start_token_id,
            decoder_start_token_id=self.start_token_id,
            eos_token_id=self.end_token_id,
            pad_token_id=self.pad_token_id,
            use_cache=True,
        )

    @torch.inference_mode()
    def caption_states(
        self, image_states: torch.Tensor, options: GenerateOptions, prompt: str | None = None
    ) -> list[list[GeneratedCaption]]:
        """Caption encoded images (B, S, D); for each image `num_return_sequences` captions, best first."""
        start = torch.tensor([self.start_token_ids(prompt)], device=image_states.device)
        config = self.generation_config(options)
        config.return_dict_in_generate = True
        config.output_scores = options.num_beams > 1
        output = self.generate(image_states, start.expand(image_states.shape[0], -1), config)
        written = output.sequences[:, start.shape[1] :]
        texts = answers(self.tokenizer, written, self.thinks_first)
        ends = torch.tensor(config.eos_token_id, device=written.device).reshape(-1)
        ended = torch.isin(written, ends).any(dim=1).tolist()
        beam_scores = getattr(output, "sequences_scores", None)
        scores = [None] * len(texts) if beam_scores is None else beam_scores.tolist()
        captions = [
            GeneratedCaption(" ".join(text.split()), score, cut=thinking or not end)
            for (text, thinking), score, end in zip(texts, scores, ended, strict=True)
        ]
        n = options.num_return_sequences
        return [captions[first : first + n] for first in range(0, len(captions), n)]

    def save(self, folder: Path, options: GenerateOptions) -> None:
        """Write weights (safetensors), configuration, processor and the recipe's decoding defaults into `folder`."""
        self.model.generation_config = self.generation_config(options)
        self.model.save_pretrained(folder)
        # transformers notes where the parts were loaded from: folders of this machine, which would be published.
        config = folder / "config.json"
        write_json(config, without_places(read_json(config, "model configuration")))
        self.save_processor(folder)

    def save_processor(self, folder: Path) -> None:
        """Write the processor files and the sidecar."""
        self.processor.save_pretrained(folder)
        write_json(folder / SIDECAR, self.sidecar())

    def sidecar(self) -> dict[str, str]:
        """Return what transformers has no field for, to be kept next to the weights."""
        values = {"captioner": self.family, "prompt": self.template}
        if getattr(self.image_processor, "backend", None) == IMAGE_BACKEND:
            values["image_backend"] = IMAGE_BACKEND
        own_code = not type(self.model).__module__.startswith("transformers.")
        # An adapter's folder holds no code, but whoever loads its base must trust some.
        return values | ({"brings_code": "true"} if own_code else {})

    def take_sidecar(self, values: Mapping[str, str]) -> None:
        """Take over what `sidecar` gave when this captioner, or an adapter for it, was saved."""
        self.ask(values.get("prompt", self.template))
