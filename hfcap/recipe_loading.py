"""From a YAML file and `key=value` overrides to a checked Recipe, with every error reported at once."""

from __future__ import annotations

import copy
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema

from hfcap import registry, strict_yaml
from hfcap.errors import UserError
from hfcap.files import read_text
from hfcap.recipe import Block, DataOptions, Recipe
from hfcap.strict_yaml import KeyPath

NOT_RECIPES = {"accelerate"}
"""Folders below recipes/ whose YAML files are for other programs."""


class RecipeError(UserError):
    """Everything that is wrong with a recipe.

    Attributes:
        problems: one line each: file (and line), full key, what is wrong, what to write instead.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            super().__init__("\n".join([f"{len(self.problems)} problems in the recipe:", *self.problems]))


@dataclass(slots=True)
class _Findings:
    """Problems by key, and where each key was written."""

    where: str
    origins: dict[KeyPath, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def add(self, path: KeyPath, what: str) -> None:
        key = ".".join(str(part) for part in path)
        line = f"{self.origins.get(path, self.where)}: {key + ': ' if key else ''}{what}"
        if line not in self.lines:
            self.lines.append(line)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `key.sub=value` overrides and check everything.

    Values of overrides are YAML (`train.max_steps=null`, `train.freeze=[vision]`); a block that is absent is created
    (`lora.r=8`).

    Raises:
        UserError: the file cannot be read.
        RecipeError: the recipe or an override is wrong; names every problem.
    """
    findings = _Findings(str(path))
    try:
        document = strict_yaml.parse(read_text(path, "recipe"))
    except strict_yaml.YamlProblem as error:
        raise RecipeError([f"{path}: {error}"]) from None
    findings.origins = {key: f"{path}:{line}" for key, line in document.lines.items()}
    for key, problem in document.problems:
        findings.add(key, problem)
    if not isinstance(document.value, dict):
        raise RecipeError([f"{path}: a recipe is a block of keys (name, captioner, model, data, train, ...)"])
    values = document.value
    for override in overrides:
        _apply_override(values, override, findings)
    return _checked(values, findings)


def recipe_from_mapping(values: Mapping[str, Any], where: str) -> Recipe:
    """Check a recipe given as nested dicts; `where` stands for the file in error messages.

    Raises:
        RecipeError: the recipe is wrong; names every problem.
    """
    return _checked(copy.deepcopy(dict(values)), _Findings(where))


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with every default spelled out; loading it gives an equal recipe."""
    return strict_yaml.dump(recipe.model_dump(mode="json"))


def find_recipes(root: Path) -> list[Path]:
    """Return all recipe files below `root`, sorted.

    Raises:
        UserError: `root` is not a folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of recipes")
    return sorted(
        path
        for pattern in ("*.yaml", "*.yml")
        for path in root.rglob(pattern)
        if not NOT_RECIPES.intersection(path.relative_to(root).parts[:-1])
    )


