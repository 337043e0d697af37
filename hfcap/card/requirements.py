"""Which packages a published model needs: for the install line of its card, the proof of publishing, and Spaces.

They follow from the files of the model: what its processor, its code and its weights are. Where that is not all, the
proof (verify.py) finds it out, because it runs with the packages of the card and what these bring along.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from hfcap.card.code_files import needed_code
from hfcap.errors import UserError, shown
from hfcap.files import read_json

CORE = ("transformers", "torch", "pillow")

_OF_MODEL_TYPES = {"timm_wrapper": ("timm",), "timm_backbone": ("timm",), "gemma3n_vision": ("timm",)}
_OF_PROCESSORS = {
    "PixtralProcessor": ("torchvision",),
    "SmolVLMProcessor": ("torchvision", "num2words"),
    "TimmWrapperImageProcessor": ("timm",),
}
_OF_QUANTIZATION = {"bitsandbytes": ("accelerate", "bitsandbytes")}
_PROCESSOR_KEYS = ("processor_class", "image_processor_type", "feature_extractor_type", "video_processor_type")

_Installed = tuple[tuple[str, int], ...]

_NAME, _BOUND = r"[A-Za-z0-9][A-Za-z0-9._-]*", r">=[0-9][0-9A-Za-z.]*"
_LINE = re.compile(rf'^pip install((?: {_NAME}| "{_NAME}{_BOUND}")+)$', re.MULTILINE)
_REQUIREMENT = re.compile(f"{_NAME}({_BOUND})?")


def needed_packages(model: Path) -> list[str]:
    """Return distribution names that loading a model and captioning with it takes, besides what those bring along.

    Args:
        model: folder with everything but perhaps the weights; parts of it may lie in folders inside.

    Raises:
        UserError: a configuration is damaged.
    """
    found = dict.fromkeys(CORE)
    if (model / "adapter_config.json").is_file():
        found["peft"] = None
    for folder in [model, *sorted(path for path in model.glob("*") if path.is_dir())]:
        names = [path.name for path in sorted(folder.glob("*config.json"))]
        for name in names:
            for block in _blocks(read_json(folder / name, "configuration of the model")):
                found |= dict.fromkeys(_of_block(block))
        if not (folder / "tokenizer.json").is_file() and any(folder.glob("*.model")):
            found["sentencepiece"] = None
        code = needed_code(folder, names)
        found |= dict.fromkeys(_of_code([folder / name for name in sorted(code)], found))
    return list(found)


def _blocks(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        yield from _blocks(item)


def _of_block(block: dict[str, Any]) -> Iterator[str]:
    yield from _OF_MODEL_TYPES.get(str(block.get("model_type")), ())
    if block.get("use_timm_backbone") is True:
        yield "timm"
    yield from _OF_QUANTIZATION.get(str(block.get("quant_method")), ())
    for key in _PROCESSOR_KEYS:
        if isinstance(block.get(key), str):
            yield from _of_processor(block[key])


def _of_processor(name: str) -> Iterator[str]:
    """Yield what a processor of transformers cannot do without, by the name of its class."""
    import transformers
    from transformers.utils.import_utils import DummyObject

    if name in _OF_PROCESSORS:
        yield from _OF_PROCESSORS[name]
        return
    known = getattr(transformers, name, None) if name.isidentifier() else None
    if isinstance(known, type) and isinstance(known, DummyObject):
        needs_torchvision = True  # what transformers shows in its place where torchvision is not installed
    elif isinstance(known, type) and issubclass(known, transformers.ProcessorMixin):
        # It also takes films, and transformers reads those with torchvision.
        needs_torchvision = "video_processor" in known.get_attributes()
    elif isinstance(known, type):
        needs_torchvision = any(base.__name__ in ("TorchvisionBackend", "BaseVideoProcessor") for base in known.__mro__)
    else:
        needs_torchvision = False
    # Most image processors have a second form, which transformers takes where torchvision is not installed.
    if needs_torchvision and not hasattr(transformers, f"{name.removesuffix('Fast')}Pil"):
        yield "torchvision"


def _of_code(files: Iterable[Path], named: Iterable[str]) -> Iterator[str]:
    """Yield packages that modelling code imports and that the named ones do not bring along."""
    from transformers.dynamic_module_utils import get_imports

    imported = {module for path in files for module in get_imports(path)}
    if not imported:
        return
    owners = owners_of_modules()
    brought = brought_by(named)
    for module in sorted(imported):
        # What is not installed cannot have run here; a guess at its name could be the name of something else.
        names = owners.get(module, [])
        if names and module != "hfcap" and not {canonicalize_name(name) for name in names} & brought:
            yield str(canonicalize_name(names[0]))


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed versions of packages as others can install them; those that are not here are left out."""
    versions = {}
    for name in packages:
        try:
            # Local builds ("2.13.0+cpu") are not on package indexes.
            versions[name] = Version(metadata.version(name)).public
        except metadata.PackageNotFoundError:
            continue
    return versions


