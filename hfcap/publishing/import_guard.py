"""Hides what is installed here from a process, so that it runs as in an environment with a few packages only.

The clean process executes this file before anything else: it needs the standard library alone.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any


class ImportGuard:
    """Lets a process find the modules and distributions that are allowed, and all that lies outside the environment.

    Args:
        modules: top-level modules of the allowed distributions. distributions: names, normalised.

    Attributes:
        asked_for: top-level modules that the process looked for and was not shown.
    """

    def __init__(self, modules: Iterable[str], distributions: Iterable[str]) -> None:
        # Where transformers puts the code of repositories, and the standard library.
        self.modules = {*modules, "transformers_modules", *sys.stdlib_module_names}
        self.distributions = set(distributions)
        self.asked_for: set[str] = set()
        standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
        standard |= {folder / "lib-dynload" for folder in standard}
        self.places = {Path(entry).resolve() for entry in sys.path if entry} - standard

    def install(self) -> None:
        """Put the guard in front of everything that finds modules."""
        sys.meta_path[:] = [_Guarded(finder, self) for finder in sys.meta_path]

    def shows(self, name: str, spec: ModuleSpec) -> bool:
        """Whether a module that was found may be seen."""
        if name.partition(".")[0] in self.modules:
            return True
        locations = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])
        return not any(place in Path(entry).resolve().parents for entry in locations for place in self.places)


class _Guarded:
    """A finder of `sys.meta_path` that shows only what the guard lets through."""

    def __init__(self, finder: Any, guard: ImportGuard) -> None:
        self.finder = finder
        self.guard = guard

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """As importlib asks a finder."""
        spec: ModuleSpec | None = self.finder.find_spec(name, path, target)
        if spec is None or self.guard.shows(name, spec):
            return spec
        self.guard.asked_for.add(name.partition(".")[0])
        return None

    def find_distributions(self, *context: Any) -> Iterator[Distribution]:
        """As importlib.metadata asks a finder."""
        find = getattr(self.finder, "find_distributions", None)
        for distribution in find(*context) if find is not None else ():
            name = str(distribution.metadata["Name"]).lower().replace("_", "-").replace(".", "-")
            if name in self.guard.distributions:
                yield distribution
