"""Write the weights of PAC-S or PAC-S++ as a CLIP folder of transformers, for `clip_score.model`.

    python scripts/convert_pac_s.py CHECKPOINT BASE -o FOLDER
    python scripts/convert_pac_s.py "PAC++_clip_ViT-L-14.pth" openai/clip-vit-large-patch14 -o pac_s_plus_plus

CHECKPOINT is what the authors publish (Sarto et al. 2023, 2024; github.com/aimagelab/pacscore). It is a pickle, read by
`torch.load(weights_only=True)`, which takes tensors and plain containers alone and runs nothing; a file that holds
anything else is refused. BASE is the CLIP that it was trained from, a folder or Hub id: openai/clip-vit-base-patch32
for both ViT-B/32, laion/CLIP-ViT-L-14-laion2B-s32B-b82K for PAC-S's ViT-L/14, openai/clip-vit-large-patch14 for
PAC-S++'s. It gives architecture, tokenizer and image processor; each of its weights is replaced.

PAC-S++ adds LoRA (Hu et al. 2022) of rank r with alpha 1 to all layers, so that W + B A / r is what counts. The
authors' evaluation adds it in the attention and in the convolution; the multi-layer perceptrons it takes as merged
already (their `Linear` is merged when the model is built, before the checkpoint is loaded into it), and uses their
stored weights alone. So does this script: it gives what their published values were computed with.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hfcap.errors import UserError
from hfcap.files import folder_being_written

Tensors = dict[str, torch.Tensor]

_FLAT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_PARTS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_ALREADY_MERGED = re.compile(r"\.mlp\.c_(?:fc|proj)\.")


def read_checkpoint(path: Path) -> Tensors:
    """Return the tensors of a checkpoint's `state_dict`.

    Raises:
        UserError: it cannot be read, holds more than tensors and plain containers, or no such dictionary.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{path}: cannot be read as weights alone ({reason}); give the authors' file, whole and unchanged"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no 'state_dict' of tensors; give the authors' checkpoint")
    return {str(name).removeprefix("module."): value.float() for name, value in state.items()}


def with_lora(state: Tensors) -> Tensors:
    """Return the weights with B A / r added where the authors' evaluation adds it, without the LoRA tensors."""
    merged = dict(state)
    for name in [name for name in state if name.endswith("lora_A")]:
        lora_a, lora_b = merged.pop(name), merged.pop(f"{name[:-1]}B")
        stem = name.removesuffix("lora_A")
        # in_proj_weight_lora_A belongs to in_proj_weight, out_proj.lora_A to out_proj.weight.
        target = stem.removesuffix("_") if stem.endswith("_") else f"{stem}weight"
        if _ALREADY_MERGED.search(name):
            continue
        weight = state[target]
        # A convolution's factors have a multiple of the rank: r times the size of its kernel.
        rank = len(lora_a) // (weight.shape[-1] if weight.ndim == 4 else 1)
        merged[target] = weight + (lora_b @ lora_a).view(weight.shape) / rank
    return merged


def renamed(state: Tensors) -> Tensors:
    """Return the weights under the names, and in the layout, of transformers' CLIPModel."""
    found: Tensors = {}
    for name, tensor in state.items():
        if name in _FLAT:
            found[_FLAT[name]] = tensor
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif block := _BLOCK.fullmatch(name.replace("in_proj_", "in_proj.")):
            visual, number, part, kind = block.groups()
            layer = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
            if part == "attn.in_proj":
                for one, value in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{layer}.self_attn.{one}_proj.{kind}"] = value.contiguous()
            else:
                found[f"{layer}.{_PARTS.get(part, part)}.{kind}"] = tensor
    return found


def fill(model: Any, weights: Tensors, checkpoint: Path, base: str) -> None:
    """Give a model the weights.

    Raises:
        UserError: a weight is missing, too many, or of another shape.
    """
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
    if wrong:
        raise UserError(
            f"{checkpoint}: not a checkpoint of {base}: {len(wrong):,} weights differ, for example {wrong[0]} "
            f"({given.get(wrong[0])} there, {own.get(wrong[0])} in the base); give the model that it was trained from"
        )
    model.load_state_dict(weights, strict=False)


def write_clip(weights: Tensors, checkpoint: Path, base: str, folder: Path) -> None:
    """Write a CLIP folder: weights under transformers' names, tokenizer and image processor of the base model.

    Raises:
        UserError: the base model cannot be loaded, or the weights are not of it.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

    from hfcap.schema import IMAGE_BACKEND

    try:
        model: Any = CLIPModel.from_pretrained(base, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(base)
        image_processor: Any = AutoImageProcessor.from_pretrained(base, backend=IMAGE_BACKEND)
    except (OSError, ValueError) as error:
        raise UserError(f"{base}: the base CLIP cannot be loaded ({error}); give its folder or Hub id") from None
    fill(model, weights, checkpoint, base)
    model.save_pretrained(folder)
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)


def convert(checkpoint: Path, base: str, folder: Path) -> None:
    """Write the CLIP folder.

    Raises:
        UserError: the checkpoint cannot be used, or is not of the base model.
    """
    weights = renamed(with_lora(read_checkpoint(checkpoint)))
    with folder_being_written(folder) as temporary:
        write_clip(weights, checkpoint, base, temporary)


def main() -> None:
    """Convert one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the authors' file (.pth)")
    parser.add_argument("base", help="folder or Hub id of the CLIP that it was trained from")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    try:
        convert(arguments.checkpoint, arguments.base, arguments.output)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    print(f"{arguments.output}: give it as clip_score.model, with clip_score.scale=2")


if __name__ == "__main__":
    main()
