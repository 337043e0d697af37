"""Any model of transformers' AutoModelForImageTextToText: GIT, BLIP-2, Florence-2, PaliGemma, SmolVLM, Qwen-VL, ...

What differs between kinds of models stands in `vlm/`; this file chooses the kind by the model type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import AutoModelForImageTextToText, GenerationConfig, GitProcessor

from hfcap.captioners.base import BaseModel, Captioner, CardFacts, GeneratedCaption
from hfcap.captioners.shared.pretrained import config_from_mapping, new_image_processor
from hfcap.captioners.shared.tokenizers import special_token_ids, train_tokenizer
from hfcap.captioners.vlm.adapter import VlmAdapter
from hfcap.captioners.vlm.blip2 import Blip2, InstructBlip
from hfcap.captioners.vlm.florence2 import Florence2
from hfcap.captioners.vlm.generic import Generic
from hfcap.captioners.vlm.git import Git
from hfcap.captioners.vlm.kosmos2 import Kosmos2
from hfcap.captioners.vlm.loading import MODEL_TYPES, load_model, load_processor
from hfcap.captioners.vlm.mllama import Mllama
from hfcap.captioners.vlm.prefix_kinds import Idefics3, Llava, PaliGemma
from hfcap.captioners.vlm.qwen import QwenVL
from hfcap.errors import UserError
from hfcap.recipe.block_base import PositiveInt
from hfcap.recipe.blocks import GenerateOptions, ModelOptions, TokenizerOptions
from hfcap.schema import PackedCaptions

ADAPTERS: tuple[type[VlmAdapter], ...] = (
    Git,
    Blip2,
    InstructBlip,
    Florence2,
    PaliGemma,
    Idefics3,
    Llava,
    QwenVL,
    Kosmos2,
    Mllama,
)


class ImageTextToTextOptions(ModelOptions):
    """Keys of `model`: `pretrained`, or `from_config` (GIT) to train from random weights."""

    from_config: dict[str, Any] | None = Field(
        None, description="GitConfig's keys with model_type: git, for training from scratch"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number type of the loaded weights; bfloat16 halves the memory of frozen ones (LoRA)"
    )
    quantization: Literal["4bit", "8bit"] | None = Field(
        None, description="QLoRA: frozen weights in 4 or 8 bits; needs lora, a GPU and the package bitsandbytes"
    )
    image_size: PositiveInt | None = Field(
        None,
        description="side of the square that images are resized to; by default only where models take any shape",
    )

    freezing_keys: ClassVar[tuple[str, ...]] = ("quantization",)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.pretrained is None) == (self.from_config is None):
            raise ValueError("give exactly one of pretrained and from_config")
        return self


class ImageTextToText(Captioner):
    """A model with its own processor. Parts: vision, connector (between vision and words) and text."""

    options_class = ImageTextToTextOptions
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
        kind = next((kind for kind in ADAPTERS if model.config.model_type in kind.model_types), Generic)
        self.image_size = image_size
        self.kind = kind(self)
        self.kind.check_model()
        self.kind.prepare()
        if image_size is None:
            self.image_size = self.kind.usual_image_size()
            self.kind = kind(self)
        self.kind.check()
        self.sees_one_image = self.kind.sees_one_image()
        self._end_token_id = self.kind.end_token_id()
        # The recipe says how captions are generated. `generate` would fill gaps from what the base model came with.
        for holder in self.kind.generating_models():
            holder.generation_config = self.generation_config(GenerateOptions())

    # ---- building ----------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, options: ImageTextToTextOptions, training_captions: Iterable[str]) -> Self:
        """Load `pretrained`, or build `from_config` with a tokenizer trained on the captions."""
        if options.from_config is not None:
            return cls._from_config(options, options.from_config, training_captions)
        assert options.pretrained is not None
        origin = (options.pretrained, options.revision, options.trust_remote_code)
        model = load_model(*origin, options.dtype, options.quantization)
        base = BaseModel(options.pretrained, options.revision, "captioner")
        captioner = cls(model, load_processor(*origin), options.prompt, [base], image_size=options.image_size)
        captioner.kind.check_prompt()
        return captioner

    @classmethod
    def _from_config(
        cls, options: ImageTextToTextOptions, values: dict[str, Any], training_captions: Iterable[str]
    ) -> Self:
        if values.get("model_type") != "git":
            raise UserError(
                f"model.from_config: model_type is {values.get('model_type')!r}, but only 'git' is trained from "
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
        return cls(load_model(*origin, None, None), load_processor(*origin))

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

    def sidecar(self) -> dict[str, str]:
        """Also keep the size of images, and how the processor is called."""
        values = super().sidecar()
        if self.image_size is not None:
            values["image_size"] = str(self.image_size)
        return values | self.kind.processor_notes()

    def take_sidecar(self, values: Mapping[str, str]) -> None:
        """Also take over the size of images."""
        super().take_sidecar(values)
        if "image_size" in values:
            if not values["image_size"].isdecimal():
                raise UserError(f"hfcap.json: image_size must be a whole number, not {values['image_size']!r}")
            self.image_size = int(values["image_size"])
            self.kind = type(self.kind)(self)
            self.sees_one_image = self.kind.sees_one_image()

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
        return int(self.tokenizer.pad_token_id)

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

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return what the vision part gives: before the connector where the kind knows it, else after it."""
        return self.kind.encode(self._in_number_type(pixel_values))

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

    def transformers_start_token(self, pixel_values: torch.Tensor, config: GenerationConfig) -> int:
        """Return the token that the model's own `generate` starts the caption from, given the processor's inputs."""
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

    def _in_number_type(self, values: torch.Tensor) -> torch.Tensor:
        # Pixels and stored states come as float32; the weights may be bfloat16.
        vision = next(self.part_modules()["vision"][0].parameters())
        return values.to(vision.dtype) if vision.is_floating_point() else values

    def caption_states(
        self, image_states: torch.Tensor, options: GenerateOptions, prompt: str | None = None
    ) -> list[list[GeneratedCaption]]:
        """Caption encoded images; another prompt takes the place of the captioner's own for the call."""
        own = self.prompt
        self.prompt = own if prompt is None else prompt
        try:
            return super().caption_states(image_states, options)
        finally:
            self.prompt = own


REGISTERED = ImageTextToText
