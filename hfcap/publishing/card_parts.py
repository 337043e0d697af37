"""The card's tables and sentences, each made from the facts of a run; `Safe` marks what is already Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from hfcap.publishing.escaping import Safe, code, code_block, escape, one_line, portable
from hfcap.publishing.facts import CardInput, Sample
from hfcap.publishing.metadata import METRIC_NAMES, compact_signature, metric_name, shown_value

FEW_IMAGES = 100
"""Below so many pictures CIDEr's document frequencies say little."""

BASELINE_NAMES = {"most_frequent_caption": "Most frequent caption", "blank_images": "Blank pictures"}


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> Safe:
    """Return a Markdown table of cells that are already escaped; the last `right` columns are right-aligned."""
    left = len(header) - right
    lines = [header, ["---"] * left + ["---:"] * right, *rows]
    return Safe("\n".join("| " + " | ".join(line) + " |" for line in lines))


def hub_link(repo_id: str, kind: str = "") -> Safe:
    """Return a link to a model (or `datasets/`) on the Hub."""
    return Safe(f"[{escape(repo_id)}](https://huggingface.co/{kind}{repo_id})")


def count(number: int | float) -> str:
    """Return 1234567 as 1,234,567."""
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"


# ---- title and summary ---------------------------------------------------------------------------------------------


def title(known: CardInput) -> str:
    """Return the page's title."""
    return f"{known.recipe.name}: {known.family.title} image captioner"


def summary(known: CardInput) -> Safe:
    """Return what the model is, from what and on what it was trained, and its main score, in one or two sentences."""
    if known.is_planned:
        return _plan(known)
    how = "a LoRA adapter for" if known.is_adapter else "an image captioner:"
    parts = [f"**{escape(known.recipe.name)}** is {how} {escape(known.family.title)}"]
    bases = [hub_link(base["id"]) for base in known.base_models]
    if bases:
        verb = "fine-tuned with LoRA (merged)" if known.recipe.lora and not known.is_adapter else "fine-tuned"
        parts.append(f"{verb} from {' and '.join(bases)}")
    elif known.environment and not known.started_from_weights:
        parts.append("trained from scratch")
    else:
        parts.append("trained")
    parts.append(f"on {dataset_link(known)}")
    text = " ".join([parts[0] + ("," if bases else ""), *parts[1:]])
    cider = known.scores.get("metrics", {}).get("cider")
    if cider is not None:
        text += (
            f". It reaches **CIDEr-D {shown_value('cider', cider):.1f}** on the {count(known.scores['n_images'])} "
            f"pictures of its {escape(known.split_name)} split"
        )
    return Safe(f"{text}. {escape(known.family.summary)}")


def _plan(known: CardInput) -> Safe:
    method = "with LoRA" if known.recipe.lora else "with all weights that are not frozen"
    start = "".join(f" from {hub_link(base['id'])}" for base in known.base_models)
    return Safe(
        f"**{escape(known.recipe.name)}** trains an image captioner, {escape(known.family.title)}{start}, {method}, on "
        f"{dataset_link(known)}. {escape(known.family.summary)}"
    )


def dataset_link(known: CardInput) -> Safe:
    """Return the dataset's name, with a link where it is on the Hub."""
    dataset = known.recipe.publish.dataset
    if dataset is None:
        return escape(known.dataset_name)
    return Safe(f"[{escape(known.dataset_name)}](https://huggingface.co/datasets/{dataset})")


def caution(known: CardInput) -> Safe | None:
    """Return a warning where the numbers say that the model should not be trusted."""
    cider = known.scores.get("metrics", {}).get("cider")
    if cider is None:
        return None
    beaten_by = [
        BASELINE_NAMES[name].lower()
        for name, values in known.baselines.items()
        if (values.get("metrics", {}).get("cider") or 0) >= cider
    ]
    if not beaten_by:
        return None
    return Safe(
        f"This model scores no better than a baseline that ignores the picture ({' and '.join(beaten_by)}). "
        "Its captions say little about what a picture shows."
    )