def recipe_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe, with the keys of all captioner families and data sources.

    The keys of `model` follow `captioner`, those of `data` follow `data.source`.
    """
    families = {
        name: registry.load("captioners", name).REGISTERED.options_class for name in registry.names("captioners")
    }
    sources = {name: registry.load("sources", name).REGISTERED.options for name in registry.names("sources")}
    models: list[type[BaseModel]] = [Recipe, *families.values(), *sources.values()]
    references, definitions = models_json_schema([(model, "validation") for model in models])
    recipe = definitions["$defs"].pop("Recipe")
    recipe["properties"]["captioner"]["enum"] = list(families)
    recipe["properties"]["model"] = {"type": "object"}
    recipe["properties"]["data"] = {
        "type": "object",
        "required": ["source"],
        "properties": {"source": {"enum": list(sources)}},
        "allOf": [_when("source", name, references[model, "validation"]) for name, model in sources.items()],
    }
    recipe["allOf"] = [
        _when("captioner", name, {"properties": {"model": references[model, "validation"]}})
        for name, model in families.items()
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **recipe,
        "title": "hfcap recipe",
        "$defs": definitions["$defs"],
    }


def _when(key: str, value: str, then: Mapping[str, Any]) -> dict[str, Any]:
    return {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": dict(then)}


def _apply_override(values: dict[str, Any], override: str, findings: _Findings) -> None:
    where = f"override {override!r}"
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        findings.lines.append(f"{where}: write key=value or block.key=value, e.g. train.learning_rate=1e-5")
        return
    try:
        document = strict_yaml.parse(text)
    except strict_yaml.YamlProblem as error:
        findings.lines.append(f"{where}: the value: {error}")
        return
    findings.lines.extend(f"{where}: {problem}" for _, problem in document.problems)
    block = values
    for depth, part in enumerate(path[:-1], start=1):
        if block.get(part) is None:
            block[part] = {}
            findings.origins[path[:depth]] = where
        block = block[part]
        if not isinstance(block, dict):
            findings.lines.append(f"{where}: {'.'.join(path[:depth])} is a single value; it has no keys of its own")
            return
    block[path[-1]] = document.value
    # What stood at this key in the file is gone, with everything below it.
    for old in [known for known in findings.origins if known[: len(path)] == path]:
        del findings.origins[old]
    findings.origins[path] = where
    for below in document.lines:
        findings.origins[(*path, *below)] = where


def _checked(values: dict[str, Any], findings: _Findings) -> Recipe:
    family = _entry("captioners", values.get("captioner"), ("captioner",), findings)
    data = values.get("data")
    source = None
    if isinstance(data, dict):
        if not isinstance(data.get("source"), str):
            findings.add(("data", "source"), f"name the source{registry.did_you_mean('', registry.names('sources'))}")
        source = _entry("sources", data.get("source"), ("data", "source"), findings)
    # Where family or source are unknown, their keys cannot be judged: anything goes, the unknown name is the problem.
    shape = _recipe_shape(
        family.options_class if family else Any,
        source.options if source else Any if isinstance(data, dict) else DataOptions,
    )
    for name, info in shape.model_fields.items():
        # An empty block (all its lines commented out) means its defaults.
        if name in values and values[name] is None and _block_class(info) and not _may_be_null(info):
            values[name] = {}
    if family:
        _check_parts(values.get("train"), tuple(family.parts), findings)
    checked = _validated(shape, values, findings)
    if findings.lines or checked is None:
        raise RecipeError(findings.lines)
    # The blocks are instances of their families' classes already; the plain class can be pickled and compared.
    return Recipe.model_validate({name: getattr(checked, name) for name in Recipe.model_fields})


def _entry(kind: str, name: Any, path: KeyPath, findings: _Findings) -> Any:
    if not isinstance(name, str):
        return None  # missing or of a wrong type, which is reported with the other keys
    try:
        return registry.load(kind, name).REGISTERED
    except UserError as error:
        findings.add(path, str(error))
        return None


@cache
def _recipe_shape(model_class: Any, data_class: Any) -> type[Recipe]:
    """Return a Recipe whose `model` and `data` have exactly these classes."""
    return create_model("Recipe", __base__=Recipe, model=(model_class, ...), data=(data_class, ...))


def _check_parts(train: Any, parts: tuple[str, ...], findings: _Findings) -> None:
    if not isinstance(train, dict):
        return
    for key in ("freeze", "learning_rates"):
        given = train.get(key)
        for index, name in enumerate(given if isinstance(given, list | dict) else ()):
            if isinstance(name, str) and name not in parts:
                path: KeyPath = ("train", key, name if isinstance(given, dict) else index)
                findings.add(path, f"this captioner has no part {name!r}{registry.did_you_mean(name, parts)}")


def _validated(shape: type[Recipe], values: dict[str, Any], findings: _Findings) -> Recipe | None:
    """Validate, drop what is wrong, validate again: so a rule between keys is checked although another key is wrong."""
    dropped: set[KeyPath] = set()
    while True:
        try:
            # Through JSON: strict there means no '5' for 5 and no 1 for true, while a list may still fill a tuple.
            return shape.model_validate_json(json.dumps(values, default=str), strict=True)
        except ValidationError as error:
            messages: dict[KeyPath, list[str]] = {}
            for detail in error.errors(include_url=False):
                path = _key_path(detail, values)
                what = _describe(detail, path, shape)
                if not _repeats(detail, path, what, dropped):
                    messages.setdefault(path, []).append(what)
            for path, whats in messages.items():
                findings.add(path, _joined(whats))
            wrong = {_field_path(path, shape) for path in messages} - dropped
            if not any([_remove(values, path, shape) for path in wrong]):
                return None
            dropped |= wrong


def _repeats(detail: Mapping[str, Any], path: KeyPath, what: str, dropped: set[KeyPath]) -> bool:
    """Tell whether this is only a consequence of a key that was reported and dropped."""
    if detail["type"] == "missing":
        return path in dropped
    words = set(re.findall(r"\w+", what))
    return detail["type"] == "value_error" and any(old[:-1] == path and old[-1] in words for old in dropped)


def _key_path(detail: Mapping[str, Any], values: Any) -> KeyPath:
    """Return pydantic's location without the names of union members, which are no keys of the recipe."""
    path: list[str | int] = []
    for part in detail["loc"]:
        if (isinstance(values, dict) and part in values) or (isinstance(values, list) and isinstance(part, int)):
            values = values[part]
            path.append(part)
    if detail["type"] == "missing":
        path.append(detail["loc"][-1])
    return tuple(path)


