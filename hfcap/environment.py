"""What a run ran on: versions, hardware, git commit, dataset and base models, for environment.json."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import try_to_load_from_cache

from hfcap.captioners.base import BaseModel
from hfcap.children import run_program
from hfcap.data.images import is_checkable
from hfcap.data.kept.table import RecordTable, values_of_records
from hfcap.data.source import dataset_revision
from hfcap.recipe.blocks import DataOptions
from hfcap.schema import CaptionedImage
from hfcap.store.image_hashes import image_hashes

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "hfcap",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "datasets",
    "evaluate",
    "huggingface-hub",
    "numpy",
    "pillow",
)


_SAID = ("image_id", "file_name", "captions")


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def default_device() -> torch.device:
    """Return the device that models run on unless somebody names one: the machine's accelerator, or the CPU.

    Accelerate's ACCELERATE_USE_CPU, by which training leaves the accelerator alone, holds here too.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    found = None if parse_flag_from_env("ACCELERATE_USE_CPU") else torch.accelerator.current_accelerator()
    return torch.device("cpu") if found is None or not torch.accelerator.is_available() else found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in bytes and GPU name (None without one)."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _processor_name(), "cores": os.cpu_count(), "memory_bytes": memory, "gpu": gpu}


def _processor_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def git_commit(folder: Path) -> str | None:
    """Last commit of the checkout that `folder` belongs to, or None outside a checkout or without git.

    None too where the package is only installed inside somebody's checkout (a virtual environment there).
    """
    output = ""
    for arguments in (["ls-files", "--error-unmatch", "."], ["rev-parse", "HEAD"]):
        try:
            result = run_program(["git", *arguments], folder=folder, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        if result.returncode:
            return None
        output = result.stdout
    return output.strip()


def dataset_fingerprint(records: Sequence[CaptionedImage]) -> str:
    """SHA-256 over ids, file names and captions in order; tells whether two runs saw the same split."""
    return _digest(zip(*(values_of_records(records, name) for name in _SAID), strict=True))


def _with_bytes(records: Sequence[CaptionedImage]) -> Sequence[CaptionedImage]:
    """Return the records whose images lie somewhere: of kept ones all do."""
    if isinstance(records, RecordTable):
        return records
    return [one for one in records if is_checkable(one.image)]


def _digest(rows: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=False).encode())
    return digest.hexdigest()


def describe_datasets(data: DataOptions, splits: Mapping[str, Sequence[CaptionedImage]]) -> dict[str, dict[str, Any]]:
    """Counts and fingerprints of each split, in whole and by parts, and the commit that it comes from.

    `images` is about the encoded bytes of images that lie somewhere; drawn ones follow from the recipe.
    """
    return {
        name: {
            "n_images": len(records),
            "n_captions": sum(map(len, values_of_records(records, "captions"))),
            "fingerprint": dataset_fingerprint(records),
            "ids": _digest(values_of_records(records, "image_id")),
            "file_names": _digest(values_of_records(records, "file_name")),
            "captions": _digest(values_of_records(records, "captions")),
            "images": _digest(image_hashes(_with_bytes(records))),
            "revision": dataset_revision(data, name),
        }
        for name, records in splits.items()
    }


def loaded_revision(base: BaseModel) -> str | None:
    """Return the commit of a base model that was loaded from the Hub: a branch may name another one tomorrow."""
    if not base.is_local:
        for name in ("config.json", "adapter_config.json"):
            cached = try_to_load_from_cache(base.id, name, revision=base.revision)
            if isinstance(cached, str):
                return Path(cached).parent.name
    return base.revision


def describe_environment(
    seed: int,
    base_models: Sequence[BaseModel],
    data: DataOptions,
    splits: Mapping[str, Sequence[CaptionedImage]],
) -> dict[str, Any]:
    """Return the content of environment.json."""
    return {
        "versions": package_versions(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "hardware": hardware(),
        "git_commit": git_commit(Path(__file__).parent),
        "seed": seed,
        "base_models": [
            {"id": base.id, "revision": loaded_revision(base), "role": base.role, "local": base.is_local}
            for base in base_models
        ],
        "datasets": describe_datasets(data, splits),
    }