def printed(known: CardInput) -> Safe | None:
    """Return what the code prints for a picture of the repository, as recorded for exactly that file."""
    shown = [sample.picture for sample in known.samples if sample.picture in known.published_captions]
    for name in [*shown, *sorted(known.published_captions)]:
        assert name is not None
        caption = one_line(known.published_captions[name])
        link = f"[{code(name)}]({name})"
        return Safe(f"For {link} of this repository it prints:\n\n{code_block(caption or ' ', 'text')}")
    return None


# ---- evaluation ----------------------------------------------------------------------------------------------------


def evaluation(known: CardInput) -> dict[str, Any] | None:
    """Return conditions, table and notes of the scores; None where nothing was scored."""
    metrics = known.scores.get("metrics", {})
    if not metrics:
        return _target(known)
    generate = known.recipe.generate
    decoding = f"{generate.num_beams} beams" if generate.num_beams > 1 else "greedy decoding"
    if generate.do_sample:
        decoding = f"sampling (temperature {generate.temperature:g}, top-p {generate.top_p:g}, seed {generate.seed})"
    conditions = Safe(
        f"{dataset_link(known)}, split {code(known.split_name)}, {count(known.scores['n_images'])} pictures; "
        f"{decoding}, at most {generate.max_new_tokens} new tokens. Values are times 100, as in papers"
        + (", with bootstrap intervals." if known.scores.get("intervals") else ".")
    )
    signature = compact_signature(known.scores.get("signature", {}))
    return {
        "conditions": conditions,
        "table": _score_table(known, metrics),
        "notes": _score_notes(known),
        "signature": code(signature) if signature else None,
    }


def _target(known: CardInput) -> dict[str, Any] | None:
    """The published numbers alone, of a recipe that was not scored yet."""
    expect = known.recipe.expect
    if expect is None:
        return None
    rows = [[str(escape(metric_name(name))), _number(name, value)] for name, value in expect.metrics.items()]
    return {
        "conditions": Safe("Not scored yet. What the recipe aims at, times 100:"),
        "table": table(["Metric", "Published"], rows, right=1),
        "notes": [Safe(f"Published values: {escape(expect.source)}; measured elsewhere.")],
        "signature": None,
    }


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    shown = shown_value(metric, value)
    return f"{shown:.1f}" if metric in METRIC_NAMES else f"{shown:g}"


def _score_table(known: CardInput, metrics: dict[str, Any]) -> Safe:
    intervals = known.scores.get("intervals", {})
    expected = known.recipe.expect.metrics if known.recipe.expect else {}
    level = f"{100 * known.recipe.score.confidence_level:g} % interval"
    columns = ["Metric", "This model"] + ([level] if intervals else [])
    columns += [BASELINE_NAMES[name] for name in known.baselines] + (["Published"] if expected else [])
    order = {name: place for place, name in enumerate(METRIC_NAMES)}
    rows = []
    for metric in sorted(metrics, key=lambda name: (order.get(name, len(order)), name)):
        row = [str(escape(metric_name(metric))), f"**{_number(metric, metrics[metric])}**"]
        if intervals:
            bounds = intervals.get(metric)
            row.append(f"{_number(metric, bounds[0])} to {_number(metric, bounds[1])}" if bounds else "–")
        row += [_number(metric, values.get("metrics", {}).get(metric)) for values in known.baselines.values()]
        row += [_number(metric, expected.get(metric))] if expected else []
        rows.append(row)
    return table(columns, rows, right=len(columns) - 1)


def _score_notes(known: CardInput) -> list[Safe]:
    notes = []
    if known.baselines:
        notes.append(
            Safe(
                "Baselines: "
                + "; ".join(
                    {
                        "most_frequent_caption": "the most frequent training caption for every picture",
                        "blank_images": "this captioner fed blank pictures",
                    }[name]
                    for name in known.baselines
                )
                + "."
            )
        )
    expect = known.recipe.expect
    if expect:
        notes.append(
            Safe(
                f"Published values: {escape(expect.source)}. They were measured elsewhere, with other settings where "
                f"the signature differs; {_reproduction(known)}."
            )
        )
    if 0 < known.scores.get("n_images", 0) < FEW_IMAGES:
        notes.append(
            Safe(
                f"CIDEr-D weighs words by their rarity in the split; with fewer than {FEW_IMAGES} pictures it is rough."
            )
        )
    return notes


