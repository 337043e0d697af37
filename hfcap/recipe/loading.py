"""From a YAML file and `key=value` overrides to a checked Recipe, with every error reported at once."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, create_model
from pydantic.json_schema import models_json_schema

from hfcap import registry
from hfcap.errors import UserError
from hfcap.files import read_text
from hfcap.recipe import strict_yaml
from hfcap.recipe.blocks import DataOptions, Recipe, ScoreOptions
from hfcap.recipe.chosen_keys import of_another
from hfcap.recipe.problems import (
    RecipeError,
    RecipeProblems,
    block_at,
    block_class,
    describe,
    joined,
    key_path,
    may_be_null,
)
from hfcap.recipe.strict_yaml import KeyPath
from hfcap.recipe.training_blocks import ONE_OF

__all__ = [
    "RecipeError",
    "dump_recipe",
    "load_recipe",
    "metric_options_from",
    "recipe_from_mapping",
    "recipe_json_schema",
]

Shape = TypeVar("Shape", bound=BaseModel)

MOST_PROBLEMS = 50
"""So many problems of a block are worded; a file with more is no recipe with mistakes in it."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `key.sub=value` overrides and check everything.

    Values of overrides are YAML (`train.max_steps=null`, `train.freeze=[vision]`); a block that is absent is created
    (`lora.r=8`).

    Raises:
        UserError: the file cannot be read.
        RecipeError: the recipe or an override is wrong; names every problem.
    """
    try:
        document = strict_yaml.parse(read_text(path, "recipe"))
    except strict_yaml.YamlProblem as error:
        raise RecipeError([f"{path}: {error}"]) from None
    findings = RecipeProblems(str(path), document.lines)
    for key, problem in document.problems:
        findings.add(key, problem)
    if not isinstance(document.value, dict):
        raise RecipeError([f"{path}: a recipe is a block of keys (name, captioner, model, data, train, ...)"])
    values = document.value
    for override in overrides:
        _apply_override(values, override, findings)
    return _checked(values, findings)


def recipe_from_mapping(values: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Recipe:
    """Check a recipe given as nested dicts; `where` stands for the file in error messages, `overrides` as above.

    Raises:
        RecipeError: the recipe is wrong; names every problem.
    """
    copied, findings = copy.deepcopy(dict(values)), RecipeProblems(where)
    for override in overrides:
        _apply_override(copied, override, findings)
    return _checked(copied, findings)


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with every default spelled out; loading it gives an equal recipe."""
    return strict_yaml.dump(recipe.model_dump(mode="json"))


