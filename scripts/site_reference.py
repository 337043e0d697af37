"""The reference pages of the documentation site, written from the code while it is built (scripts/site_hooks.py)."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.testing import CliRunner

import hfcap
from hfcap import schema
from hfcap.cli import app

Schema = Mapping[str, Any]

_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
_NAMES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "null": "null"}
_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")


def in_a_cell(text: str) -> str:
    """Return `text` for one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# The keys of a recipe.


def recipe_page() -> str:
    """Return the page of all recipe keys, from what `hfcap recipe-schema` prints."""
    printed = CliRunner().invoke(app, ["recipe-schema"], catch_exceptions=False)
    return _RecipePage(json.loads(printed.stdout)).text()


class _RecipePage:
    def __init__(self, recipe: Schema) -> None:
        self.recipe = recipe
        self.definitions: Mapping[str, Schema] = recipe["$defs"]

    def text(self) -> str:
        parts = [
            "# Recipe keys\n",
            "Generated from the JSON Schema that `hfcap recipe-schema` prints. How recipes are written, and how keys "
            "are overridden: [Recipes](../recipes.md).\n",
            "## Top level\n",
            self.keys({key: self.top_level(key) for key in self.recipe["properties"]}),
        ]
        for key, value in self.recipe["properties"].items():
            if key in ("model", "data"):
                parts += self.chosen(key)
            elif (block := self.block_of(value)) is not None:
                parts += self.section(key, block, "##")
        return "\n".join(parts)

    def top_level(self, key: str) -> Schema:
        """The key, with what its block says about itself and where its keys are."""
        value = self.recipe["properties"][key]
        if key in ("model", "data"):
            chooser = "captioner" if key == "model" else "data.source"
            return {**value, "description": f"[keys](#{key}) depend on `{chooser}`"}
        if (block := self.block_of(value)) is None:
            return value
        return {**value, "description": f"[keys](#{key}): {block.get('description', '')}"}

    def chosen(self, key: str) -> list[str]:
        """The blocks whose keys depend on a name: `model` on the captioner, `data` on the source."""
        if key == "model":
            common, chooser = self.definitions["ModelOptions"], "captioner"
            references = {name: then["properties"]["model"] for name, then in _branches(self.recipe, chooser)}
        else:
            common, chooser = self.definitions["DataOptions"], "source"
            references = dict(_branches(self.recipe["properties"]["data"], chooser))
        shared = common["properties"]
        parts = [f"## {key}\n", _description(common), self.keys(shared)]
        for name, reference in references.items():
            block = self.definitions[_target(reference)]
            own = {one: value for one, value in block["properties"].items() if shared.get(one) != value}
            parts += [f"### {key}: {chooser} {name} {{ #{key}-{name} }}\n", _description(block)]
            parts.append(self.keys(own) if own else "No keys of its own.\n")
            parts += self.inside(key, own)
        parts[3:3] = self.inside(key, shared)
        return parts

    def section(self, key: str, block: Schema, level: str) -> list[str]:
        parts = [f"{level} {key}\n", _description(block), self.keys(block["properties"])]
        return [*parts, *self.inside(key, block["properties"])]

    def inside(self, key: str, properties: Mapping[str, Schema]) -> list[str]:
        """The sections of the blocks that keys of the block `key` hold."""
        parts: list[str] = []
        for name, value in properties.items():
            if (block := self.block_of(value)) is not None:
                parts += self.section(f"{key}.{name}", block, "####" if key in ("model", "data") else "###")
            for option, reference in value.get("properties", {}).items():
                block = self.definitions[_target(reference)]
                if block.get("properties"):
                    parts += self.section(f"{key}.{name}.{option}", block, "###")
        return parts

    def block_of(self, value: Schema) -> Schema | None:
        """The block that a key holds, if it holds one."""
        for choice in (value, *value.get("anyOf", ()), *(one.get("items", {}) for one in value.get("anyOf", ()))):
            if "$ref" in choice and "properties" in self.definitions[_target(choice)]:
                return self.definitions[_target(choice)]
        return None

    def keys(self, properties: Mapping[str, Schema]) -> str:
        rows = [
            (f"`{name}`", in_a_cell(self.kind(value)), _default(value), in_a_cell(value.get("description", "")))
            for name, value in properties.items()
        ]
        return table(("key", "value", "default", "meaning"), rows)

    def kind(self, value: Schema) -> str:
        """What a key takes, in words."""
        if "$ref" in value:
            inner = self.definitions[_target(value)]
            return "block" if "properties" in inner else self.kind(inner)
        if "anyOf" in value:
            return " or ".join(dict.fromkeys(map(self.kind, value["anyOf"])))
        if "enum" in value:
            return ", ".join(f"`{one}`" for one in value["enum"])
        if "const" in value:
            return f"`{value['const']}`"
        if value.get("type") == "array":
            return f"list of {self.kind(value['items'])}" if "items" in value else "list"
        if value.get("type") == "object":
            each = value.get("additionalProperties")
            return f"mapping of names to {self.kind(each)}" if isinstance(each, dict) and each else "block"
        bounds = [f"{words} {value[bound]}" for bound, words in _BOUNDS.items() if bound in value]
        return ", ".join([_NAMES.get(value.get("type", ""), "any value"), *bounds])


def _branches(value: Schema, chooser: str) -> Iterator[tuple[str, Schema]]:
    for branch in value["allOf"]:
        yield branch["if"]["properties"][chooser]["const"], branch["then"]


