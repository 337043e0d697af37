"""Any model of transformers' AutoModelForImageTextToText: GIT, BLIP-2, Florence-2, PaliGemma, SmolVLM, Qwen-VL, ...

What differs between kinds of models stands in `vlm/`; this file chooses the kind by the model type.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, GenerationConfig, GitProcessor

from hfcap.captioners.base import BaseModel, Captioner, CardFacts, GeneratedCaption
from hfcap.captioners.probe import may_pad
from hfcap.captioners.shared.pretrained import config_from_mapping, copy_remote_code, new_image_processor
from hfcap.captioners.shared.tokenizers import special_token_ids, token_number, train_tokenizer
from hfcap.captioners.vlm.adapter import VlmAdapter
from hfcap.captioners.vlm.generic import Generic
from hfcap.captioners.vlm.generic_kinds import ADAPTERS as ADAPTERS
from hfcap.captioners.vlm.git import Git
from hfcap.captioners.vlm.loading import MODEL_TYPES, limit_pixels, load_model, load_processor, pixel_limits
from hfcap.captioners.vlm.options import ImageTextToTextOptions as ImageTextToTextOptions
from hfcap.errors import UserError, shown
from hfcap.files import read_json_object
from hfcap.generation.padded_prompts import of_like_length
from hfcap.generation.prompt_parts import by_prompt, joined
from hfcap.progress import error_console
from hfcap.recipe.blocks import GenerateOptions, TokenizerOptions
from hfcap.schema import PackedCaptions, SizedImages

_CHAT_TOKENS = 128
"""Room for a sentence or two of a model that nobody has told to be short."""

OWN_SHAPE = "own shape"
"""What hfcap.json says of images that keep their shape."""


class ImageTextToText(Captioner):
    """A model with its own processor. Parts: vision, connector (between vision and words) and text."""

    options_class = ImageTextToTextOptions
    answers_prompts = True
    parts = ("vision", "connector", "text")
    model_types = tuple(sorted(MODEL_TYPES))
    card_facts = CardFacts(
        title="Image-text-to-text",
        summary="A vision-language model of transformers: the image's states stand in the prompt of a language model "
        "(GIT, BLIP-2, PaliGemma, SmolVLM, Qwen-VL), or an encoder reads image and task (Florence-2).",
        paper_title="GIT: A Generative Image-to-text Transformer for Vision and Language",
        paper_url="https://arxiv.org/abs/2205.14100",
        bibtex="""@article{wang2022git,
  title   = {{GIT}: A Generative Image-to-text Transformer for Vision and Language},
  author  = {Wang, Jianfeng and Yang, Zhengyuan and Hu, Xiaowei and Li, Linjie and Lin, Kevin and Gan, Zhe and
             Liu, Zicheng and Liu, Ce and Wang, Lijuan},
  journal = {Transactions on Machine Learning Research},
  year    = {2022}
}""",
        paper_model_types=("git",),
    )
    lora_target_modules = ""
    adapters: ClassVar[tuple[type[VlmAdapter], ...]] = ADAPTERS
    """Kinds that are told by their model type; for all others `Generic`. A family in another package gives its own."""
    auto_class: ClassVar[Any] = AutoModelForImageTextToText
    """What loads the model."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        prompt: str = "",
        base_models: Iterable[BaseModel] = (),
        assembled: bool = False,
        image_size: int | None = None,
    ) -> None:
        super().__init__(model, processor, prompt, list(base_models), assembled)
        kind = next((kind for kind in self.adapters if model.config.model_type in kind.model_types), Generic)
        self.image_size = image_size
        self.kind = kind(self)
        self.kind.check_model()
        self.kind.prepare()
        self.own_shapes = image_size is None and self.kind.shape_matters()
        self.kind.check()
        self.sees_one_image = not self.own_shapes and self.kind.sees_one_image()
        self._end_token_id = self.kind.end_token_id()
        # The recipe says how captions are generated. `generate` would fill gaps from what the base model came with.
        for holder in self.kind.generating_models():
            holder.generation_config = self.generation_config(GenerateOptions())

    def __copy__(self) -> Self:
        """A copy may get another model: its adapter computes with that one."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.kind = copy.copy(self.kind)
        other.kind.captioner = other
        return other

    # ---- building ----------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, options: ImageTextToTextOptions, training_captions: Iterable[str]) -> Self:
        """Load `pretrained`, or build `from_config` with a tokenizer trained on the captions."""
        if options.from_config is not None:
            return cls._from_config(options, options.from_config, training_captions)
        assert options.pretrained is not None
        origin = (options.pretrained, options.revision, options.trust_remote_code)
        model = load_model(*origin, options.dtype, options.quantization, cls.auto_class, cls.model_types)
        base = BaseModel(options.pretrained, options.revision, "captioner")
        processor = load_processor(*origin)
        limit_pixels(processor.image_processor, options.min_pixels, options.max_pixels)
        captioner = cls(model, processor, options.prompt, [base], image_size=options.image_size)
        captioner.kind.check_prompt()
        return captioner

    @classmethod
    def _from_config(
        cls, options: ImageTextToTextOptions, values: dict[str, Any], training_captions: Iterable[str]
    ) -> Self:
        if values.get("model_type") != "git":
            raise UserError(
                f"model.from_config: model_type is {shown(values.get('model_type'))}, but only 'git' is trained from "
                "scratch; give pretrained for other models"
            )
        tokenizer = train_tokenizer(options.tokenizer or TokenizerOptions(), training_captions)
        special = {
            "vocab_size": len(tokenizer),
            **special_token_ids(tokenizer),
        }
        config = config_from_mapping({**values, **special}, "model.from_config")
        processor = GitProcessor(new_image_processor(config.vision_config.image_size), tokenizer)
        return cls(AutoModelForImageTextToText.from_config(config), processor, options.prompt, assembled=True)

    @classmethod
    def from_folder(cls, location: str, revision: str | None, trust_remote_code: bool) -> Self:
        """Load a saved model with its processor, in the number type it is stored in."""
        origin = (location, revision, trust_remote_code)
        return cls(load_model(*origin, None, None, cls.auto_class, cls.model_types), load_processor(*origin))

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """A GIT of two layers and width 32, 32-pixel images."""
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        return {
            "from_config": {
                "model_type": "git",
                "vision_config": {**shape, "image_size": 32, "patch_size": 16},
                **shape,
                "max_position_embeddings": 64,
            },
            "tokenizer": {"vocab_size": 400},
        }

    def save_processor(self, folder: Path) -> None:
        """Also copy code that came with the model, next to a whole model."""
        super().save_processor(folder)
        if (folder / "config.json").is_file():
            copy_remote_code(self.model, folder)

    def sidecar(self) -> dict[str, str]:
        """Also keep the size of images or their limits, and how the processor is called."""
        values = super().sidecar()
        if self.image_size is not None:
            values["image_size"] = str(self.image_size)
        elif self.own_shapes:
            # An adapter's base may have been published with a square, or with other limits.
            values |= {"images": OWN_SHAPE, **pixel_limits(self.processor.image_processor)}
        return values | self.kind.processor_notes()

    def take_sidecar(self, values: Mapping[str, str]) -> None:
        """Also take over the size of images."""
        super().take_sidecar(values)
        for name in ("image_size", "min_pixels", "max_pixels"):
            if not values.get(name, "1").isdecimal():
                raise UserError(f"{name} must be a whole number, not {shown(values[name])}")
        if "image_size" in values or values.get("images") == OWN_SHAPE:
            least, most = (int(values[name]) if name in values else None for name in ("min_pixels", "max_pixels"))
            limit_pixels(self.processor.image_processor, least, most)
            self.image_size = int(values["image_size"]) if "image_size" in values else None
            self.own_shapes = self.image_size is None and self.kind.shape_matters()
            self.kind = type(self.kind)(self)
            self.kind.prepare()
            self.sees_one_image = not self.own_shapes and self.kind.sees_one_image()

    @classmethod
    def usual_decoding(cls, folder: Path) -> dict[str, Any]:
        """Chat models write until they are done, and plain search is what their authors evaluate them with."""
        chats = any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))
        model_type = read_json_object(folder / "config.json", "configuration of the model").get("model_type")
        kind = next((kind for kind in cls.adapters if model_type in kind.model_types), Generic)
        return {"num_beams": 1, "max_new_tokens": _CHAT_TOKENS} if chats and kind.speaks_chat else {}

    def take_usual_prompt(self) -> None:
        """Ask as the kind's authors do, and say so."""
        self.prompt = self.kind.usual_prompt
        if self.prompt:
            error_console.print(
                f"note: no prompt is saved with {self.model.config.model_type}; hfcap asks {self.prompt!r} "
                "(--prompt asks otherwise)",
                markup=False,
                soft_wrap=True,
            )

    @property
    def thinks_first(self) -> bool:
        """Whether the chat template puts the model into the middle of thinking."""
        return self.kind.thinks_first()

    def style_prompt(self, style: str) -> str:
        """Return the instruction, or the task of models that know tasks."""
        if style not in self.kind.styles:
            known = ", ".join(self.kind.styles) or "none: it takes no instructions"
            raise UserError(
                f"style {style}: {self.model.config.model_type} has no prompt for it; choose one of its styles "
                f"({known}), or give a prompt of your own"
            )
        return self.kind.styles[style]

    @property
    def captions_from_pixels(self) -> bool:
        """Only GIT reads pixel values alone; all others need the prompt that their processor makes."""
        return isinstance(self.kind, Git) and not self.prompt.strip()

    @property
    def packs_captions(self) -> bool:
        """Kinds that hfcap has no packing for give each caption a row."""
        return self.kind.packs

    # ---- tokens and images -----------------------------------------------------------------------------------

    @property
    def start_token_id(self) -> int:
        """First token of every caption's row; the last of the prompt where the prompt stands once before all rows."""
        return self.start_token_ids()[0]

    @property
    def end_token_id(self) -> int:
        """End of a reply in the chat template, or the model's own end token."""
        return self._end_token_id

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's pad token."""
        return token_number(self.tokenizer.pad_token_id, "pad_token_id")

    @property
    def prompt_separator(self) -> str:
        """Text between prompt and caption."""
        return self.kind.prompt_separator(self.prompt)

    @property
    def image_processor(self) -> Any:
        """The processor's image processor, made to give one (3, height, width) per image where it does not."""
        return self.kind.image_processor()

    def start_token_ids(self, prompt: str | None = None) -> list[int]:
        """Return the tokens that a caption's row begins with."""
        return self.kind.start_token_ids(self.prompt if prompt is None else prompt)

    def generation_config(self, options: GenerateOptions) -> GenerationConfig:
        """Return the GenerationConfig, with the start tokens of this kind of model."""
        config = super().generation_config(options)
        self.kind.adjust_generation(config)
        return config

    @property
    def positions_before_text(self) -> int:
        """Prompt and image, where they stand before every text in the same model."""
        return self.kind.positions_before_text()

    def language_modules(self) -> list[nn.Module]:
        """The model that reads words, without other senses' encoders and heads next to it, where it can be told."""
        text, decoder = self.part_modules()["text"], self.model.get_decoder()
        inside = {id(parameter) for module in text for parameter in module.parameters()}
        apart = decoder is not self.model and all(id(parameter) in inside for parameter in decoder.parameters())
        return [decoder] if apart else text

    # ---- the model ---------------------------------------------------------------------------------------------

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Image encoder, what stands between it and the words, and the language model with its head."""
        return self.kind.part_modules()

    def encode(self, pixel_values: Any) -> Any:
        """Return what the vision part gives: before the connector where the kind knows it, else after it."""
        if not isinstance(pixel_values, SizedImages):
            return self.kind.encode(self._in_number_type(pixel_values))
        states: dict[int, torch.Tensor] = {}
        for numbers, values in self._alike(pixel_values):
            with self.kind.images_of(pixel_values.sizes[numbers[0]]):
                states |= dict(zip(numbers, self.kind.encode(self._in_number_type(values)), strict=True))
        return SizedImages(tuple(states[number] for number in range(len(states))), pixel_values.sizes)

    def images_of(self, size: tuple[int, int]) -> AbstractContextManager[None]:
        """Prompt and places are those of images of this size inside the block."""
        return self.kind.images_of(size)

    def _alike(self, images: SizedImages) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield numbers and values of images that the processor says the same of: one batch of the model's."""
        for numbers in self.kind.of_one_layout(images.sizes):
            yield numbers, torch.stack(images[numbers].values)

    def decoder_states(self, image_states: Any, packed: PackedCaptions, length: int | None = None) -> torch.Tensor:
        """Run everything after the encoder but the head, images with equally many tokens and one prompt together."""
        if packed.prompts is not None and not self.kind.prompt_in_rows:
            length = packed.input_ids.shape[1]
            found_parts = []
            for part in by_prompt(packed):
                with self.asked(part.prompt):
                    states = self.decoder_states(image_states[part.images], part.packed, length)
                    found_parts.append((part, states))
            return joined(found_parts, packed)
        if not isinstance(image_states, SizedImages):
            return super().decoder_states(image_states, packed, length)
        found: dict[int, torch.Tensor] = {}
        for numbers, states in self._alike(image_states):
            with self.kind.images_of(image_states.sizes[numbers[0]]):
                found |= dict(zip(numbers, super().decoder_states(states, packed.rows(numbers), length), strict=True))
        return torch.stack([found[number] for number in range(len(found))])

    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the model's own forward after the captioner's own prompt."""
        return self.kind.plain_logits(self._in_number_type(image_states), input_ids)

    def packed_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Run connector and language model up to its head."""
        return self.kind.packed_states(self._in_number_type(image_states), packed)

    def packed_head(self, states: torch.Tensor) -> torch.Tensor:
        """Run the head."""
        return self.kind.packed_head(states)

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate after the captioner's own prompt, of which `input_ids` is the end."""
        return self.kind.plain_generate(self._in_number_type(image_states), input_ids, config)

    def fast_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate the same in less time."""
        return self.kind.fast_generate(self._in_number_type(image_states), input_ids, config)

    def started_with(self, input_ids: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Return start tokens that go on with another word for each image."""
        return self.kind.started_with(input_ids, words)

    def transformers_start_token(self, pixel_values: Any, config: GenerationConfig) -> int:
        """Return the token that the model's own `generate` starts the caption from, given the processor's inputs."""
        if isinstance(pixel_values, SizedImages):
            with self.kind.images_of(pixel_values.sizes[0]):
                return self.transformers_start_token(pixel_values.values[0][None], config)
        prompt = self.kind.prompt_inputs(self.prompt)
        ids = prompt.input_ids[None].to(self.device)
        pixels = self.kind.plain_pixels(self._in_number_type(pixel_values[:1]))
        extras = {name: value.to(self.device) for name, value in prompt.extras.items()}
        output = self.model.generate(
            pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, **extras
        )
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        before = 0 if self.model.config.is_encoder_decoder else ids.shape[1] - len(self.start_token_ids())
        return int(sequences[0, before])

    def _in_number_type(self, values: Any) -> Any:
        # Pixels and stored states come as float32; the weights may be bfloat16.
        if isinstance(values, SizedImages):
            return values.mapped(self._in_number_type)
        vision = next(self.part_modules()["vision"][0].parameters())
        return values.to(vision.dtype) if vision.is_floating_point() else values

    def caption_states(
        self, image_states: Any, options: GenerateOptions, prompt: str | None = None
    ) -> list[list[GeneratedCaption]]:
        """Caption encoded images; another prompt takes the place of the captioner's own for the call."""
        with self.asked(prompt):
            if not isinstance(image_states, SizedImages):
                return super().caption_states(image_states, options)
            found: dict[int, list[GeneratedCaption]] = {}
            for numbers in self._read_together(image_states, options):
                some: Any = image_states[numbers]
                alike = len(self.kind.of_one_layout(some.sizes)) == 1
                states = torch.stack(some.values) if alike else some
                with self.kind.images_of(some.sizes[0]) if alike else nullcontext():
                    found |= dict(zip(numbers, super().caption_states(states, options), strict=True))
            return [found[number] for number in range(len(found))]

    def _read_together(self, images: SizedImages, options: GenerateOptions) -> list[list[int]]:
        """Return numbers of images that are one batch: of one layout, or of prompts of like length."""
        layouts = self.kind.of_one_layout(images.sizes)
        if len(layouts) > 1 and self.kind.pads_prompts and may_pad(self, images, options):
            return of_like_length([*map(self.kind.n_prompt_tokens, images.sizes)])
        return layouts


REGISTERED = ImageTextToText
