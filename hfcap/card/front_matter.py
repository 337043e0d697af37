"""The card's YAML front matter: what the Hub indexes (fields: the Hub's modelcard.md)."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from hfcap.card.example_images import SAMPLES_FOLDER
from hfcap.card.kept_sections import split_front_matter
from hfcap.card.machine_paths import is_machine_path, portable
from hfcap.card.run_facts import RunFacts, licence_of
from hfcap.pages.markdown import one_line
from hfcap.scoring.score_table import is_times_100, metric_name, shown_score

N_WIDGET_EXAMPLES = 3

_HUB_METRICS = {"bleu_4": "bleu", "meteor": "meteor", "rouge_l": "rouge", "cider": "cider", "spice": "spice"}


def shown_value(metric: str, value: float) -> float:
    """Return the number of the card's metadata: x100 as the tables have it, with one more digit."""
    return float(shown_score(metric, float(value), digits=2))


def compact_signature(signature: dict[str, Any]) -> str:
    """Return the conditions of the scores in one line (`key:value` joined by bars), without machine paths."""
    parts: list[str] = []

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), item)
        elif value is not None:
            parts.append(f"{prefix}:{value if isinstance(value, str) else json.dumps(value)}")

    add("", portable(signature))
    return one_line(" | ".join(parts))


def _decoding(known: RunFacts) -> dict[str, Any]:
    if known.decoding is None:
        return {}
    values = known.decoding.model_dump()
    keys = ["num_beams", "max_new_tokens", "min_new_tokens", "length_penalty"]
    return {key: values[key] for key in keys + (["temperature", "top_p", "seed"] if values["do_sample"] else [])}


def _dataset_type(known: RunFacts) -> str:
    if known.recipe.publish.dataset:
        return known.recipe.publish.dataset
    return re.sub(r"[^a-z0-9_.-]+", "-", known.dataset_name.lower()).strip("-.")[:96] or "captions"


def _eval_results(known: RunFacts) -> list[EvalResult]:
    arguments: dict[str, Any] = {"decoding": decoding} if (decoding := _decoding(known)) else {}
    if known.scores.get("n_images"):
        arguments["n_images"] = int(known.scores["n_images"])
    if signature := compact_signature(known.scores.get("signature", {})):
        arguments["signature"] = signature
    return [
        EvalResult(
            task_type="image-to-text",
            task_name="Image captioning",
            dataset_type=_dataset_type(known),
            dataset_name=one_line(known.dataset_name),
            dataset_split=one_line(known.split_name),
            dataset_args=arguments,
            metric_type=metric,
            metric_name=f"{metric_name(metric)} x100" if is_times_100(metric) else metric,
            metric_value=shown_value(metric, value),
        )
        for metric, value in known.scores.get("metrics", {}).items()
        if value is not None
    ]


def _widget(known: RunFacts) -> list[dict[str, Any]] | None:
    """Published sample images with what the model says about exactly these files."""
    examples = [
        {"src": sample.image, "output": {"text": one_line(known.published_captions[sample.image])}}
        for sample in known.samples
        if sample.image in known.published_captions
    ]
    return examples[:N_WIDGET_EXAMPLES] or None


def _emissions(known: RunFacts) -> dict[str, Any] | None:
    """Measured emissions of the training, in the Hub's form (grams); None where nobody measured."""
    measured = known.summary.get("co2_eq_emissions")
    if not measured:
        return None
    hardware = known.environment.get("hardware", {})
    used = hardware.get("gpu") or hardware.get("cpu")
    return {
        "emissions": round(float(measured["grams"]), 3),
        "source": one_line(str(measured["source"])),
        "training_type": "fine-tuning" if known.started_from_weights else "pre-training",
        "hardware_used": one_line(", ".join(map(str, used)) if isinstance(used, list) else str(used or "")),
    }


def generated_metadata(known: RunFacts) -> dict[str, Any]:
    """Return the front matter as plain Python values (text, numbers, lists, dicts); unknown facts are left out."""
    publish = known.recipe.publish
    tags = ["image-captioning", "image-to-text", "hfcap", known.recipe.captioner.replace("_", "-")]
    tags += ["lora"] if known.recipe.lora else []
    results = _eval_results(known)
    bases = list(dict.fromkeys(base["id"] for base in known.base_models))
    data = ModelCardData(
        language=publish.language,
        license=licence_of(known),
        license_name=publish.license_name,
        license_link=publish.license_link,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=list(dict.fromkeys([*tags, *publish.tags])),
        base_model=bases[0] if len(bases) == 1 else bases or None,
        # The Hub knows no word for what is built from models without training them.
        base_model_relation=("adapter" if known.is_adapter else "finetune") if bases and not known.is_fitted else None,
        datasets=[publish.dataset] if publish.dataset and not is_machine_path(publish.dataset) else None,
        metrics=[_HUB_METRICS[name] for name in known.scores.get("metrics", {}) if name in _HUB_METRICS] or None,
        model_name=known.recipe.name,
        eval_results=results or None,
    )
    values = data.to_dict()
    values["widget"] = _widget(known)
    values["co2_eq_emissions"] = _emissions(known)
    values = {key: value for key, value in values.items() if value is not None}
    if not results:
        values.pop("model_name", None)
    # Through JSON: only plain values reach the YAML, never numpy scalars or subclasses of str.
    return json.loads(json.dumps(values, allow_nan=False, default=float))


def front_matter(known: RunFacts, existing_card: str) -> str:
    """Return the YAML block with its marks; keys that a user added by hand to the existing card are kept."""
    values = generated_metadata(known)
    values |= {key: value for key, value in _own_keys(existing_card).items() if key not in values}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10_000)
    return f"---\n{text}---\n"


def _own_keys(existing_card: str) -> dict[str, Any]:
    generated = {
        "language",
        "license",
        "license_name",
        "license_link",
        "library_name",
        "pipeline_tag",
        "tags",
        "base_model",
        "base_model_relation",
    }
    generated |= {"datasets", "metrics", "model-index", "model_name"}
    # Emissions that hfcap did not measure and examples of images elsewhere are the user's.
    try:
        values = yaml.safe_load(split_front_matter(existing_card)[0])
    except (yaml.YAMLError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    examples = values.get("widget")
    if isinstance(examples, list) and all(_is_generated_example(example) for example in examples):
        generated.add("widget")
    return {key: value for key, value in values.items() if key not in generated}


def _is_generated_example(example: Any) -> bool:
    return isinstance(example, dict) and str(example.get("src", "")).startswith(f"{SAMPLES_FOLDER}/")


def eval_results_file(known: RunFacts) -> str | None:
    """Return the content of .eval_results/hfcap.yaml: CIDEr-D for the benchmark's leaderboard, or None.

    Written where the recipe names the benchmark dataset and its task (publish.dataset, publish.eval_task_id).
    """
    publish = known.recipe.publish
    value = known.scores.get("metrics", {}).get("cider")
    if value is None or not publish.eval_task_id or not publish.dataset:
        return None
    decoding = ", ".join(f"{name} {number}" for name, number in _decoding(known).items())
    entry = EvalResultEntry(
        dataset_id=publish.dataset,
        task_id=publish.eval_task_id,
        value=shown_value("cider", value),
        notes=one_line(f"CIDEr-D x100, split {known.split_name}; {decoding}; scored with hfcap"),
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True, width=10_000)
