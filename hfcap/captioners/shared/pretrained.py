"""Loading base models, encoders and image processors, with errors that name the key of the recipe."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)

from hfcap.errors import UserError, WorkError, library_faults, reason_of, shown
from hfcap.failures.hub import out_of_reach
from hfcap.files import write_bytes
from hfcap.recipe.blocks import ModelOptions
from hfcap.schema import IMAGE_BACKEND

MOST_LAYERS = 10_000
"""More than any model has; a damaged configuration may ask for billions."""

TINY_VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
"""The smallest encoder that families build their `tiny()` from."""

TINY_CNN = {
    "model_type": "convnext",
    "hidden_sizes": [8, 16, 32, 64],
    "depths": [1, 1, 1, 1],
    "image_size": 64,
    "layer_scale_init_value": 1.0,
}
"""The smallest convolutional encoder: a feature map of 2 x 2 cells."""


_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError),
    *(ImportError, RuntimeError, SafetensorError),
)
"""What transformers and its libraries raise where a model's files are missing, damaged or of another kind."""


@contextlib.contextmanager
def unreadable_files(message: Callable[[Exception], str]) -> Iterator[None]:
    """Turn what damaged or missing files of a model raise into a UserError.

    Args:
        message: what to say of the error.

    Raises:
        UserError: the files cannot be used.
        WorkError: they are on a Hub that cannot be reached.
    """
    with library_faults(message):
        try:
            yield
        except (UserError, WorkError):
            raise
        except _UNREADABLE as error:
            raise (WorkError if out_of_reach(error) else UserError)(message(error)) from error


def loading_problem(error: Exception) -> str:
    """Return why something could not be loaded: the Hub is out of reach, or the first line of the error."""
    return out_of_reach(error) or reason_of(error)


def from_pretrained(loader: Any, location: str, key: str, **arguments: Any) -> Any:
    """Call `loader.from_pretrained` and turn what a user can cause into a UserError that names the recipe key.

    Only safetensors weights are read: pickled weights can run code.
    """
    require_no_revision_of_folder(location, arguments.get("revision"), f"{key}: ")
    if Path(location).exists() and not (Path(location) / "config.json").is_file() and "gguf_file" not in arguments:
        raise UserError(f"{key}: {location} holds no config.json; give a folder written by save_pretrained or a Hub id")
    if "gguf_file" not in arguments:
        arguments["use_safetensors"] = True

    def message(error: Exception) -> str:
        if isinstance(error, ImportError):
            return f"{key}: {location}: {missing_package(error)}"
        reason = loading_problem(error)
        if out_of_reach(error):
            return f"{key}: cannot load {location}: {reason}"
        remedy = "check the name, or give a local folder with config.json and model.safetensors"
        if "safetensors" in reason or "pytorch_model" in reason or "no file named" in reason:
            remedy = (
                "hfcap reads only safetensors weights; many Hub repositories hold them in a pull request of the "
                "conversion bot: set the revision key to refs/pr/<number>"
            )
        elif "trust_remote_code" in str(error):
            remedy = "its own code would run on this machine: if you trust it, give --trust-remote-code"
        return f"{key}: cannot load {location}: {reason} ({remedy})"

    with unreadable_files(message):
        found = loader.from_pretrained(location, **arguments)
    model = found[0] if isinstance(found, tuple) else found
    for part in model.modules() if isinstance(model, torch.nn.Module) else ():
        if isinstance(part, PreTrainedModel):
            part.config.return_dict = True  # hfcap reads outputs by name, whatever the file says
    return found


def missing_package(error: ImportError) -> str:
    """Return what transformers says about a package that it needs, in one line and without how to restart notebooks."""
    return " ".join(str(error).split()).partition(" Please note that")[0]


def load_encoder(location: str, key: str, revision: str | None, trust_remote_code: bool) -> Any:
    """Load a model that holds an image encoder, for AutoModel."""
    arguments: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = from_pretrained(AutoConfig, location, key, **arguments)
    if config.model_type == "timm_wrapper" and config.model_args:
        # timm writes how many classes there were, transformers passes that a second time.
        arguments["config"] = config
        config.model_args.pop("num_classes", None)
    return from_pretrained(AutoModel, location, key, **arguments)


def require_no_revision_of_folder(location: str, revision: str | None, prefix: str = "") -> None:
    """Refuse a revision where a model comes from this machine: it would be ignored.

    Raises:
        UserError: `location` is a folder and a revision is given.
    """
    if revision is not None and Path(location).is_dir():
        raise UserError(
            f"{prefix}{location}: is a folder on this machine, which has no revision {revision!r}; leave the revision "
            "out, or give a Hub id"
        )


def load_image_processor(location: str, key: str, revision: str | None, trust_remote_code: bool) -> Any:
    """Load an image processor: of IMAGE_BACKEND where it has that one, else its only one.

    Raises:
        UserError: there is none, it is damaged, or it needs a package that is not installed.
    """

    def message(error: Exception) -> str:
        if isinstance(error, ImportError):
            return f"{key}: {location}: {missing_package(error)}"
        return f"{key}: no image processor in {location}: {loading_problem(error)}; save it there"

    with unreadable_files(message):
        processor = AutoImageProcessor.from_pretrained(
            location, backend=IMAGE_BACKEND, revision=revision, trust_remote_code=trust_remote_code
        )
    return _describing_itself(processor)


