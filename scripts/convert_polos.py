"""Write the authors' checkpoint of Polos as a folder for `polos.model`.

    python -m scripts.convert_polos CHECKPOINT TEXT CLIP -o FOLDER
    python -m scripts.convert_polos reprod/reprod.ckpt princeton-nlp/sup-simcse-roberta-base \
        openai/clip-vit-base-patch32 -o polos

CHECKPOINT is what the authors publish (Wada et al. 2024; github.com/keio-smilab24/Polos), with `hparams.yaml` next to
it, which must say that it was trained as their configuration says: a mixture of RoBERTa's layers, the first token, tanh
in the head. The checkpoint is a pickle of PyTorch Lightning, read by `torch.load(weights_only=True)`, which takes
tensors and plain containers alone and runs nothing. Lightning's own classes, under which it keeps the state of the
training, are replaced by empty ones; a file that holds anything else is refused. Its RoBERTa, CLIP and head are all in
it: TEXT and CLIP, folders or Hub ids, give architectures, tokenizers and the image processor.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from hfcap.errors import UserError, shown
from hfcap.files import folder_being_written, read_text
from hfcap.metrics.polos.model import CLIP_FOLDER, HEAD_FILE, TEXT_FOLDER, head_shapes
from scripts.convert_pac_s import Tensors, fill, renamed, write_clip

SETTINGS: dict[str, Any] = {
    "model": "PolosEstimator",
    "encoder_model": "BERT",
    "layer": "mix",
    "pool": "cls",
    "activations": "Tanh",
    "final_activation": False,
}
"""What decides how the weights are used, in the authors' configuration (configs/polos-trainer.yaml)."""

_LIGHTNING = re.compile(r"(?:pytorch_)?lightning(?:_fabric)?\..+|argparse\.Namespace")
_NOT_USED = re.compile(r"scalar_mix\.dropout_(?:mask|fill)|encoder\.model\.embeddings\.(?:position|token_type)_ids")
_MIX = re.compile(r"scalar_mix\.scalar_parameters\.(\d+)")
_LINEAR = re.compile(r"ff\.0\.ff\.(linear_\d+\.(?:weight|bias))")


class _Nothing:
    """Stands in for Lightning's classes."""


def read_checkpoint(path: Path) -> Tensors:
    """Return the tensors of a Lightning checkpoint's `state_dict`, in float32.

    Raises:
        UserError: it cannot be read, holds more than tensors, plain containers and Lightning's state, or no weights.
    """
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (_Nothing, name) for name in found if _LIGHTNING.fullmatch(name)
        ]
        with torch.serialization.safe_globals(stand_ins):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{path}: cannot be read as weights alone ({reason}); give the authors' file, whole and unchanged"
        ) from None
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no 'state_dict' of tensors; give the authors' checkpoint")
    return {str(name): value.float() for name, value in state.items()}


def check_settings(path: Path) -> None:
    """Refuse a checkpoint that was trained in another way.

    Raises:
        UserError: `hparams.yaml` is missing, or says something else.
    """
    try:
        settings = yaml.safe_load(read_text(path, "settings of the training"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: no YAML ({str(error).splitlines()[0]}); give the authors' file unchanged") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: no settings of a training; give the authors' file unchanged")
    for name, value in SETTINGS.items():
        if name not in settings or settings[name] != value:
            raise UserError(
                f"{path}: {name} is {shown(settings.get(name))}; metric 'polos' computes what {name}: {value} means; "
                "choose a checkpoint that was trained with it"
            )


def parts_of(state: Tensors, path: Path) -> dict[str, Tensors]:
    """Return the weights of RoBERTa (`text`), of CLIP under transformers' names (`clip`), and of the head (`head`).

    Raises:
        UserError: the checkpoint has another layout.
    """
    parts: dict[str, Tensors] = {"text": {}, "clip": {}, "head": {}}
    mixture: dict[int, torch.Tensor] = {}
    for name, tensor in state.items():
        if _NOT_USED.fullmatch(name):
            continue
        if name.startswith("encoder.model."):
            parts["text"][name.removeprefix("encoder.model.")] = tensor
        elif name.startswith("clip."):
            parts["clip"][name.removeprefix("clip.")] = tensor
        elif layer := _MIX.fullmatch(name):
            mixture[int(layer[1])] = tensor
        elif name == "scalar_mix.gamma":
            parts["head"]["mix.gamma"] = tensor
        elif linear := _LINEAR.fullmatch(name):
            parts["head"][linear[1]] = tensor
        else:
            raise UserError(f"{path}: {name} is no weight of Polos; give the authors' checkpoint")
    if sorted(mixture) != list(range(len(mixture))) or not mixture or not all(parts.values()):
        raise UserError(
            f"{path}: has not all parts of Polos (RoBERTa, CLIP, mixture, head); give the authors' checkpoint"
        )
    parts["head"]["mix.weights"] = torch.cat([mixture[layer].reshape(1) for layer in sorted(mixture)])
    parts["clip"] = renamed(parts["clip"])
    return parts


def convert(checkpoint: Path, text: str, clip: str, folder: Path) -> None:
    """Write the folder: head, RoBERTa and CLIP.

    Raises:
        UserError: the checkpoint cannot be used, or is not of these models.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    check_settings(checkpoint.with_name("hparams.yaml"))
    parts = parts_of(read_checkpoint(checkpoint), checkpoint)
    try:
        # Every weight is in the checkpoint: those of the base are not read.
        roberta: Any = AutoModel.from_config(AutoConfig.from_pretrained(text), dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{text}: the language model cannot be loaded ({error}); give its folder or Hub id") from None
    fill(roberta, parts["text"], checkpoint, text)
    with folder_being_written(folder) as temporary:
        write_clip(parts["clip"], checkpoint, clip, temporary / CLIP_FOLDER)
        roberta.save_pretrained(temporary / TEXT_FOLDER)
        tokenizer.save_pretrained(temporary / TEXT_FOLDER)
        head = {name: tensor.contiguous() for name, tensor in sorted(parts["head"].items())}
        hidden = [len(head.get(f"linear_{number}.bias", ())) for number in (1, 2)]
        width = len(parts["clip"]["text_projection.weight"])
        n_states, size = int(roberta.config.num_hidden_layers) + 1, int(roberta.config.hidden_size)
        if {name: tuple(tensor.shape) for name, tensor in head.items()} != head_shapes(n_states, size, width, hidden):
            raise UserError(f"{checkpoint}: its head has another layout than Polos'; give the authors' checkpoint")
        save_file(head, temporary / HEAD_FILE)


def main() -> None:
    """Convert one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the authors' file (.ckpt), with hparams.yaml next to it")
    parser.add_argument("text", help="folder or Hub id of the RoBERTa that it was trained from")
    parser.add_argument("clip", help="folder or Hub id of the CLIP that it was trained with")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    try:
        convert(arguments.checkpoint, arguments.text, arguments.clip, arguments.output)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    print(f"{arguments.output}: give it as polos.model")


if __name__ == "__main__":
    main()
