"""Find captioners, data sources and metrics by file name: the file name is the registry.

A module in `hfcap/<kind>/`, a file or a folder, whose name does not start with an underscore and which defines
`REGISTERED` is one entry; other packages add entries through the entry-point group `hfcap.<kind>`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

from hfcap.errors import UserError

_FOLDERS = {"captioners": "hfcap.captioners", "sources": "hfcap.data.sources", "metrics": "hfcap.metrics"}


def _defines_registered(package_folder: str, module: pkgutil.ModuleInfo) -> bool:
    # Reading the text instead of importing keeps `hfcap list` and 'did you mean' fast: no torch import.
    path = Path(package_folder) / (f"{module.name}/__init__.py" if module.ispkg else f"{module.name}.py")
    return path.is_file() and "\nREGISTERED" in path.read_text(encoding="utf-8")


@cache
def _locations(kind: str) -> dict[str, str]:
    package = importlib.import_module(_FOLDERS[kind])
    found = {
        info.name: f"{_FOLDERS[kind]}.{info.name}"
        for info in pkgutil.iter_modules(package.__path__)
        if not info.name.startswith("_") and _defines_registered(package.__path__[0], info)
    }
    for entry_point in metadata.entry_points(group=f"hfcap.{kind}"):
        found[entry_point.name] = entry_point.value
    return dict(sorted(found.items()))


def names(kind: str) -> list[str]:
    """Names of all entries of a kind ("captioners", "sources" or "metrics"), sorted, without importing them."""
    return list(_locations(kind))


def name_of(kind: str, module: str) -> str:
    """Name under which a module is an entry of a kind; that of an entry point need not be the module's own."""
    return next((name for name, value in _locations(kind).items() if value == module), module.rsplit(".", 1)[-1])


def load(kind: str, name: str) -> ModuleType:
    """Import the module of one entry; its `REGISTERED` is the entry.

    Raises:
        UserError: no entry has this name; the message offers the nearest ones.
    """
    locations = _locations(kind)
    if name not in locations:
        raise UserError(f"unknown {kind.rstrip('s')} {name!r}{did_you_mean(name, locations)}")
    return importlib.import_module(locations[name])


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return '; did you mean ...?' for close matches, else the list of choices, if there are any."""
    options = list(choices)
    if not options:
        return "; there is none"
    if close := nearest(word, options):
        return f"; did you mean {close}?"
    return "; choose one of " + ", ".join(repr(option) for option in sorted(options))


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return the one or two choices that look most like a word, joined by "or"; "" where none does.

    Case and punctuation do not count: 'CIDEr-D' looks like 'cider'.
    """
    plain = {_plain(choice): choice for choice in choices}
    return " or ".join(repr(plain[match]) for match in difflib.get_close_matches(_plain(word), plain, n=2, cutoff=0.6))


def _plain(word: str) -> str:
    return re.sub(r"\W", "_", word.lower())