def _field_path(path: KeyPath, shape: type[BaseModel]) -> KeyPath:
    """Cut a path at the field that holds it: an entry of a list or dict is dropped with its whole field."""
    for depth, part in enumerate(path, start=1):
        info = shape.model_fields.get(str(part))
        block = _block_class(info) if info else None
        if block is None:
            return path[:depth]
        shape = block
    return path


def _remove(values: Any, path: KeyPath, shape: type[BaseModel]) -> bool:
    for part in path[:-1]:
        values = values[part] if isinstance(values, dict) and part in values else None
    if not path or not isinstance(values, dict) or path[-1] not in values:
        return False
    block = shape
    for part in path:
        info = block.model_fields.get(str(part))
        block = (_block_class(info) if info else None) or BaseModel
    if block is not BaseModel and isinstance(values[path[-1]], dict):
        return False  # a rule of the block itself: dropping the block would hide the rest
    del values[path[-1]]
    return True


def _block_class(info: FieldInfo) -> type[Block] | None:
    """Return the block that a field holds, also where it may be null."""
    for kind in (info.annotation, *typing.get_args(info.annotation)):
        if isinstance(kind, type) and issubclass(kind, Block):
            return kind
    return None


def _may_be_null(info: FieldInfo) -> bool:
    return types.NoneType in typing.get_args(info.annotation)


def _all_keys(shape: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in shape.model_fields.items():
        yield prefix + name
        block = _block_class(info)
        if block:
            yield from _all_keys(block, f"{prefix}{name}.")


def _suggest_key(path: KeyPath, shape: type[BaseModel]) -> str:
    """Return what an unknown key may have meant: a neighbour, else the same word in another block."""
    block = shape
    for part in path[:-1]:
        inner = _block_class(block.model_fields[str(part)]) if str(part) in block.model_fields else None
        if inner is None:
            return ""
        block = inner
    word = str(path[-1])
    prefix = "".join(f"{part}." for part in path[:-1])
    neighbours = {name: prefix + name for name in block.model_fields}
    elsewhere = {key.rpartition(".")[2]: key for key in _all_keys(shape)}
    for candidates in ({word: elsewhere[word]} if word in elsewhere else {}, neighbours, elsewhere):
        close = difflib.get_close_matches(word, candidates, n=2, cutoff=0.6)
        if close:
            return "; did you mean " + " or ".join(repr(candidates[name]) for name in close) + "?"
    return registry.did_you_mean(word, neighbours)


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "a block of keys",
    "model": "a block of keys",
}


def _describe(detail: Mapping[str, Any], path: KeyPath, shape: type[BaseModel]) -> str:
    """Say in the user's words what pydantic found."""
    kind, given, context = str(detail["type"]), detail.get("input"), detail.get("ctx", {})
    shown = json.dumps(given, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    if kind == "extra_forbidden":
        return "unknown key" + _suggest_key(path, shape)
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        close = difflib.get_close_matches(given, choices, n=1) if isinstance(given, str) else []
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"must be {context['expected']}, not {shown}{hint}"
    if kind == "string_pattern_mismatch":
        return f"{shown} does not match the pattern {context['pattern']}"
    stem, _, ending = kind.rpartition("_")
    if stem in _KINDS and ending in ("type", "parsing", "size"):
        return f"must be {_KINDS[stem]}, not {shown}"
    if kind == "int_from_float":
        return f"must be a whole number, not {shown}"
    message = str(detail["msg"]).replace("Input should be", "must be")
    return f"{message}, not {shown}"


def _joined(whats: list[str]) -> str:
    """Join what the members of a union say ('must be A, not x', 'must be B, not x') into one sentence."""
    if len(whats) > 1 and all(what.startswith("must be ") and ", not " in what for what in whats):
        wanted = dict.fromkeys(what.removeprefix("must be ").partition(", not ")[0] for what in whats)
        return f"must be {' or '.join(wanted)}, not {whats[0].partition(', not ')[2]}"
    return "; ".join(dict.fromkeys(whats))
