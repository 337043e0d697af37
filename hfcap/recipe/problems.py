"""What is wrong with a recipe, in the user's words: full keys, lines, suggestions."""

from __future__ import annotations

import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hfcap.errors import UserError
from hfcap.recipe.strict_yaml import KeyPath
from hfcap.registry import did_you_mean


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
class RecipeProblems:
    """Problems, and where each key was written.

    Attributes:
        where: stands for the file in messages.
        lines: path of keys -> line in the file.
        overrides: path of keys -> the override that set it, where one did.
        override_name: what an override is called.
        left_out: problems that were not worded, because there are too many.
    """

    where: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overrides: dict[KeyPath, str] = field(default_factory=dict)
    override_name: str = "override"
    left_out: int = 0
    _found: list[tuple[float, str]] = field(default_factory=list)

    def add(self, path: KeyPath, what: str) -> None:
        """Note what is wrong with a key."""
        key = ".".join(str(part) for part in path)
        line, label = self._place(path)
        self._note(line, f"{label}: {key + ': ' if key else ''}{what}")

    def add_override(self, override: str, what: str) -> None:
        """Note what is wrong with an override that cannot be applied."""
        self._note(math.inf, f"{self.override_name} {override!r}: {what}")

    def messages(self) -> list[str]:
        """Return all problems, those of the file in the order of its lines, then those of overrides."""
        found = [message for _, message in sorted(self._found, key=lambda found: found[0])]
        return [*found, f"{self.where}: {self.left_out:,} more problems"] if self.left_out else found

    def _note(self, line: float, message: str) -> None:
        if (line, message) not in self._found:
            self._found.append((line, message))

    def _place(self, path: KeyPath) -> tuple[float, str]:
        # A key that is missing or was set together with its block has the place of the block.
        for depth in range(len(path), 0, -1):
            if path[:depth] in self.overrides:
                return math.inf, f"{self.override_name} {self.overrides[path[:depth]]!r}"
            if path[:depth] in self.lines:
                return self.lines[path[:depth]], f"{self.where}:{self.lines[path[:depth]]}"
        return 0, self.where


def key_path(detail: Mapping[str, Any], values: Any) -> KeyPath:
    """Return pydantic's location without the names of union members, which are no keys of the recipe."""
    path: list[str | int] = []
    for part in detail["loc"]:
        if (isinstance(values, dict) and part in values) or (isinstance(values, list) and isinstance(part, int)):
            values = values[part]
            path.append(part)
    if detail["type"] == "missing":
        path.append(detail["loc"][-1])
    return tuple(path)


def block_class(info: FieldInfo) -> type[BaseModel] | None:
    """Return the block that a field holds, also where it may be null."""
    for kind in (info.annotation, *typing.get_args(info.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def may_be_null(info: FieldInfo) -> bool:
    """Tell whether a field allows null."""
    return types.NoneType in typing.get_args(info.annotation)


def _all_keys(shape: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in shape.model_fields.items():
        yield prefix + name
        block = block_class(info)
        if block:
            yield from _all_keys(block, f"{prefix}{name}.")


def block_at(path: KeyPath, shape: type[BaseModel]) -> type[BaseModel] | None:
    """Return the block at a path of keys; None where no block stands."""
    for part in path:
        info = shape.model_fields.get(str(part))
        block = block_class(info) if info else None
        if block is None:
            return None
        shape = block
    return shape


def _field_at(path: KeyPath, shape: type[BaseModel]) -> FieldInfo | None:
    block = block_at(path[:-1], shape) if path else None
    return block.model_fields.get(str(path[-1])) if block else None


def _field_description(path: KeyPath, shape: type[BaseModel]) -> str | None:
    info = _field_at(path, shape)
    return info.description if info else None


_ABBREVIATIONS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "steps": "max_steps",
}


def _suggest_key(path: KeyPath, shape: type[BaseModel]) -> str:
    """Return what an unknown key may have meant: a neighbour, else the same word in another block."""
    block = block_at(path[:-1], shape)
    if block is None:
        return ""
    word = str(path[-1])
    prefix = "".join(f"{part}." for part in path[:-1])
    neighbours = {name: prefix + name for name in block.model_fields}
    elsewhere = {key.rpartition(".")[2]: key for key in _all_keys(shape)}
    word = word if word in elsewhere else _ABBREVIATIONS.get(word, word)
    same = {word: elsewhere[word]} if word in elsewhere else {}
    # What is only alike counts for less in another block: 'format' is no misspelt 'lora'.
    for candidates, cutoff in ((same, 1.0), (neighbours, 0.6), (elsewhere, 0.8)):
        close = difflib.get_close_matches(word, candidates, n=2, cutoff=cutoff)
        if close:
            return "; did you mean " + " or ".join(repr(candidates[name]) for name in close) + "?"
    return did_you_mean(word, neighbours)


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a block of keys",
    "model": "a block of keys",
}


def describe(detail: Mapping[str, Any], path: KeyPath, shape: type[BaseModel]) -> str:
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
        return f"{shown} is not allowed ({_field_description(path, shape) or 'pattern ' + context['pattern']})"
    stem, _, ending = kind.rpartition("_")
    if stem in _KINDS and ending in ("type", "parsing", "size"):
        return f"must be {_KINDS[stem]}, not {shown}"
    if kind == "int_from_float":
        return f"must be a whole number, not {shown}"
    message = str(detail["msg"]).replace("Input should be", "must be")
    return f"{message}, not {shown}"


def joined(whats: list[str], path: KeyPath, shape: type[BaseModel]) -> str:
    """Join what the members of a union say ('must be A, not x', 'must be B, not x') into one sentence.

    Where a value of another kind stands at `path`, and it may be null, that is said too.
    """
    if all(what.startswith("must be ") and ", not " in what for what in whats):
        wanted = list(dict.fromkeys(what.removeprefix("must be ").partition(", not ")[0] for what in whats))
        info = _field_at(path, shape)
        if info is not None and may_be_null(info) and set(wanted) <= set(_KINDS.values()):
            wanted.append("null")
        return f"must be {' or '.join(wanted)}, not {whats[0].partition(', not ')[2]}"
    return "; ".join(dict.fromkeys(whats))