def with_bounds(packages: Iterable[str], versions: Mapping[str, str]) -> list[str]:
    """Return requirements: each package from the version on that the model was proven with, where it is known.

    Raises:
        UserError: one is no version (a run directory may be a stranger's).
    """
    return [f"{name}>={_short(name, versions[name])}" if name in versions else name for name in packages]


def _short(package: str, version: str) -> str:
    """5.23.0 -> 5.23."""
    try:
        return re.sub(r"^(\d+\.\d+)(\.0)+$", r"\1", Version(version).public)
    except InvalidVersion:
        raise UserError(
            f"versions of the run: {package} has {shown(version[:80])}, which is no version; correct "
            "verification/captions.json, or environment.json where that has none"
        ) from None


def install_command(requirements: Iterable[str]) -> str:
    """Return the card's line; a shell would take ">" for a redirection.

    Raises:
        UserError: one is no name with a lower bound (a run directory may be a stranger's).
    """
    quoted = []
    for requirement in requirements:
        if not _REQUIREMENT.fullmatch(requirement):
            raise UserError(f"{requirement[:80]!r} is no package with a lower bound; write NAME>=VERSION")
        quoted.append(f'"{requirement}"' if ">" in requirement else requirement)
    return "pip install " + " ".join(quoted)


def packages_on_card(card: str) -> list[str]:
    """Return what the first install line of a card names; empty where there is none that hfcap could have written."""
    line = _LINE.search(card)
    return line[1].replace('"', "").split() if line else []


def unmet(requirements: Iterable[str]) -> list[str]:
    """Return those of the requirements that this environment does not meet."""
    found = []
    for text in requirements:
        requirement = Requirement(text)
        version = installed_versions([requirement.name]).get(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found.append(text)
    return found


def brought_by(requirements: Iterable[str]) -> set[str]:
    """Return the installed distributions that these name or bring along, by normalised name."""
    return set(_brought_by(tuple(requirements), _installed()))


@lru_cache
def _brought_by(requirements: tuple[str, ...], _: _Installed) -> frozenset[str]:
    waiting = [Requirement(requirement) for requirement in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        try:
            texts = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:
            continue
        seen.add(key)
        for text in texts:
            try:
                inner = Requirement(text)
            except InvalidRequirement:
                continue
            extras = [{"extra": extra} for extra in ("", *requirement.extras)]
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in extras):
                waiting.append(inner)
    return frozenset(name for name, _ in seen)


def owners_of_modules() -> Mapping[str, Sequence[str]]:
    """Return the distributions that each top-level module comes from."""
    return _owners(_installed())


@lru_cache(maxsize=1)
def _owners(_: _Installed) -> Mapping[str, Sequence[str]]:
    return metadata.packages_distributions()


def _installed() -> _Installed:
    """Return what changes where something is installed: to read the lists of all distributions takes a second."""
    return tuple((entry, Path(entry).stat().st_mtime_ns) for entry in sys.path if Path(entry).is_dir())


def modules_of(distributions: Iterable[str]) -> set[str]:
    """Return the top-level modules of distributions, given by normalised name."""
    wanted = set(distributions)
    found = {
        module for module, names in owners_of_modules().items() if wanted & {canonicalize_name(name) for name in names}
    }
    for name in wanted:
        # Beside those that a package declares: extension modules with names of their own, for example.
        for file in metadata.files(name) or []:
            if file.suffix in (".py", ".so", ".pyd") and ".." not in file.parts:
                found.add(file.parts[0].partition(".")[0])
    return found
