"""Load any saved captioner: a run directory, a folder, a Hub id; full weights or an adapter."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from pydantic import ValidationError
from transformers import CONFIG_MAPPING

from hfcap import registry
from hfcap.captioners.adaptation.merging import (
    is_quantized,
    merge_adapter,
    probe_logits,
    require_merged,
    require_same_logits,
)
from hfcap.captioners.base import BaseModel, Captioner
from hfcap.captioners.shared.metadata import SIDECAR, read_sidecar
from hfcap.captioners.shared.pretrained import require_no_revision_of_folder
from hfcap.errors import UserError, WorkError, library_faults, reason_of
from hfcap.failures.hub import out_of_reach
from hfcap.files import folder_being_written, no_folder, read_json, read_json_object
from hfcap.recipe.blocks import GenerateOptions
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.records import Environment, checked_record

_ADAPTER_CONFIG = "adapter_config.json"


def load_captioner(
    location: str, revision: str | None = None, trust_remote_code: bool = False, merge: bool = True
) -> Captioner:
    """Load a captioner for use.

    Args:
        location: run directory, folder written by hfcap or save_pretrained, adapter folder, Hub id, or the address of
            an OpenAI-compatible server.
        merge: fold an adapter into the weights (faster), unless those are stored in 4 or 8 bits; otherwise its layers
            stay separate.

    Raises:
        UserError: nothing there that hfcap can caption with; the message says what was found.
        WorkError: the merged model would not say what the adapter says.
    """
    captioner, prompted = _loaded(location, revision, trust_remote_code, merge)
    if not prompted:
        captioner.take_usual_prompt()
    return captioner


def _noted(captioner: Captioner, folder: Path) -> dict[str, str]:
    """Let a captioner take over what was saved next to its weights; returns that.

    Raises:
        UserError: it is nothing that this captioner can take over.
    """
    notes = read_sidecar(folder)
    try:
        captioner.take_sidecar(notes)
    except UserError as error:
        raise UserError(f"{folder / SIDECAR}: {error}") from None
    return notes


def _loaded(location: str, revision: str | None, trust_remote_code: bool, merge: bool) -> tuple[Captioner, bool]:
    """Load a captioner; also whether a prompt, perhaps an empty one, was saved with it."""
    folder = local_folder(location, revision)
    if (folder / _ADAPTER_CONFIG).is_file():
        return _with_adapter(folder, trust_remote_code, merge)
    family = _family(folder, location)
    with library_faults(lambda error: f"{location}: the model cannot be loaded ({reason_of(error)}); save it again"):
        captioner = family.from_folder(str(folder), None, trust_remote_code)
    notes = _noted(captioner, folder)
    captioner.base_models = [BaseModel(location, revision, "captioner")]
    captioner.model.eval()
    return captioner, "captioner" in notes


def local_folder(location: str, revision: str | None) -> Path:
    """Return the folder that holds the model: of a run directory, a local folder, or a snapshot from the Hub.

    The address of a server of models stands for a captioner that asks its only model.

    Raises:
        UserError: nothing there, a revision of what is no Hub repository, or the Hub does not give it out.
        WorkError: the Hub cannot be reached.
    """
    path = Path(location)
    require_no_revision_of_folder(location, revision)
    if location.startswith(("http://", "https://")):
        return Path(registry.load("captioners", "openai_endpoint").REGISTERED.folder_for(location))
    if is_run_directory(location):
        if not RunDirectory(path).model.is_dir():
            raise UserError(f"{location}: this run has no model yet; finish it with: hfcap run {location}/recipe.yaml")
        return RunDirectory(path).model
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(no_folder(path, "folder of a model", "give a run directory, a model folder or a Hub id"))
    if location.startswith((".", "/", "~")) or location.count("/") > 1:
        raise UserError(f"{location}: no such folder; give a run directory, a model folder or a Hub id")
    try:
        return Path(
            snapshot_download(
                location,
                revision=revision,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.py", "*.jinja"],
            )
        )
    except HFValidationError as error:
        raise UserError(f"{location}: neither a folder nor a Hub id ({error}); check the name") from error
    except HfHubHTTPError as error:
        raise UserError(
            f"{location}: access denied by the Hub (HTTP {error.response.status_code}); check the name, and sign "
            "in with 'hf auth login' if it is private or gated"
        ) from error
    except OSError as error:
        reason = out_of_reach(error) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = f"{location}: no such folder here{_nearest_folder(path)}; as a model of the Hub: {reason}"
        # Inside a folder that is there, or without a namespace, it is a path that somebody mistyped.
        meant_a_path = "/" not in location or path.parent.is_dir()
        raise (UserError if meant_a_path else WorkError)(message) from error


def _nearest_folder(path: Path) -> str:
    folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, folders, n=1)
    return f" (did you mean {path.with_name(close[0])}?)" if close else ""


def is_run_directory(location: str) -> bool:
    """Whether a location is a run directory; a published folder carries its recipe too, but next to the model."""
    path = Path(location)
    has_model = any((path / name).is_file() for name in ("config.json", _ADAPTER_CONFIG))
    return RunDirectory(path).recipe.is_file() and not has_model


def earlier_base_models(location: str) -> list[BaseModel]:
    """Return what the captioner of a run directory was built from; the run itself where it started from nothing."""
    path = RunDirectory(Path(location)).environment
    bases = checked_record(path, "environment of the run", Environment).get("base_models")
    found = [BaseModel(base["id"], base["revision"], base["role"]) for base in bases or []]
    return found or [BaseModel(location, None, "captioner")]


def _family(folder: Path, location: str) -> type[Captioner]:
    named = read_sidecar(folder).get("captioner")
    if named is not None:
        try:
            return registry.load("captioners", named).REGISTERED
        except UserError as error:
            raise UserError(f"{folder / SIDECAR}: {error}") from None
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{location}: holds neither a model (config.json) nor an adapter (adapter_config.json); give another folder"
        )
    config = read_json_object(folder / "config.json", "configuration of the model")
    model_type = config.get("model_type")
    for name in registry.names("captioners"):
        family: type[Captioner] = registry.load("captioners", name).REGISTERED
        if model_type in family.model_types:
            return family
    if isinstance(config.get("auto_map"), dict) and model_type not in CONFIG_MAPPING:
        # Its code comes with it: that family says what is needed of it.
        return registry.load("captioners", "image_text_to_text").REGISTERED
    raise UserError(
        f"{location}: hfcap has no captioner family for model_type {model_type!r}; it knows "
        + ", ".join(registry.names("captioners"))
    )


def _with_adapter(folder: Path, trust_remote_code: bool, merge: bool) -> tuple[Captioner, bool]:
    config: Any = read_json(folder / _ADAPTER_CONFIG, "adapter configuration")
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    sibling = folder.parent / "base_model"
    if sibling.is_dir():
        # Found by place, not by the recorded path: a run directory may have been moved.
        base = str(sibling)
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{folder / _ADAPTER_CONFIG}: base_model_name_or_path is missing; write there which model was adapted"
        )
    # peft records a revision for folders too, where it says nothing.
    revision = None if Path(base).is_dir() else config.get("revision")
    try:
        captioner, prompted = _loaded(base, revision, trust_remote_code, merge=True)
    except UserError as error:
        raise UserError(
            f"{folder}: the base model of this adapter cannot be loaded; put it back, or correct "
            f"base_model_name_or_path in {folder / _ADAPTER_CONFIG} ({error})"
        ) from error
    notes = _noted(captioner, folder)
    from hfcap.captioners.adaptation.lora import load_adapter  # PEFT takes seconds to import

    adapted = load_adapter(captioner, folder)
    if merge and not is_quantized(captioner.model):
        with library_faults(lambda error: f"{base}: the base model fails ({reason_of(error)}); save it again"):
            merge_adapter(captioner, adapted)
    captioner.model.eval()
    return captioner, prompted or "captioner" in notes


def describe_size(captioner: Captioner) -> dict[str, int]:
    """Count all and trained parameters."""
    parameters = list(captioner.model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }


def generation_defaults(folder: Path) -> dict[str, Any]:
    """Return the decoding defaults saved next to a model, those that a recipe's `generate` block knows.

    Of models that hfcap did not save, what they lack is what suits their kind.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "generation_config.json"
    fresh = (folder / "config.json").is_file() and "captioner" not in read_sidecar(folder)
    usual = _family(folder, str(folder)).usual_decoding(folder) if fresh else {}
    if not path.is_file():
        return usual
    values = read_json(path, "decoding defaults of the model")
    if not isinstance(values, dict):
        raise UserError(f"{path}: decoding defaults must be a JSON object")
    known = {name: values[name] for name in GenerateOptions.model_fields if values.get(name) is not None}
    for name, value in known.items():
        try:
            GenerateOptions(**{name: value})
        except ValidationError as error:
            # Of what does not go together, options that the user gives may replace a part.
            own = [one["msg"] for one in error.errors() if one["loc"] == (name,)]
            if own:
                raise UserError(f"{path}: {name}: {own[0]}; correct it, or delete the file") from None
    return usual | known


def save_merged(adapter: str, output: Path, trust_remote_code: bool = False) -> None:
    """Fold an adapter (run directory, folder or Hub id) into its base model and save a plain model folder.

    Raises:
        UserError: there is no adapter, its decoding defaults are wrong, its base is quantised, or `output` holds
            something else.
        WorkError: the saved model gives other logits than the adapter.
    """
    folder = local_folder(adapter, None)
    if not (folder / _ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{adapter}: is not a LoRA adapter (no adapter_config.json); use the model as it is, there is "
            "nothing to merge"
        )
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: is not empty; choose a new folder")
    try:
        options = GenerateOptions(**generation_defaults(folder))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UserError(f"{folder / 'generation_config.json'}: {problems}; correct it, then merge again") from None
    captioner = load_captioner(adapter, trust_remote_code=trust_remote_code)
    require_merged(captioner, adapter)
    expected = probe_logits(captioner)
    with folder_being_written(output) as temporary:
        captioner.save(temporary, options)
        del captioner
        saved = load_captioner(str(temporary), trust_remote_code=trust_remote_code)
        require_same_logits(expected, probe_logits(saved), saved.model, "the saved model", "the merged one")