def _describing_itself(image_processor: Any) -> Any:
    """Return it, with the attributes by which other image processors say what they do, where timm's lacks them.

    `pretrained_cfg` is what it is made from, and is saved with it: without that it could not be loaded again.
    """
    if type(image_processor).__name__ == "TimmWrapperImageProcessor":
        facts = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in image_processor.data_config.items()
        }
        image_processor.pretrained_cfg = facts
        image_processor.size = {"height": facts["input_size"][1], "width": facts["input_size"][2]}
        image_processor.do_rescale, image_processor.rescale_factor = True, 1 / 255
        image_processor.do_normalize = True
        image_processor.image_mean, image_processor.image_std = facts["mean"], facts["std"]
    return image_processor


def new_image_processor(image_size: int) -> Any:
    """Return a processor for an encoder trained from scratch: square resize, pixels scaled to [-1, 1]."""
    return ViTImageProcessorPil(
        size={"height": image_size, "width": image_size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def require_one_origin(options: ModelOptions, parts: Mapping[str, str]) -> None:
    """Check that a `model` block names one place where the captioner comes from.

    Args:
        parts: what it is otherwise joined from ("a decoder") -> its key; with `_config` the key for random weights.

    Raises:
        ValueError: not exactly one of `pretrained` and all parts, each by one of its two keys.
    """
    pairs = [(key, f"{key}_config") for key in parts.values()]
    given = [sum(getattr(options, key) is not None for key in pair) for pair in pairs]
    if options.pretrained is not None and any(given):
        raise ValueError(f"give pretrained, or {' and '.join(parts)}, not both")
    if options.pretrained is None and any(number != 1 for number in given):
        raise ValueError(f"without pretrained, give {' and '.join('one of ' + '/'.join(pair) for pair in pairs)}")


def require_positions(language_model: Any, key: str) -> None:
    """Refuse a language model that cannot be told positions: captions packed into one row restart them.

    Raises:
        UserError: its forward takes no position_ids (Bloom, Mamba, BART, ...), or its positions come from ALiBi.
    """
    takes_positions = "position_ids" in inspect.signature(language_model.forward).parameters
    if not takes_positions or getattr(language_model.config, "alibi", False):
        raise UserError(
            f"{key}: {type(language_model).__name__} takes no position_ids, which training on packed captions needs; "
            "choose another language model, such as GPT-2, Llama, Qwen, OPT or Phi"
        )


def whole_model(
    loader: Any,
    location: str,
    revision: str | None,
    model_types: Collection[str] | None = None,
    refused: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Any:
    """Load a whole captioner and refuse one whose file lacks weights: the missing ones would be random.

    Args:
        model_types: those that may be loaded; by default the loader's own. refused: of these, the ones that are not
            served -> why.
    """
    key = "model.pretrained"
    _require_model_type(location, revision, model_types or (loader.config_class.model_type,), refused or {}, key)
    model, report = from_pretrained(loader, location, key, revision=revision, output_loading_info=True, **arguments)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{key}: {location} lacks {len(missing)} weights of a {type(model).__name__} (first: {missing[0]}); "
            "it is a different kind of model, or its file is incomplete: check the captioner key, or save it again"
        )
    return model


def _require_model_type(
    location: str, revision: str | None, model_types: Collection[str], refused: Mapping[str, str], key: str
) -> None:
    # Before loading: transformers would build the other model at its full default size first.
    try:
        values, _ = PreTrainedConfig.get_config_dict(location, revision=revision)
        found = values.get("model_type")
    except _UNREADABLE:
        return  # loading says what is wrong
    _require_layers(values, f"{key}: {location}")
    if found is not None and (not isinstance(found, str) or found not in model_types):
        wanted = repr(*model_types) if len(model_types) == 1 else "one that this captioner knows"
        raise UserError(
            f"{key}: {location} holds a model of type {shown(found)}, not {wanted}; check the captioner key"
        )
    if found is not None and found in refused:
        raise UserError(
            f"{key}: hfcap cannot caption with {location}, a model of type {found}: {refused[found]}; choose another: "
            "docs/image_text_to_text.md lists the models that work"
        )


def _require_layers(values: Any, where: str) -> None:
    # transformers builds the layers before it looks at the weights, and would take for ever or all memory.
    for key, value in values.items() if isinstance(values, dict) else ():
        if key.endswith("layers") and isinstance(value, int) and value > MOST_LAYERS:
            raise UserError(f"{where}: config.json asks for {value:,} layers ({key}); correct it")
        _require_layers(value, where)


def config_from_mapping(values: dict[str, Any], key: str) -> Any:
    """Build a transformers config from a mapping with `model_type`."""
    remaining = dict(values)
    model_type = remaining.pop("model_type", None)
    if model_type is None:
        raise UserError(f"{key}: model_type is missing; add it (for example vit, gpt2)")
    try:
        return AutoConfig.for_model(model_type, **remaining)
    except (ValueError, TypeError) as error:
        raise UserError(f"{key}: {str(error).splitlines()[0]}; correct it") from error


def vision_tower(model: Any) -> Any:
    """Return the image half of a two-tower model (CLIP, SigLIP, FLAVA, ...), or the model itself."""
    for name in ("vision_model", "image_model"):
        if isinstance(getattr(model, name, None), torch.nn.Module):
            return getattr(model, name)
    return model


def copy_remote_code(model: Any, folder: Path) -> None:
    """Copy the code of a model that was loaded with trust_remote_code into `folder`, where its config expects it."""
    module_name = type(model).__module__
    if not module_name.startswith("transformers_modules"):
        return
    source = Path(sys.modules[module_name].__file__ or "")
    for path in source.parent.glob("*.py"):
        if path.name != "__init__.py":
            write_bytes(folder / path.name, path.read_bytes())
