"""Which Python files of a model folder loading needs, and which of them somebody else than hfcap may have written."""

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


def foreign_code(folder: Path, known: Iterable[Path]) -> list[str]:
    """Return the code that loading a staged model would run and that is none of the `known` files, byte for byte.

    Args:
        folder: staged model; parts of it lie in folders of their own.
        known: modelling files whose authors the user trusts already, because they are installed here.
    """
    contents = {path.read_bytes() for path in known}
    found = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*.py"))
        if path.read_bytes() not in contents
    ]
    for path in sorted(folder.rglob("*.json")):
        references = _references(read_json(path, "configuration")) if path.name.endswith("config.json") else ()
        # "repository--module.Class": transformers fetches that code from the Hub.
        found += [
            f"{reference} ({path.relative_to(folder).as_posix()})" for reference in references if "--" in reference
        ]
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
        raise UserError(f"{path}: line {error.lineno}: not Python ({error.msg}); correct the file") from None
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            modules += [node.module] if node.module else [alias.name for alias in node.names]
    return [module.split(".")[0] for module in modules]