def recipe_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a recipe, with the keys of all families, data sources and metrics.

    The keys of `model` follow `captioner`, those of `data` follow `data.source`.
    """
    families = {
        name: registry.load("captioners", name).REGISTERED.options_class for name in registry.names("captioners")
    }
    sources = {name: registry.load("sources", name).REGISTERED.options for name in registry.names("sources")}
    metrics = {name: registry.load("metrics", name).REGISTERED.options_class for name in registry.names("metrics")}
    models: list[type[BaseModel]] = [Recipe, *families.values(), *sources.values(), *metrics.values()]
    references, definitions = models_json_schema([(model, "validation") for model in models])
    recipe = definitions["$defs"].pop("Recipe")
    recipe["properties"]["captioner"]["enum"] = list(families)
    described = {name: {"description": field.description} for name, field in Recipe.model_fields.items()}
    about_source = {"description": DataOptions.model_fields["source"].description}
    recipe["properties"]["model"] = {"type": "object"} | described["model"]
    recipe["properties"]["data"] = described["data"] | {
        "type": "object",
        "required": ["source"],
        "properties": {"source": {"enum": list(sources)} | about_source},
        "allOf": [_when("source", name, references[model, "validation"]) for name, model in sources.items()],
    }
    definitions["$defs"]["ScoreOptions"]["properties"]["metric_options"] |= {
        "additionalProperties": False,
        "properties": {name: references[model, "validation"] for name, model in metrics.items()},
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


def _apply_override(values: dict[str, Any], override: str, findings: RecipeProblems) -> None:
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        findings.add_override(override, "write key=value or block.key=value, e.g. train.learning_rate=1e-5")
        return
    try:
        document = strict_yaml.parse(text)
    except strict_yaml.YamlProblem as error:
        findings.add_override(override, f"the value: {error}")
        return
    for below, problem in document.problems:
        findings.add_override(override, f"{'.'.join(map(str, (*path, *below)))}: {problem}")
    block = values
    for depth, part in enumerate(path[:-1], start=1):
        if block.get(part) is None:
            block[part] = {}
            findings.overrides[path[:depth]] = override
        block = block[part]
        if not isinstance(block, dict):
            findings.add_override(override, f"{'.'.join(path[:depth])} is a single value; it has no keys of its own")
            return
    block[path[-1]] = document.value
    # What the file said at this key and below it is gone.
    for known in [known for known in findings.lines if known[: len(path)] == path]:
        del findings.lines[known]
    findings.overrides[path] = override
    if path[:-1] == ("train",) and document.value:
        for rival in (name for names in ONE_OF if path[-1] in names for name in names if name != path[-1]):
            if ("train", rival) not in findings.overrides:
                block.pop(rival, None)
                findings.lines.pop(("train", rival), None)


def _checked(values: dict[str, Any], findings: RecipeProblems) -> Recipe:
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
        if name in values and values[name] is None and block_class(info) and not may_be_null(info):
            values[name] = {}
    if family:
        _check_parts(values.get("train"), tuple(family.parts), findings)
        _check_method(values, family, findings)
    _check_metrics(values.get("score"), findings)
    checked = _validated(shape, values, findings)
    problems = findings.messages()
    if problems or checked is None:
        raise RecipeError(problems)
    # The blocks are instances of their families' classes already; the plain class can be pickled and compared.
    return Recipe.model_validate({name: getattr(checked, name) for name in Recipe.model_fields})


def _entry(kind: str, name: Any, path: KeyPath, findings: RecipeProblems) -> Any:
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


def _check_parts(train: Any, parts: tuple[str, ...], findings: RecipeProblems) -> None:
    if not isinstance(train, dict):
        return
    for key in ("freeze", "learning_rates", "dropout", "gradient_checkpointing"):
        given = train.get(key)
        for index, name in enumerate(given if isinstance(given, list | dict) else ()):
            if isinstance(name, str) and name not in parts:
                path: KeyPath = ("train", key, name if isinstance(given, dict) else index)
                findings.add(path, f"this captioner has no part {name!r}{registry.did_you_mean(name, parts)}")


def _check_method(values: dict[str, Any], family: Any, findings: RecipeProblems) -> None:
    for block in ("lora", "scst", "dpo", "augment"):
        if not family.trains_by_gradients and values.get(block) is not None:
            problem = f"captioner {values['captioner']} trains no weights; remove this block ({block}: null)"
            findings.add((block,), problem)
    model = values.get("model")
    for key in family.options_class.freezing_keys if values.get("lora") is None else ():
        if isinstance(model, dict) and model.get(key) is not None:
            problem = f"{model[key]} leaves only LoRA to train; add the block 'lora: {{}}', or set this key to null"
            findings.add(("model", key), problem)


def _check_metrics(score: Any, findings: RecipeProblems) -> None:
    if not isinstance(score, dict):
        return
    known = registry.names("metrics")
    metrics = score.get("metrics", ScoreOptions().metrics)
    if not isinstance(metrics, list):
        return
    for index, name in enumerate(metrics):
        if isinstance(name, str) and name not in known:
            findings.add(("score", "metrics", index), f"unknown metric {name!r}{registry.did_you_mean(name, known)}")
    if isinstance(score.get("metric_options"), dict):
        _check_metric_options(score["metric_options"], metrics, ("score", "metric_options"), findings)


def _check_metric_options(
    options: dict[Any, Any], metrics: Sequence[Any], path: KeyPath, findings: RecipeProblems
) -> None:
    remedy = "score.metrics, or remove its options" if path else "--metrics, or leave its --option out"
    for name, given in options.items():
        metric = _entry("metrics", name, (*path, name), findings)
        if metric is not None and name not in metrics:
            findings.add((*path, name), f"this metric is not computed; add {name} to {remedy}")
        if metric is not None and isinstance(given, dict):
            _validated(metric.options_class, copy.deepcopy(given), findings, (*path, name))


def metric_options_from(assignments: Sequence[str], metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Check options of metrics that a command line gives as `metric.option=value`; values are YAML.

    Returns:
        metric name -> option -> value.

    Raises:
        UserError: names every problem: unknown metric or option, wrong value, metric that is not computed.
    """
    findings = RecipeProblems("options of metrics", override_name="--option")
    options: dict[str, Any] = {}
    for assignment in assignments:
        if assignment.partition("=")[0].count(".") == 1:
            _apply_override(options, assignment, findings)
        else:
            findings.add_override(assignment, "write metric.option=value, e.g. clip_score.images=FOLDER")
    _check_metric_options(options, metrics, (), findings)
    if problems := findings.messages():
        raise UserError("\n".join(problems))
    return options


def _validated(
    shape: type[Shape], values: dict[str, Any], findings: RecipeProblems, above: KeyPath = ()
) -> Shape | None:
    """Validate, drop what is wrong, validate again: so a rule between keys is checked although another key is wrong.

    `above` is where `values` stand in the recipe.
    """
    dropped: set[KeyPath] = set()
    while True:
        try:
            # Through JSON: strict there means no '5' for 5 and no 1 for true, while a list may still fill a tuple.
            return shape.model_validate_json(json.dumps(values, default=str), strict=True)
        except ValidationError as error:
            messages: dict[KeyPath, list[str]] = {}
            details = error.errors(include_url=False)
            for detail in details[:MOST_PROBLEMS]:
                path = key_path(detail, values)
                whose = of_another((*above, *path), values, findings) if detail["type"] == "extra_forbidden" else None
                what = whose or describe(detail, path, shape)
                if not _repeats(detail, path, what, dropped):
                    messages.setdefault(path, []).append(what)
            for path, whats in messages.items():
                findings.add((*above, *path), joined(whats, path, shape))
            if len(details) > MOST_PROBLEMS:
                findings.left_out += len(details) - MOST_PROBLEMS
                return None
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


def _field_path(path: KeyPath, shape: type[BaseModel]) -> KeyPath:
    """Cut a path at the field that holds it: an entry of a list or dict is dropped with its whole field."""
    for depth, part in enumerate(path, start=1):
        info = shape.model_fields.get(str(part))
        block = block_class(info) if info else None
        if block is None:
            return path[:depth]
        shape = block
    return path


def _remove(values: Any, path: KeyPath, shape: type[BaseModel]) -> bool:
    for part in path[:-1]:
        values = values[part] if isinstance(values, dict) and part in values else None
    if not path or not isinstance(values, dict) or path[-1] not in values:
        return False
    if block_at(path, shape) is not None and isinstance(values[path[-1]], dict):
        return False  # a rule of the block itself: dropping the block would hide the rest
    del values[path[-1]]
    return True