def _reproduction(known: CardInput) -> str:
    expect = known.recipe.expect
    assert expect is not None
    metrics = known.scores.get("metrics", {})
    pairs = {name: (metrics[name], target) for name, target in expect.metrics.items() if metrics.get(name) is not None}
    if not pairs:
        return "none of them was measured here"
    short = [name for name, (value, target) in pairs.items() if value < target * (1 - expect.tolerance)]
    if not short:
        return f"this model reaches all of them within {100 * expect.tolerance:g} %"
    return "this model falls short in " + ", ".join(str(escape(metric_name(name))) for name in short)


# ---- samples -------------------------------------------------------------------------------------------------------


def sample_table(samples: list[Sample]) -> Safe | None:
    """Return captions beside one human caption each."""
    if not samples:
        return None
    scored = any(sample.score is not None for sample in samples)
    header = ["Picture", "Caption", "A human wrote"] + (["CIDEr-D"] if scored else [])
    rows = []
    for sample in samples:
        name = portable(sample.file_name)
        # The picture's name says nothing beside the picture itself.
        shown = Safe(f"![sample picture]({sample.picture})") if sample.picture else code(name)
        row = [shown, escape(sample.caption) or "(empty)", escape(sample.reference or "–")]
        rows.append(row + ([_number("cider", sample.score)] if scored else []))
    return table(header, rows, right=1 if scored else 0)


# ---- training ------------------------------------------------------------------------------------------------------


def training(known: CardInput) -> dict[str, Any]:
    """Return the sentences and tables of the training section."""
    changed, all_settings = _settings(known)
    return {"data": _data(known), "run": _run(known), "changed": changed, "settings": all_settings}


def _data(known: CardInput) -> Safe:
    rows = []
    for split, facts in known.environment.get("datasets", {}).items():
        fingerprint = str(facts.get("fingerprint") or "")
        rows.append(
            [
                code(split),
                count(facts["n_images"]) if facts.get("n_images") is not None else "–",
                count(facts["n_captions"]) if facts.get("n_captions") is not None else "–",
                code(fingerprint[:16]) if fingerprint else "–",
            ]
        )
    text = f"Data: {dataset_link(known)}, read by hfcap's source {code(known.recipe.data.source)}."
    if known.about_data:
        text += f" {known.about_data}"
    if rows:
        text += "\n\n" + table(["Split", "Pictures", "Captions", "Fingerprint"], rows)
    return Safe(text)


def _run(known: CardInput) -> Safe:
    facts = known.summary
    if not facts:
        return Safe("")
    sentences = []
    parameters, trained = facts.get("parameters"), facts.get("trainable_parameters")
    if parameters and trained:
        method = "LoRA: " if facts.get("method") == "lora" else ""
        if trained < parameters:
            share = f"{100 * trained / parameters:.2g} %"
            sentences.append(f"{method}{count(trained)} of {count(parameters)} parameters were trained ({share}).")
        else:
            sentences.append(f"All {count(parameters)} parameters were trained.")
    if facts.get("steps"):
        epochs = f" ({facts['epochs']:.3g} epochs)" if facts.get("epochs") else ""
        seen = f", {count(facts['captions_seen'])} captions" if facts.get("captions_seen") else ""
        images = f"; {count(facts['images_seen'])} pictures{seen} seen" if facts.get("images_seen") else ""
        end = ", ended by early stopping" if facts.get("stopped") == "early" else ""
        sentences.append(f"{count(facts['steps'])} optimiser updates{epochs}{end}{images}.")
    best = facts.get("best_metric") or {}
    if facts.get("best_step") and best.get("value") is not None:
        name = str(best["name"]).removeprefix("validation_")
        value = _number(name, best["value"]) if name in METRIC_NAMES else f"{best['value']:.3f}"
        sentences.append(
            f"The published weights are those of update {count(facts['best_step'])} "
            f"(validation {escape(metric_name(name))} {value})."
        )
    if facts.get("train_seconds"):
        hardware = _hardware(known)
        speed = f", {facts['images_per_second']:.3g} pictures per second" if facts.get("images_per_second") else ""
        memory = f", {facts['peak_memory_bytes'] / 2**30:.1f} GiB peak memory" if facts.get("peak_memory_bytes") else ""
        on = f" on {escape(hardware)}" if hardware else ""
        sentences.append(f"Training took {duration(facts['train_seconds'])}{on}{speed}{memory}.")
    if emissions := facts.get("co2_eq_emissions"):
        sentences.append(f"It emitted {emissions['grams']:.3g} g of CO2 equivalents ({escape(emissions['source'])}).")
    return Safe(" ".join(sentences))


