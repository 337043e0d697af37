"""Any model with `get_image_features` and a placeholder token for the image, in its own forward and generate.

LLaVA (Liu et al. 2023, arXiv:2304.08485) made the layout common: [prompt with the image in it][caption].
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hfcap.captioners.asking.prompts import CHAT_STYLES
from hfcap.captioners.base import Captioner
from hfcap.captioners.vlm.adapter import CHAT_PROMPT, expand
from hfcap.captioners.vlm.rows import Rows, accepted
from hfcap.errors import UserError
from hfcap.schema import Images, SizedImages


@dataclass(frozen=True, slots=True)
class FeatureForm:
    """How a model hands on the features of an image.

    Attributes:
        listed: as a list of tensors; otherwise as one tensor.
        shapes: of what belongs to one image: of each tensor of a list, such as (S, D), or (rows, ..., D) of one tensor.
        n_deep: how many of Qwen3-VL's deepstack features, of the same shape, come with them.
        fields: names of what else they may come with; forwards ask for some of it, which may be None.
    """

    listed: bool
    shapes: tuple[tuple[int, ...], ...]
    n_deep: int
    fields: tuple[str, ...]

    def as_tensor(self, features: torch.Tensor) -> torch.Tensor:
        """Return features (B, S, D) as one tensor of the model's shape."""
        (shape,) = self.shapes
        return features.reshape(len(features) * shape[0], *shape[1:])

    def as_listed(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Return features (B, S, D) as the model's list of tensors, image after image."""
        lengths = [math.prod(shape[:-1]) for shape in self.shapes]
        return [
            part.reshape(shape)
            for image in features
            for part, shape in zip(image.split(lengths), self.shapes, strict=True)
        ]


class Generic(Rows):
    """Models that hfcap has no file for."""

    speaks_chat = True
    pads_prompts = True
    usual_prompt = CHAT_PROMPT
    styles: ClassVar[Mapping[str, str]] = CHAT_STYLES
    tower_names: ClassVar[tuple[str, ...]] = (
        "vision_tower",
        "vision_model",
        "visual",
        "image_encoder",
        "vision_encoder",
        "vision_embed_tokens",
    )
    connector_names: ClassVar[tuple[str, ...]] = (
        "multi_modal_projector",
        "mm_projector",
        "resampler_model",
        "projector",
        "vision_projection",
        "vision_adapter",
        "vision_final_layernorm",
        "perception_emb_norm",
        "merger",
        "connector",
        "embed_vision",
        "aligner",
        "image_newline",
        "visual_embeddings_table",
    )
    _pixel_axis: int | None = None

    def __init__(self, captioner: Captioner) -> None:
        super().__init__(captioner)
        self._forms: dict[str | None, FeatureForm] = {}

    # ---- modules and checks ------------------------------------------------------------------------------------

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Everything `get_image_features` may run is vision; the rest is text."""
        inner = self.model.base_model
        found = [getattr(inner, name, None) for name in (*self.tower_names, *self.connector_names)]
        vision = [_as_module(part) for part in found if part is not None]
        return {"vision": vision, "connector": [], "text": [*_rest(self.model, vision)]}

    def check_model(self) -> None:
        """Raise a UserError for a model that takes its image in another way."""
        name = type(self.model).__name__
        needed = {
            "a method get_image_features": bool(self._readers()),
            "image_token_id in its configuration": self.image_token_id() is not None,
            "a parameter mm_encoder_outputs of its forward": "mm_encoder_outputs"
            in inspect.signature(self.model.forward).parameters,
        }
        if not all(needed.values()):
            raise UserError(
                f"model.pretrained: hfcap cannot caption with {name}: it does not take the image as tokens of its "
                f"prompt (it lacks {' and '.join(what for what, there in needed.items() if not there)}); choose "
                "another: docs/image_text_to_text.md lists the models that work"
            )
        if not self.part_modules()["vision"]:
            raise UserError(
                f"model.pretrained: hfcap does not find the image encoder of {name}; docs/image_text_to_text.md lists "
                "the models that work"
            )

    def check_prompt(self) -> None:
        """Raise a UserError where captions would begin with the image's placeholder."""
        if int(self.prompt_inputs(self.captioner.prompt).input_ids[-1]) == self.image_token_id():
            name = type(self.model).__name__
            raise UserError(f"model.prompt: {name} needs text between image and caption; give a prompt")

    def image_token_id(self) -> int | None:
        """Token that stands for the image."""
        config = self.model.config
        for key in ("image_token_id", "image_token_index"):
            if getattr(config, key, None) is not None:
                return int(getattr(config, key))
        return None

    def processor_text(self, prompt: str) -> str:
        """Return the placeholder and the prompt, for chat models without a template."""
        return f"{getattr(self.processor, 'image_token', '')}{prompt}" if self.speaks_chat else prompt

    # ---- image -----------------------------------------------------------------------------------------------

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the features that the model puts in place of the image's tokens; deepstack features next to them."""
        count = len(pixel_values)
        # Once is enough: what reads an image of one shape reads all.
        with nullcontext() if self._forms else self._nothing_but_vision():
            output = self._read(self.plain_pixels(pixel_values), count)
        self.note_form(output, count)
        features = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        return torch.cat([_per_image(feature, count) for feature in features], dim=-1)

    def project(self, image_states: torch.Tensor) -> torch.Tensor:
        """Run what stands between `encode` and the language model: (B, S, D) -> (B, tokens of the image, H)."""
        return image_states

    def pixel_axis(self) -> int:
        """Ask the processor: MiniCPM's puts the patches of all images into one strip.

        Raises:
            UserError: what it makes of two images is not that of one image twice.
        """
        if self._pixel_axis is None:
            prompt = self.prompt_inputs(self.captioner.prompt)
            of_two = self.processed(self.captioner.prompt.strip(), [self.blank()] * 2)
            shapes = {name: getattr(value, "shape", ()) for name, value in of_two.items()}
            one, two = prompt.pixel_shape, shapes["pixel_values"]
            axes = [axis for axis, size in enumerate(one) if two == (*one[:axis], 2 * size, *one[axis + 1 :])]
            apart = [name for name, (first, *rest) in _shapes(prompt.extras) if shapes.get(name) != (2 * first, *rest)]
            if len(axes) != 1 or apart:
                raise UserError(
                    f"model.pretrained: what the processor of {type(self.model).__name__} makes of two images "
                    f"({', '.join(apart) or 'pixel_values'}) is not twice what it makes of one; choose another: "
                    "docs/image_text_to_text.md lists the models that work"
                )
            self._pixel_axis = axes[0]
        return self._pixel_axis

    def image_extras(self) -> tuple[str, ...]:
        """Grids and sizes stay: positions are counted from them. Masks over pixels go."""
        return tuple(name for name in self.prompt_inputs(self.captioner.prompt).extras if name.startswith("pixel_"))

    def image_arguments(self, image_states: Images) -> dict[str, Any]:
        """Return the image's features as `get_image_features` returns them."""
        if isinstance(image_states, SizedImages):
            outputs = []
            for states, size in zip(image_states.values, image_states.sizes, strict=True):
                with self.images_of(size):
                    outputs.append(self.as_output(self.project(states[None]).to(self.model.dtype)))
            return {"mm_encoder_outputs": {"image": _of_several(outputs)}}
        return {"mm_encoder_outputs": {"image": self.as_output(self.project(image_states).to(self.model.dtype))}}

    def as_output(self, features: torch.Tensor) -> Any:
        """Wrap image features (B, S, D) as `get_image_features` returns them."""
        form = self.form()
        parts: list[Any] = []
        for part in features.chunk(1 + form.n_deep, dim=-1):
            parts.append(form.as_listed(part) if form.listed else form.as_tensor(part))
        output: Any = BaseModelOutputWithPooling(pooler_output=parts[0])
        for name in form.fields:
            setattr(output, name, None)
        if form.n_deep:
            output["deepstack_features"] = parts[1:]
        return output

    def form(self) -> FeatureForm:
        """Return how the model hands on features: as `encode` saw it, or found out once with one image.

        Raises:
            UserError: the model makes more or fewer states of it than the prompt has places.
        """
        key = self._form_key()
        if key not in self._forms:
            with torch.no_grad():
                pixels = self.captioner.image_processor(images=self.blank(), return_tensors="pt")["pixel_values"]
                pixels = torch.stack(list(pixels.values)) if isinstance(pixels, SizedImages) else pixels
                pixels = pixels.to(self.captioner.device, self.model.dtype)
                with self._nothing_but_vision():
                    output = self._read(self.plain_pixels(pixels), 1)
            self.note_form(output, 1)
        return self._forms[key]

    def _form_key(self) -> str | None:
        if self.size is None:
            return None
        with self.captioner.asked(""):  # whatever the prompt is, and be it another for each image
            return self.layout(self.size)

    def note_form(self, output: Any, count: int) -> None:
        """Note how the features of one of `count` images of one shape are handed on."""
        key = self._form_key()
        if key not in self._forms:
            features, deep = output.pooler_output, getattr(output, "deepstack_features", None) or ()
            listed = isinstance(features, (list, tuple))
            if listed:
                shapes = tuple(tuple(part.shape) for part in features[: len(features) // count])
            else:
                shapes = ((features.shape[0] // count, *features.shape[1:]),)
            prompt = self.prompt_inputs(self.captioner.prompt).input_ids
            n_places = int(torch.eq(prompt, self.image_token_id() or 0).sum())
            n_states = _per_image(features, count).shape[1]
            if n_places != n_states:
                raise UserError(
                    f"model.pretrained: {type(self.model).__name__} makes {n_states} states of an image, but its "
                    f"processor leaves {n_places} places; images must not be split or vary in size"
                )
            self._forms[key] = FeatureForm(listed, shapes, len(deep), _further_fields(output))

    @contextmanager
    def _nothing_but_vision(self) -> Iterator[None]:
        """Raise a UserError where reading an image runs a layer of the part that may be trained after stored states.

        The parts are told apart by the names that models usually give them.
        """
        parts = self.part_modules()
        inside = {id(module) for part in (*parts["vision"], *parts["connector"]) for module in part.modules()}
        ran: list[str] = []
        hooks = [
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
            for name, module in self.model.named_modules()
            if id(module) not in inside and next(module.parameters(recurse=False), None) is not None
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if ran:
            raise UserError(
                f"model.pretrained: {type(self.model).__name__} reads images with {ran[0]}, which hfcap does not "
                "know as a part of its image encoder; choose another: docs/image_text_to_text.md lists the "
                "models that work"
            )

    def _readers(self) -> list[Any]:
        found = [holder for holder in (self.model, self.model.base_model) if hasattr(holder, "get_image_features")]
        readers = [holder.get_image_features for holder in found]
        # Some only hand on whatever they are given, and do not say what that may be.
        named = [reader for reader in readers if "pixel_values" in inspect.signature(reader).parameters]
        return named or readers

    def _read(self, pixels: torch.Tensor, count: int) -> Any:
        """Run the model's own vision part over the pixels of `count` images, in the processor's shape."""
        prompt = self.prompt_inputs(self.captioner.prompt)
        # VideoLLaMA 3's outer one hands on without naming what the inner one needs.
        reader = max(self._readers(), key=lambda reader: len(accepted(reader, prompt.extras)))
        extras = {name: expand(value, count, pixels.device) for name, value in accepted(reader, prompt.extras).items()}
        lacking = _needed(reader) - {"pixel_values", *extras}
        if lacking:
            raise UserError(
                f"model.pretrained: {type(self.model).__name__} reads images with {', '.join(sorted(lacking))}, which "
                "its processor does not give; choose another: docs/image_text_to_text.md lists the models that work"
            )
        output = reader(pixel_values=pixels, return_dict=True, **extras)
        deep = getattr(output, "deepstack_features", None) or ()
        as_layers = all(isinstance(features, (list, tuple, torch.Tensor)) for features in deep)
        whole = as_layers and not any(isinstance(features[0], int) for features in deep)
        if getattr(output, "pooler_output", None) is None or not whole or "visual_indicator_features" in output:
            raise UserError(
                f"model.pretrained: hfcap cannot keep the image features of {type(self.model).__name__}, which hands "
                "on more than the states of the image's tokens; docs/image_text_to_text.md lists the models that work"
            )
        return output


def _further_fields(output: Any) -> tuple[str, ...]:
    known = {field.name for field in fields(BaseModelOutputWithPooling)}
    return tuple(field.name for field in fields(output) if field.name not in known)


def _needed(function: Any) -> set[str]:
    """Return the names of parameters that have no default."""
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty}


def _per_image(features: Any, count: int) -> torch.Tensor:
    """Put features, a tensor or a list of tensors of any length, together: (count, S, D)."""
    if isinstance(features, torch.Tensor):
        return features.reshape(count, -1, features.shape[-1])
    rows = [part.reshape(-1, part.shape[-1]) for part in features]
    each = len(rows) // count
    return torch.stack([torch.cat(rows[first : first + each]) for first in range(0, len(rows), each)])


def _of_several(outputs: list[Any]) -> Any:
    """Put what is handed on of images of several shapes together, as if the model had read them all at once."""
    first = outputs[0]
    first["pooler_output"] = _joined([output.pooler_output for output in outputs])
    if getattr(first, "deepstack_features", None):
        layers = zip(*(output.deepstack_features for output in outputs), strict=True)
        first["deepstack_features"] = [_joined([*layer]) for layer in layers]
    return first


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], list):
        return [tensor for part in parts for tensor in part]
    if len({part.shape[1:] for part in parts}) > 1:
        parts = [part.flatten(0, -2) for part in parts]
    return torch.cat(parts)


def _shapes(values: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Size]]:
    return [(name, value.shape) for name, value in values.items()]


def _as_module(value: Any) -> nn.Module:
    return nn.ParameterList([value]) if isinstance(value, nn.Parameter) else value


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
