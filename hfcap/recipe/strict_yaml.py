"""YAML for recipes: the core schema of YAML 1.2, no surprises, and the line of every key.

Differs from PyYAML's SafeLoader on purpose: `1e-5` is a number, `no`, `on` and `2024-01-01` are text (so that
`mixed_precision: no` means what it says), a key given twice is a problem, and anchors, aliases and tags are refused
(a few lines of nested aliases can fill the memory).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from hfcap.errors import UserError

MAX_CHARACTERS = 1_000_000
"""Longer texts are refused; a recipe has about a thousand characters."""

MAX_NODES = 20_000
"""More keys and values are refused while they are read; a recipe has some hundred."""

MAX_DEPTH = 30
"""Deeper nesting is refused before Python's stack ends."""

KeyPath = tuple[str | int, ...]

_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
_CORE_SCHEMA = (
    (_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    # Python refuses to convert integers of more than 4300 digits.
    (_INT, re.compile(r"^(?:[-+]?[0-9]{1,4000}|0o[0-7]{1,1000}|0x[0-9a-fA-F]{1,1000})$"), list("-+0123456789")),
    (_FLOAT, re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")),
)


class YamlProblem(UserError):
    """The text is not YAML that a recipe may use; the message starts with line and column where they are known."""


@dataclass(slots=True)
class YamlDocument:
    """A parsed document.

    Attributes:
        value: dicts with text keys, lists, str, int, float, bool, None.
        lines: path of keys -> line number, from 1.
        problems: (path of keys, what is wrong), for what could be read but is wrong, e.g. a key given twice.
    """

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[KeyPath, str]] = field(default_factory=list)


class _CoreSchemaLoader(yaml.SafeLoader):
    """Resolves plain scalars by the core schema; refuses anchors, aliases, tags and deep nesting."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse what a recipe may not hold, before anything is built from it."""
        event = self.peek_event()
        place = f"line {event.start_mark.line + 1}, column {event.start_mark.column + 1}"
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise YamlProblem(f"{place}: anchors and aliases (&, *) are not allowed; write the value out")
        if event.tag is not None:
            raise YamlProblem(f"{place}: tags are not allowed ({event.tag})")
        if self.depth >= MAX_DEPTH:
            raise YamlProblem(f"{place}: nested more than {MAX_DEPTH} levels deep")
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise YamlProblem(f"{place}: more than {MAX_NODES:,} keys and values; this is not a recipe")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_CoreSchemaLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _CORE_SCHEMA:
    _CoreSchemaLoader.add_implicit_resolver(_tag, _pattern, _first)


_OTHER_LINE_BREAKS = re.compile("[\r\x85\u2028\u2029]")


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else, so that any reader reads the same."""

    def ignore_aliases(self, data: object) -> bool:
        """Write a value out again where it occurs a second time: the reader refuses aliases."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent the items of a list below their key, as recipes are written by hand."""
        super().increase_indent(flow, False)


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes these as they are inside single quotes, where a reader folds them to a space.
    style = '"' if _OTHER_LINE_BREAKS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
for _tag, _pattern, _first in _CORE_SCHEMA:
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return text.lower() == "true"
    if node.tag == _INT:
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if node.tag == _FLOAT and math.isfinite(float(text)):
        return float(text)
    return text


def _text_problem(text: str) -> str | None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "contains half a character (an unpaired UTF-16 surrogate)"
    return "contains the character NUL" if "\0" in text else None


def _mapping(node: yaml.MappingNode, path: KeyPath, document: YamlDocument) -> dict[str, Any]:
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str) or _text_problem(key):
            document.problems.append((path, f"line {line}: a key must be text; write it in quotes"))
            continue
        here = (*path, key)
        if key in values:
            both = f"on line {lines[key]} and on line {line}" if lines[key] != line else f"both on line {line}"
            document.problems.append((here, f"given twice, {both}; delete one"))
        lines[key] = document.lines[here] = line
        values[key] = _value(value_node, here, document)
    return values


def _value(node: yaml.Node, path: KeyPath, document: YamlDocument) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = item.start_mark.line + 1
        return [_value(item, (*path, index), document) for index, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    value = _scalar(node)
    if isinstance(value, str) and (problem := _text_problem(value)):
        document.problems.append((path, problem))
        return ""
    return value


def parse(text: str) -> YamlDocument:
    """Parse one YAML document.

    Raises:
        YamlProblem: the syntax is wrong, or the text uses what is refused here (see the module's description).
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlProblem(f"longer than {MAX_CHARACTERS} characters; this is not a recipe")
    loader: _CoreSchemaLoader | None = None
    try:
        loader = _CoreSchemaLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlProblem(f"{place}not valid YAML ({error.problem or error.context})") from None
    except yaml.reader.ReaderError as error:
        raise YamlProblem(f"not valid YAML (character {error.position + 1}: {error.reason})") from None
    finally:
        if loader is not None:
            loader.dispose()
    document = YamlDocument()
    document.value = None if node is None else _value(node, (), document)
    return document


def dump(value: Any) -> str:
    """Return block-style YAML, keys in the order given; `parse` gives an equal value back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False)
