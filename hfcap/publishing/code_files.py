"""Which Python files of a model folder loading needs: those that its configuration names, and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hfcap.errors import UserError
from hfcap.files import read_json, read_text


def needed_code(folder: Path, configurations: Iterable[str]) -> set[str]:
    """Return names of the modules in `auto_map` of these configuration files, and of their relative imports.

    Other scripts that lie in the folder are nobody's business.

    Raises:
        UserError: a module is missing or is not Python.
    """
    waiting = [
        reference.split("--")[-1].split(".")[0]
        for name in configurations
        if (folder / name).is_file()
        for reference in _references(read_json(folder / name, "configuration"))
    ]
    found: set[str] = set()
    while waiting:
        path = folder / f"{waiting.pop()}.py"
        if path.name not in found:
            found.add(path.name)
            waiting += _relative_imports(path)
    return found


def _references(value: Any) -> Iterator[str]:
    """Yield every "module.Class" of every `auto_map`, also those of encoders inside a configuration."""
    if isinstance(value, list):
        for item in value:
            yield from _references(item)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == "auto_map" and isinstance(inner, dict):
                for reference in inner.values():
                    parts = reference if isinstance(reference, list) else [reference]
                    yield from (part for part in parts if isinstance(part, str))
            else:
                yield from _references(inner)


def _relative_imports(path: Path) -> list[str]:
    try:
        tree = ast.parse(read_text(path, "modelling code that the configuration names"))
    except SyntaxError as error:
        raise UserError(f"{path}: line {error.lineno}: not Python ({error.msg})") from None
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            modules += [node.module] if node.module else [alias.name for alias in node.names]
    return [module.split(".")[0] for module in modules]
