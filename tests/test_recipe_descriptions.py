"""Every key that a recipe can have is described: editors and the reference show nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hfcap.recipe.loading import recipe_json_schema


def _keys(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key's path and schema; conditions (`if`) and what they refine (`then`) describe nothing new."""
    if isinstance(schema, dict):
        for name, value in schema.get("properties", {}).items():
            yield f"{path}.{name}", value
        for name, value in schema.items():
            if name not in ("if", "then", "default", "examples"):
                yield from _keys(value, f"{path}/{name}")
    elif isinstance(schema, list):
        for value in schema:
            yield from _keys(value, path)


def test_every_key_has_a_description() -> None:
    """120 of 358 had none."""
    schema = recipe_json_schema()
    keys = dict(_keys(schema))
    assert len(keys) > 300
    # Options of a metric are a block named by the metric, whose summary 'hfcap list metrics' prints.
    nameless = [path for path, key in keys.items() if not key.get("description") and "metric_options" not in path]
    assert nameless == []
    assert all(len(key.get("description", "")) >= 8 for path, key in keys.items() if "metric_options" not in path)
