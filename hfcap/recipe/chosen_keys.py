"""Blocks whose keys depend on a choice (data source, captioner, metric): whose an unknown key is, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hfcap import registry
from hfcap.recipe.blocks import DataOptions
from hfcap.recipe.problems import RecipeProblems
from hfcap.recipe.strict_yaml import KeyPath

_COMMON: Mapping[str, type[BaseModel]] = {"sources": DataOptions, "captioners": BaseModel, "metrics": BaseModel}
"""Kind of choice -> keys that all of the kind take and that go without saying."""
_SELECTED_BY: Mapping[str, KeyPath] = {"sources": ("data", "source"), "captioners": ("captioner",)}
"""Kind of choice -> the key that makes it; a metric is chosen by the name above its options."""


def of_another(path: KeyPath, values: Mapping[str, Any], findings: RecipeProblems) -> str | None:
    """Say of an unknown key that another data source, captioner or metric takes it; None where none does.

    Args:
        path: the key in the recipe, or below `metric.` where options of metrics are checked alone.
        values: the recipe, as far as it was read.
        findings: where keys were written: what an override left in the block is removed otherwise than by hand.
    """
    chosen = _choice(path, values)
    if chosen is None:
        return None
    kind, name = chosen
    owners = [other for other in registry.names(kind) if other != name and path[-1] in _keys(kind, other)]
    if not owners:
        return None
    word, block = kind.rstrip("s"), ".".join(map(str, path[:-1]))
    own = [key for key in _keys(kind, name) if key not in _COMMON[kind].model_fields]
    takes = f"{name!r} takes {', '.join(own)}" if own else f"{name!r} has none of its own"
    said = f"unknown key of {word} {name!r}: it belongs to {word} {' or '.join(map(repr, owners))}"
    selector = _SELECTED_BY.get(kind)
    if selector in findings.overrides and path not in findings.overrides:
        needed = [key for key, info in _keys(kind, name).items() if info.is_required() and key != "source"]
        source = [f"source: {name}"] if kind == "sources" else []
        written = ", ".join([*source, *(f"{key}: VALUE" for key in needed or ["KEY"])])
        return f"{said}; replace the whole block, '{block}={{{written}}}'; {takes}"
    return f"{said}; remove it; {takes}"


def _choice(path: KeyPath, values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return kind and name of what decides on a key; None where nothing known does."""
    kind, name = None, None
    if len(path) == 2 and path[0] == "data":
        data = values.get("data")
        kind, name = "sources", data.get("source") if isinstance(data, dict) else None
    elif len(path) == 2 and path[0] == "model":
        kind, name = "captioners", values.get("captioner")
    elif len(path) >= 2 and (len(path) == 2 or path[:-2] == ("score", "metric_options")):
        kind, name = "metrics", path[-2]
    return (kind, name) if kind and isinstance(name, str) and name in registry.names(kind) else None


def _keys(kind: str, name: str) -> Mapping[str, FieldInfo]:
    registered = registry.load(kind, name).REGISTERED
    shape: type[BaseModel] = registered.options if kind == "sources" else registered.options_class
    return shape.model_fields