def _hardware(known: CardInput) -> str:
    hardware = known.environment.get("hardware", {})
    if hardware.get("gpu"):
        gpus = hardware["gpu"]
        return ", ".join(str(gpu) for gpu in gpus) if isinstance(gpus, list) else str(gpus)
    cores = f"{hardware['cores']} cores of " if hardware.get("cores") else ""
    return f"{cores}{hardware['cpu']}" if hardware.get("cpu") else ""


def _flat(block: BaseModel, prefix: str) -> Iterable[tuple[str, Any, bool]]:
    """Yield (key, value, whether it is the default), nested blocks and mappings with dotted keys."""
    for name, info in type(block).model_fields.items():
        value = getattr(block, name)
        if isinstance(value, BaseModel):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            is_default = not info.is_required() and value == info.get_default(call_default_factory=True)
            yield from ((key, item, is_default) for key, item in _leaves(f"{prefix}{name}", value))


def _leaves(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}", item)
    elif value is not None and value != "" and value != []:
        yield key, value


def _settings(known: CardInput) -> tuple[Safe | None, Safe]:
    """Tables of the settings that differ from the defaults, and of all; keys without effect are left out."""
    recipe = known.recipe
    rows: list[tuple[str, Any, bool]] = []
    for name in ("train", "lora", "model", "generate", "data"):
        block = getattr(recipe, name)
        if isinstance(block, BaseModel):
            rows += _flat(block, f"{name}.")
    without_effect = {"data.source", "data.feature_store_folder"}
    if not recipe.generate.do_sample:
        without_effect |= {f"generate.{name}" for name in ("temperature", "top_k", "top_p", "seed")}
    changed, cells = [], []
    for key, value, is_default in rows:
        if key in without_effect:
            continue
        shown = portable(value)
        cell = [code(key), code(str(shown))]
        cells.append(cell)
        # Where the pictures lie on the author's machine is no hyper-parameter.
        if not is_default and shown == value and not str(value).startswith("path/to"):
            changed.append(cell)
    first = "Settings that differ from hfcap's defaults:\n\n" + table(["Key", "Value"], changed)
    return Safe(first) if changed else None, table(["Key", "Value"], cells)


# ---- the rest ------------------------------------------------------------------------------------------------------


def limits(known: CardInput) -> list[Safe]:
    """Return what users of any captioner must know, and what this run's facts add."""
    train = known.environment.get("datasets", {}).get("train", {})
    seen = f" ({count(train['n_images'])} pictures)" if train.get("n_images") else ""
    lines = [
        f"The model writes captions in the manner of its training data{seen}, with that data's gaps, habits and "
        "prejudices; on other kinds of pictures expect worse captions than the numbers above.",
        "Captions can name objects, counts, colours or people that are not in the picture. Have a person check them "
        "where an error does harm.",
        "Not meant for identifying people, for judging persons, or for medical, legal or safety decisions.",
    ]
    if known.recipe.publish.language == "en":
        lines.append("Captions are in English only.")
    return [Safe(line) for line in lines]


def reproduce(known: CardInput) -> dict[str, Any]:
    """Return how to run the same recipe again, and in which environment it ran."""
    versions = known.environment.get("versions", {})
    environment = []
    if known.environment.get("python"):
        environment.append(f"Python {known.environment['python']}")
    environment += [f"{name} {version}" for name, version in versions.items() if version]
    details = ", ".join(str(escape(item)) for item in environment)
    seed = known.environment.get("seed")
    commit = known.environment.get("git_commit")
    extra = [f"seed {seed}"] if seed is not None else []
    extra += [f"hfcap at commit {commit}"] if commit else []
    if extra:
        details += f" ({', '.join(str(escape(item)) for item in extra)})"
    return {
        "how": Safe(
            "`recipe.yaml` in this repository holds every setting; write your own paths where it says `path/to`."
        ),
        "environment": Safe(f"Ran with {details}.") if details else None,
    }