def _target(reference: Schema) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _description(block: Schema) -> str:
    return in_a_cell(block.get("description", "")) + "\n"


def _default(value: Schema) -> str:
    if "default" not in value:
        return ""
    shown = json.dumps(value["default"], ensure_ascii=False)
    return f"`{shown}`"


# The command line.


def commands_page() -> str:
    """Return the page of all commands with their arguments and options, in the order of `hfcap --help`."""
    parts = [
        "# Commands\n",
        "Generated from the command line itself; `hfcap COMMAND --help` prints the same. Exit codes: 0 done, 1 the "
        "work failed, 2 the input is wrong, 130 stopped.\n",
    ]
    panel = None
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        if command.rich_help_panel != panel:
            panel = command.rich_help_panel
            parts.append(f"## {panel}\n")
        parts += _command(f"hfcap {name}", command)
    return "\n".join(parts)


def _command(name: str, command: Any) -> list[str]:
    if hasattr(command, "commands"):
        return [part for inner, one in command.commands.items() for part in _command(f"{name} {inner}", one)]
    hints = get_type_hints(inspect.unwrap(command.callback))
    arguments = [_metavar(one) for one in command.params if _is_argument(one)]
    options = [] if len(arguments) == len(command.params) else ["[OPTIONS]"]
    rows = [_parameter(one, hints.get(one.name)) for one in command.params]
    parts = [f"### {name}\n", _paragraphs(command.help), f"```text\n{' '.join([name, *options, *arguments])}\n```\n"]
    return [*parts, table(("argument or option", "value", "default", "meaning"), rows)] if rows else parts


def _is_argument(one: Any) -> bool:
    return not one.opts[0].startswith("-")


def _metavar(one: Any) -> str:
    shown = one.name.upper() + ("..." if one.nargs == -1 else "")
    return shown if one.required else f"[{shown}]"


def _parameter(one: Any, hint: Any) -> tuple[str, str, str, str]:
    names = [_metavar(one)] if _is_argument(one) else [*one.opts, *one.secondary_opts]
    flag = hint is bool or bool in get_args(hint)
    default = "required" if one.required else "" if one.default in (None, [], ()) or flag else f"`{one.default}`"
    shown = ", ".join(f"`{name}`" for name in names)
    return shown, "" if flag else in_a_cell(_in_words(hint)), in_a_cell(default), in_a_cell(one.help or "")


def _in_words(hint: Any) -> str:
    """What a parameter with this annotation takes."""
    origin, inner = get_origin(hint), [one for one in get_args(hint) if one is not type(None)]
    if origin is Annotated:
        return _in_words(inner[0])
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin is list:
        return f"{_in_words(inner[0])}, one or more"
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, inner))
    return {str: "text", Path: "path", int: "integer", float: "number", bool: "true or false"}.get(hint, "")


# The Python interface.


def python_page() -> str:
    """Return the page of what `import hfcap` offers (`hfcap.__all__`) and of the records that functions exchange."""
    parts = ["# Python\n", "Generated from docstrings.\n"]
    offered = [name for name in vars(hfcap).get("__all__", ()) if not name.startswith("_")]
    if offered:
        parts += ["## hfcap\n", *(part for name in offered for part in _member(f"hfcap.{name}", getattr(hfcap, name)))]
    parts.append(
        "## Records\n\nWhat data sources, captioners, scoring and publishing hand to one another (`hfcap.schema`).\n"
    )
    for name, value in vars(schema).items():
        if inspect.isclass(value) and value.__module__ == schema.__name__:
            parts += _member(f"hfcap.schema.{name}", value)
    return "\n".join(parts)


def _member(name: str, value: Any) -> list[str]:
    if not callable(value):
        return []
    parts = [f"### {name}\n", _signature(name.rpartition(".")[2], value), docstring(value)]
    if inspect.isclass(value):
        for inner, method in vars(value).items():
            if not inner.startswith("_") and inspect.isfunction(method) and method.__doc__:
                parts += [f"#### {name.rpartition('.')[2]}.{inner}\n", _signature(inner, method), docstring(method)]
    return parts


def _signature(name: str, value: Callable[..., Any]) -> str:
    try:
        found = inspect.signature(value)
    except ValueError:
        return ""
    line = f"{name}{found}".replace("'", "")
    if len(line) > 90:
        line = f"{name}(\n" + "".join(f"    {one},\n" for one in found.parameters.values()).replace("'", "") + ")"
        if found.return_annotation is not inspect.Signature.empty:
            line += f" -> {found.return_annotation}".replace("'", "")
    return f"```python\n{line}\n```\n"


def docstring(value: Any) -> str:
    """Return the docstring of `value` as Markdown: sections of Google's style become lists."""
    lines: list[str] = []
    in_section = False
    for line in (inspect.getdoc(value) or "").splitlines():
        if line.rstrip(":") in _SECTIONS and line.endswith(":"):
            in_section = True
            lines += ["", f"**{line}**", ""]
        elif in_section and line.startswith("    ") and not line.startswith("     "):
            lines.append("- " + re.sub(r"^([\w.*]+)( \([^)]*\))?:", r"`\1`\2:", line.strip()))
        elif in_section and line.startswith("     "):
            lines.append("  " + line.strip())
        else:
            in_section = in_section and not line.strip()
            lines.append(line)
    return "\n".join(lines).strip() + "\n"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.replace("\f", "").split("\n\n")) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/recipe.md": recipe_page,
    "reference/commands.md": commands_page,
    "reference/python.md": python_page,
}
"""Address below docs/ -> what writes the page. No such file is kept in the repository."""
