"""What the Hub refuses in a card's metadata, from its documentation and from refusals that were seen.

Sources: hub-docs modelcard.md, the messages of /api/validate-yaml quoted in huggingface_hub's issues and tests.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from hfcap.recipe.publish_fields import LANGUAGE, LICENSES, REPO_ID

PIPELINE_TAGS = frozenset(
    """
    any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition depth-estimation
    document-question-answering feature-extraction fill-mask graph-ml image-classification image-feature-extraction
    image-segmentation image-text-to-image image-text-to-text image-text-to-video image-to-3d image-to-image
    image-to-text image-to-video keypoint-detection mask-generation multiple-choice object-detection other
    question-answering reinforcement-learning robotics sentence-similarity summarization table-question-answering
    tabular-classification tabular-regression text-classification text-generation text-ranking text-to-3d text-to-audio
    text-to-image text-to-speech text-to-video time-series-forecasting token-classification translation
    unconditional-image-generation video-classification video-text-to-text video-to-video visual-document-retrieval
    visual-question-answering voice-activity-detection zero-shot-classification zero-shot-image-classification
    zero-shot-object-detection
    """.split()  # noqa: SIM905
)
RELATIONS = frozenset({"adapter", "merge", "quantized", "finetune"})
FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def _is_texts(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(item, str) and item for item in values)


def _check_model_index(value: Any) -> list[str]:
    errors: list[str] = []
    if not isinstance(value, list) or not value:
        return ['"model-index" must be an array']
    for i, model in enumerate(value):
        where = f"model-index[{i}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not model["name"]:
            errors.append(f'"{where}.name" is required')
            continue
        if not isinstance(model.get("results"), list):
            errors.append(f'"{where}.results" is required')
            continue
        for j, result in enumerate(model["results"]):
            errors += _check_result(f"{where}.results[{j}]", result)
    return errors


def _check_result(where: str, result: Any) -> list[str]:
    errors = []
    if not isinstance(result, dict):
        return [f'"{where}" must be an object']
    if not isinstance((result.get("task") or {}).get("type"), str):
        errors.append(f'"{where}.task.type" is required')
    dataset = result.get("dataset") or {}
    for key in ("type", "name"):
        if not isinstance(dataset.get(key), str) or not dataset[key]:
            errors.append(f'"{where}.dataset.{key}" is required')
    if isinstance(dataset.get("type"), str) and not REPO_ID.match(dataset["type"]):
        errors.append(f'"{where}.dataset.type" with value {dataset["type"]!r} is not a dataset id')
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*errors, f'"{where}.metrics" must be a non-empty array']
    for k, metric in enumerate(metrics):
        value = metric.get("value")
        if not isinstance(metric.get("type"), str) or not metric["type"]:
            errors.append(f'"{where}.metrics[{k}].type" is required')
        if isinstance(value, bool) or not isinstance(value, (int, float, str)) or value != value:
            errors.append(f'"{where}.metrics[{k}].value" is not a number or text')
    return errors


def check_card(content: str, kind: str = "model") -> tuple[list[str], list[str]]:
    """Return (errors, warnings) for the README.md of a model, dataset or space."""
    match = FRONT_MATTER.match(content)
    if match is None:
        # A Space cannot start without its settings; the page of a model or dataset may lack them.
        missing = "empty or missing yaml metadata in repo card"
        return ([missing], []) if kind == "space" else ([], [missing])
    try:
        data = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        return [f"YAML parsing error: {str(error).splitlines()[0]}"], []
    if not isinstance(data, dict):
        return ["metadata must be a mapping"], []
    if kind == "space":
        return _check_space(data), []
    errors = [f'"{key}" must be text or a list of text' for key in _LISTS if key in data and not _is_texts(data[key])]
    if kind == "dataset":
        return errors, []
    errors += _check_values(data)
    if "model-index" in data:
        errors += _check_model_index(data["model-index"])
    return errors, [] if "license" in data else ["no license given"]


def _check_space(data: dict[str, Any]) -> list[str]:
    errors = []
    if data.get("sdk") not in ("gradio", "docker", "static"):
        errors.append('"sdk" must be one of gradio, docker, static')
    for key in ("colorFrom", "colorTo"):
        if key in data and data[key] not in _COLOURS:
            errors.append(f'"{key}" must be one of ' + ", ".join(_COLOURS))
    for key in ("title", "emoji", "app_file", "short_description"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be text')
    if len(str(data.get("short_description", ""))) > 60:
        errors.append('"short_description" must be at most 60 characters long')
    if "sdk_version" in data and not re.fullmatch(r"\d+(\.\d+){1,2}", str(data["sdk_version"])):
        errors.append('"sdk_version" must be a version')
    return errors + _check_licence(data) + _check_ids(data, ("models", "datasets"))


_COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
_LISTS = ("tags", "datasets", "metrics", "language")


def _check_licence(data: dict[str, Any]) -> list[str]:
    errors = []
    if "license" in data and not all(isinstance(x, str) and x in LICENSES for x in _as_list(data["license"])):
        errors.append('"license" must be one of the known identifiers')
    if data.get("license") == "other" and not data.get("license_name"):
        errors.append('"license_name" is required with license: other')
    return errors


def _check_ids(data: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    return [
        f'"{key}" with value {item!r} is not valid. Use a model or dataset id from the Hub'
        for key in keys
        for item in _as_list(data.get(key, []))
        if not isinstance(item, str) or not REPO_ID.match(item)
    ]


def _check_values(data: dict[str, Any]) -> list[str]:
    errors = _check_licence(data)
    if "pipeline_tag" in data and data["pipeline_tag"] not in PIPELINE_TAGS:
        errors.append(f'"pipeline_tag" {data["pipeline_tag"]!r} is not a known task')
    if not isinstance(data.get("library_name", ""), str):
        errors.append('"library_name" must be text')
    errors += _check_ids(data, ("base_model", "datasets"))
    if "base_model_relation" in data and data["base_model_relation"] not in RELATIONS:
        errors.append('"base_model_relation" must be one of ' + ", ".join(sorted(RELATIONS)))
    for language in _as_list(data.get("language", [])):
        if not LANGUAGE.fullmatch(str(language)):
            errors.append(f'"language" {language!r} must be an ISO 639 code')
    return errors


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
