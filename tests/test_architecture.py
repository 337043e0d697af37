"""The shape of the package: imports go one way, published code stands alone, files and functions stay readable."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hfcap"
FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = [
    "errors",
    "progress",
    "failures",
    "files",
    "text",
    "cells",
    "children",
    "places",
    "sqlite_cache",
    "served",
    "registry",
    "schema",
    "recipe",
    "run_directory",
    "metrics",
    "data",
    "generation",
    "captioners",
    "store",
    "environment",
    "caption_batch",
    "decoding",
    "captioning",
    "pages",
    "review",
    "explain",
    "export",
    "scoring",
    "search",
    "comparison",
    "judgments",
    "probes",
    "arena",
    "training",
    "card",
    "publishing",
    "doctor",
    "app",
    "run",
    "api",
    "cli",
]
"""A module imports only what stands before it, or its own folder (docs/architecture.md)."""

METRICS_MAY_IMPORT = {
    "errors",
    "progress",
    "failures",
    "files",
    "text",
    "cells",
    "children",
    "places",
    "served",
    "registry",
    "schema",
    "metrics",
}
"""Metrics run alone, also through `evaluate.load(path)`: no recipe, no captioner, no torch."""

TOP = {"__init__", "__main__"}
MAX_LINES, MAX_FUNCTION_LINES = 400, 60
MAX_FILES_IN_FOLDER = 15


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def group_of(path: Path) -> str:
    """The entry of ORDER that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute module); names imported from `hfcap` itself count as its modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == "hfcap":
                yield from ((node.lineno, f"hfcap.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def wrong_imports(path: Path) -> list[str]:
    group = group_of(path)
    if group in TOP:
        return []
    allowed = METRICS_MAY_IMPORT if group == "metrics" else {*ORDER[: ORDER.index(group)], group}
    found = []
    for line, module in imported_modules(tree_of(path)):
        assert not module.startswith("."), f"{name_of(path)}:{line}: write the absolute name instead of {module}"
        parts = module.split(".")
        if parts[0] == "hfcap" and len(parts) > 1 and parts[1] not in {*allowed, "__version__"}:
            found.append(f"{name_of(path)}:{line} imports {module}")
    return found


def test_every_module_has_its_place() -> None:
    assert {group_of(path) for path in FILES} - TOP - set(ORDER) == set()


def test_the_page_of_the_architecture_has_every_module_in_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("| module | owns |")[1].split("\n\n")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert [name for cell in first_cells for name in re.findall(r"`(\w+)/?`", cell)] == ORDER


def test_files_that_are_named_are_there() -> None:
    """In prose: docstrings, comments and pages name files by their end, such as `captioners/base.py`."""
    known = {"/" + path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/**/*.py")}
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = {
        (name_of(path), name)
        for path in [*FILES, *pages]
        for name in re.findall(r"(?<![\w/.<>-])((?:\w+/)*[a-z_]\w*\.py)\b", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 50
    of_spaces = {"app.py"}  # written, and in no folder here
    gone = [
        where for where in named if where[1] not in of_spaces and not any(k.endswith("/" + where[1]) for k in known)
    ]
    assert sorted(gone) == []


def test_imports_go_one_way() -> None:
    published = set(modelling_files())
    assert [wrong for path in FILES if path not in published for wrong in wrong_imports(path)] == []


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_at_run_time(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports when it, or one of its functions, runs; imports for the type checker are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            yield from imports_at_run_time(node)


def circles(imports: Mapping[str, set[str]]) -> list[str]:
    """Return the modules that nothing orders: each imports, over others, itself."""
    left = {module: set(needed) for module, needed in imports.items()}
    while ready := {module for module, needed in left.items() if not needed & left.keys()}:
        left = {module: needed for module, needed in left.items() if module not in ready}
    return sorted(left)


def test_no_module_imports_itself_over_others() -> None:
    modules = {module_of(path): path for path in FILES}
    # What a package's __init__ only hands on is counted where it comes from.
    imports = {
        module: {name for name in imports_at_run_time(tree_of(path)) if name in modules and name != module}
        for module, path in modules.items()
        if path.name != "__init__.py"
    }
    assert circles(imports) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]


def test_no_folder_is_a_flat_hall() -> None:
    folders = {path.parent for path in FILES}
    counts = {name_of(folder): len([*folder.glob("*.py")]) - 1 for folder in folders}
    assert {name: count for name, count in counts.items() if count > MAX_FILES_IN_FOLDER} == {}


def modelling_files() -> list[Path]:
    return sorted((PACKAGE / "captioners" / "published").glob("modeling_*.py"))


def test_published_code_needs_only_torch_and_transformers() -> None:
    """It is uploaded beside the weights and runs where hfcap is not installed."""
    assert modelling_files()
    allowed = {"torch", "transformers", "huggingface_hub"}  # the last comes with transformers
    wrong = []
    for path in modelling_files():
        beside = {f".{other.stem}" for other in modelling_files()}
        for line, module in imported_modules(tree_of(path)):
            top = module.split(".")[0]
            if module not in beside and top not in allowed | sys.stdlib_module_names:
                wrong.append(f"{name_of(path)}:{line} imports {module}")
    assert wrong == []


@pytest.mark.parametrize(
    "path", [*FILES, *sorted((ROOT / "scripts").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))], ids=name_of
)
def test_size(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") < MAX_LINES
    long = [
        f"{function.name}: {length} lines"
        for function in functions(ast.parse(source))
        if (length := (function.end_lineno or 0) - function.lineno + 1) >= MAX_FUNCTION_LINES
    ]
    assert long == []


def public_without_docstring(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        overloaded = any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list)
        if not node.name.startswith("_") and not ast.get_docstring(node) and not overloaded:
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):  # what a private class offers to its module is read as well
            yield from public_without_docstring(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_things_are_documented(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree) or not tree.body, "the module has no docstring"
    assert list(public_without_docstring(tree.body)) == []


def test_encode_and_caption_stands_in_one_place() -> None:
    """Whatever captions goes through `generation`, so that equal options give equal captions everywhere."""
    callers = {
        name_of(path)
        for path in FILES
        if group_of(path) != "captioners"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr == "caption_states"
    }
    assert callers == {"hfcap/caption_batch.py"}


def catches_everything(handler: ast.ExceptHandler) -> bool:
    """A blanket handler that does not raise again (cleaning up and re-raising hides nothing)."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    blanket = any(
        kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"}) for kind in caught
    )
    last = handler.body[-1]
    return blanket and not (isinstance(last, ast.Raise) and last.exc is None)


def test_nothing_is_swallowed() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in [*FILES, *sorted((ROOT / "scripts").rglob("*.py"))]
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and catches_everything(node)
    ]
    assert found == []


def test_the_checks_see_what_they_forbid(tmp_path: Path) -> None:
    """The checks above find nothing in this package; here is what they are for."""
    source = "from hfcap import scoring\nimport hfcap.cli\nfrom hfcap.errors import UserError\n"
    assert [module for _, module in imported_modules(ast.parse(source))] == [
        "hfcap.scoring",
        "hfcap.cli",
        "hfcap.errors",
    ]
    swallowing = ast.parse("try:\n    f()\nexcept (ValueError, Exception):\n    pass\n")
    cleaning = ast.parse("try:\n    f()\nexcept BaseException:\n    g()\n    raise\n")
    verdicts = [
        catches_everything(node)
        for tree in (swallowing, cleaning)
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
    ]
    assert verdicts == [True, False]
    bare = ast.parse(
        "class A:\n    'a'\n    def f(self): ...\nclass _B:\n    def f(self): ...\n    def _g(self): ...\n"
    )
    assert list(public_without_docstring(bare.body)) == ["A.f", "_B.f"]
