"""What a run ran on: versions, hardware, git commit, dataset and base models, for environment.json."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import try_to_load_from_cache

from hfcap.captioners.base import BaseModel
from hfcap.children import run_program
from hfcap.data.images import is_checkable
from hfcap.data.kept.known import kept_texts
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

_AT_A_TIME = 4096
"""Rows whose texts are hashed together."""
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of mallopt(3), as malloc.h of the GNU C library numbers them."""
_FREED_BY_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
"""Variables of the environment by which a user has chosen already how memory is freed."""


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


def prepare_processor() -> None:
    """Flush denormal numbers to zero (they slow products 200 times), and keep freed memory where tensors lie in it."""
    import torch

    torch.set_flush_denormal(True)
    if not torch.cuda.is_available():
        keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let this process reuse the memory of large tensors, instead of giving it back to the system each time.

    The GNU C library maps what is larger than 32 MB anew each time, and the system clears every page of it: for a batch
    of 8 images a fifth of the image encoder's time. The process keeps the most that it needed until it ends.

    Returns:
        Whether it does; not with other C libraries, nor where the environment says how memory is freed.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(name in os.environ for name in _FREED_BY_CHOICE) or "glibc.malloc." in tunables:
        return False
    if not _has_gnu_c_library():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))


def give_freed_memory_back() -> None:
    """Return the memory that `keep_freed_memory` has kept so far to the system, where the C library can."""
    if _has_gnu_c_library():
        ctypes.CDLL(None).malloc_trim(0)


def _has_gnu_c_library() -> bool:
    return platform.libc_ver()[0] == "glibc"


@cache
def bfloat16_gain() -> float:
    """Return how many times as fast this processor multiplies matrices in bfloat16 as in float32.

    Of 512 x 512, best of 3. Processors with AMX or AVX512-BF16 multiply bfloat16 faster; others have no instruction
    for it.
    """
    import torch

    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - started)
        best[dtype] = min(times)
    return best[torch.float32] / best[torch.bfloat16]


def slow_bfloat16(device: torch.device) -> str | None:
    """Return a sentence where products in bfloat16 take more than twice as long as in float32; None elsewhere."""
    if device.type != "cpu" or bfloat16_gain() > 0.5:
        return None
    return f"this processor computes products in bfloat16 {1 / bfloat16_gain():.0f} times as slowly as in float32"


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
    return _digests(records)["fingerprint"]


def _digests(records: Sequence[CaptionedImage]) -> dict[str, str]:
    """SHA-256 over the JSON of what records say, of all together and of each part."""
    return kept_texts(records, "digests of records", lambda: _new_digests(records))


def _new_digests(records: Sequence[CaptionedImage]) -> dict[str, str]:
    """Encode every text once."""
    together, ids, file_names, captions = (hashlib.sha256() for _ in range(4))
    columns = (_as_json(values_of_records(records, name)) for name in ("image_id", "file_name", "captions"))
    rows = zip(*columns, strict=True)
    while some := list(islice(rows, _AT_A_TIME)):
        for digest, texts in zip((ids, file_names, captions), zip(*some, strict=True), strict=True):
            digest.update("".join(texts).encode())
        together.update("".join(f"[{', '.join(row)}]" for row in some).encode())
    named = {"fingerprint": together, "ids": ids, "file_names": file_names, "captions": captions}
    return {name: digest.hexdigest() for name, digest in named.items()}


def _as_json(values: Iterable[Any]) -> Iterator[str]:
    """Yield the JSON of texts and of lists of texts, as json.dumps writes it, but without its preparations for each."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    for value in values:
        yield encode(value) if isinstance(value, str) else f"[{', '.join(map(encode, value))}]"


def _with_bytes(records: Sequence[CaptionedImage]) -> Sequence[CaptionedImage]:
    """Return the records whose images lie somewhere: of kept ones all do."""
    if isinstance(records, RecordTable):
        return records
    return [one for one in records if is_checkable(one.image)]


def _digest_of_hashes(hashes: Sequence[str]) -> str:
    digest, texts = hashlib.sha256(), iter(hashes)
    while some := list(islice(texts, _AT_A_TIME)):
        digest.update("".join(f'"{text}"' for text in some).encode())
    return digest.hexdigest()


def describe_datasets(data: DataOptions, splits: Mapping[str, Sequence[CaptionedImage]]) -> dict[str, dict[str, Any]]:
    """Counts and fingerprints of each split, in whole and by parts, and the commit that it comes from.

    `images` is about the encoded bytes of images that lie somewhere; drawn ones follow from the recipe.
    """
    return {
        name: {
            "n_images": len(records),
            "n_captions": sum(map(len, values_of_records(records, "captions"))),
            **_digests(records),
            "images": _digest_of_hashes(image_hashes(_with_bytes(records))),
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
