"""The card's tables and sentences, each made from the facts of a run; `Safe` marks what is already Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from hfcap.card.machine_paths import portable
from hfcap.card.markdown_pieces import count, dataset_link, duration, hub_link, shown_number
from hfcap.card.run_facts import RunFacts, Sample
from hfcap.pages.markdown import Safe, code, code_block, escape, one_line, table
from hfcap.recipe.blocks import SAMPLING_ONLY
from hfcap.scoring.score_table import METRIC_NAMES, metric_name
from hfcap.scoring.verdict import baseline_problem

# ---- title and summary ---------------------------------------------------------------------------------------------


def title(known: RunFacts) -> str:
    """Return the page's title."""
    return f"{known.recipe.name}: {known.family.title} image captioner"


def summary(known: RunFacts) -> Safe:
    """Return what the model is, from what and on what it was trained, and its main score, in one or two sentences."""
    if known.is_planned:
        return _plan(known)
    how = "a LoRA adapter for" if known.is_adapter else "an image captioner:"
    parts = [f"**{escape(known.recipe.name)}** is {how} {escape(known.family.title)}"]
    bases = [hub_link(base["id"]) for base in known.base_models]
    if bases:
        verb = "fine-tuned with LoRA (merged)" if known.recipe.lora and not known.is_adapter else "fine-tuned"
        verb = "built" if known.is_fitted else verb
        parts.append(f"{verb} from {' and '.join(bases)}")
    elif known.is_fitted:
        parts.append("fitted")
    elif known.environment and not known.started_from_weights:
        parts.append("trained from scratch")
    else:
        parts.append("trained")
    parts.append(f"on {dataset_link(known)}")
    text = " ".join([parts[0] + ("," if bases else ""), *parts[1:]])
    cider = known.scores.get("metrics", {}).get("cider")
    if cider is not None:
        text += (
            f". It reaches **CIDEr-D {shown_number('cider', cider)}** on the {count(known.scores['n_images'])} "
            f"images of its {escape(known.split_name)} split"
        )
    return Safe(f"{text}. {escape(known.family.summary)}")


def _plan(known: RunFacts) -> Safe:
    method = "with LoRA" if known.recipe.lora else "with all weights that are not frozen"
    method = "in one pass, without training weights" if known.is_fitted else method
    start = "".join(f" from {hub_link(base['id'])}" for base in known.base_models)
    verb = "fits" if known.is_fitted else "trains"
    return Safe(
        f"**{escape(known.recipe.name)}** {verb} an image captioner, {escape(known.family.title)}{start}, {method}, on "
        f"{dataset_link(known)}. {escape(known.family.summary)}"
    )


def caution(known: RunFacts) -> Safe | None:
    """Return a warning where the numbers say that the model should not be trusted."""
    baselines = {name: values.get("metrics", {}) for name, values in known.baselines.items()}
    found = baseline_problem(known.scores.get("metrics", {}), baselines)
    return None if found is None else Safe(f"This model scores {escape(found)}")


def printed(known: RunFacts) -> Safe | None:
    """Return what the code prints for an image of the repository, as recorded for exactly that file."""
    shown = [sample.image for sample in known.samples if sample.image in known.published_captions]
    for name in [*shown, *sorted(known.published_captions)]:
        assert name is not None
        caption = one_line(known.published_captions[name])
        link = f"[{code(name)}]({name})"
        return Safe(f"For {link} of this repository it prints:\n\n{code_block(caption or ' ', 'text')}")
    return None


# ---- samples -------------------------------------------------------------------------------------------------------


def sample_table(samples: list[Sample]) -> Safe | None:
    """Return captions next to one reference each."""
    if not samples:
        return None
    scored = any(sample.score is not None for sample in samples)
    header = ["Image", "Caption", "Reference"] + (["CIDEr-D"] if scored else [])
    rows = []
    for sample in samples:
        name = portable(sample.file_name)
        # The image's name says nothing next to the image itself.
        shown = Safe(f"![sample image]({sample.image})") if sample.image else code(name)
        row = [shown, escape(sample.caption) or "(empty)", escape(sample.reference or "–")]
        rows.append(row + ([shown_number("cider", sample.score)] if scored else []))
    return table(header, rows, right=1 if scored else 0)


# ---- training ------------------------------------------------------------------------------------------------------


def training(known: RunFacts) -> dict[str, Any]:
    """Return the sentences and tables of the training section."""
    return {"data": _data(known), "run": _run(known), "changed": _changed_settings(known)}


def _data(known: RunFacts) -> Safe:
    rows = []
    splits = known.environment.get("datasets", {})
    for split, facts in splits.items():
        fingerprint = str(facts.get("fingerprint") or "")
        rows.append(
            [
                code(split),
                count(facts["n_images"]) if facts.get("n_images") is not None else "–",
                count(facts["n_captions"]) if facts.get("n_captions") is not None else "–",
                code(fingerprint[:16]) if fingerprint else "–",
            ]
        )
    commits = sorted({str(facts["revision"]) for facts in splits.values() if facts.get("revision")})
    commit = f" at commit {', '.join(code(commit) for commit in commits)}" if commits else ""
    text = f"Data: {dataset_link(known)}{commit}, read by hfcap's source {code(known.recipe.data.source)}."
    if known.about_data:
        text += f" {known.about_data}"
    if rows:
        text += "\n\n" + table(["Split", "Images", "Captions", "Fingerprint"], rows)
    return Safe(text)


def _run(known: RunFacts) -> Safe:
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
        images = f"; {count(facts['images_seen'])} images{seen} seen" if facts.get("images_seen") else ""
        ends = {"early": ", ended by early stopping", "on request": ", ended on request before the planned end"}
        end = ends.get(str(facts.get("stopped")), "")
        sentences.append(f"{count(facts['steps'])} optimiser updates{epochs}{end}{images}.")
    best = facts.get("best_metric") or {}
    if facts.get("best_step") and best.get("value") is not None:
        name = str(best["name"]).removeprefix("validation_")
        value = shown_number(name, best["value"]) if name in METRIC_NAMES else f"{best['value']:.3f}"
        sentences.append(
            f"The published weights are those of update {count(facts['best_step'])} "
            f"(validation {escape(metric_name(name))} {value})."
        )
    if facts.get("train_seconds"):
        hardware = _hardware(known)
        speed = f", {facts['images_per_second']:.3g} images per second" if facts.get("images_per_second") else ""
        memory = f", {facts['peak_memory_bytes'] / 2**30:.1f} GiB peak memory" if facts.get("peak_memory_bytes") else ""
        on = f" on {escape(hardware)}" if hardware else ""
        sentences.append(f"Training took {duration(facts['train_seconds'])}{on}{speed}{memory}.")
    if precision := _precision(known.environment.get("precision")):
        sentences.append(precision)
    if emissions := facts.get("co2_eq_emissions"):
        sentences.append(f"It emitted {emissions['grams']:.3g} g of CO2 equivalents ({escape(emissions['source'])}).")
    return Safe(" ".join(sentences) + _members(facts.get("members") or []))


def _precision(facts: Any) -> str:
    """What training computed in, as read back from it."""
    if not isinstance(facts, dict) or not facts.get("weights"):
        return ""
    weights = str(escape(" and ".join(map(str, facts["weights"]))))
    text = f"It was computed in {weights}"
    if facts.get("autocast"):
        text = f"It was computed in {escape(str(facts['autocast']))} (mixed precision) with {weights} weights"
    elif facts.get("four_bit_layers"):
        others = " and ".join(str(kind) for kind in facts["weights"] if kind not in ("nf4", "fp4"))
        text = (
            f"It was computed in {escape(others)}, layers with 4-bit weights in {escape(str(facts['four_bit_layers']))}"
        )
    rounded = str(escape(" and ".join(map(str, facts.get("tf32") or []))))
    return f"{text}, {rounded} in TF32." if rounded else f"{text}."


def _members(members: Sequence[dict[str, Any]]) -> str:
    """Captioners that were put together, with the licence that each one's own card names."""
    if not members:
        return ""
    rows = [
        [
            code(str(portable(str(member["name"])))),
            code(str(member["captioner"])),
            f"{member['weight']:g}",
            code(str(member["revision"])) if member.get("revision") else "–",
            escape(str(member["license"])) if member.get("license") else "not stated",
        ]
        for member in members
    ]
    return "\n\nMembers; their licences hold for their weights:\n\n" + table(
        ["Member", "Captioner", "Weight", "Revision", "Licence"], rows
    )


def _hardware(known: RunFacts) -> str:
    hardware = known.environment.get("hardware", {})
    if hardware.get("gpu"):
        gpus = hardware["gpu"]
        return ", ".join(str(gpu) for gpu in gpus) if isinstance(gpus, list) else str(gpus)
    cores = f"{hardware['cores']} cores of " if hardware.get("cores") else ""
    return f"{cores}{hardware['cpu']}" if hardware.get("cpu") else ""


def _flat(block: BaseModel, prefix: str) -> Iterable[tuple[str, Any, bool]]:
    """Yield (key, value, whether it is the default); keys of nested blocks, mappings and lists of blocks are dotted."""
    for name, info in type(block).model_fields.items():
        value = getattr(block, name)
        if isinstance(value, BaseModel):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(item, BaseModel) for item in value):
            for number, item in enumerate(value):
                yield from _flat(item, f"{prefix}{name}.{number}.")
        else:
            is_default = not info.is_required() and value == info.get_default(call_default_factory=True)
            yield from ((key, item, is_default) for key, item in _leaves(f"{prefix}{name}", value))


def _leaves(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}", item)
    elif value is not None and value != "" and value != []:
        yield key, value


_BLOCKS = ("train", "lora", "model", "generate", "data")
_TRAIN_KEYS_OF_FITTED = ("train.per_device_eval_batch_size", "train.seed")
"""Of the keys of `train`, those that captioners without gradients heed."""


def _changed_settings(known: RunFacts) -> Safe | None:
    """Table of the settings that differ from the defaults; keys without effect are left out.

    A key that a later hfcap adds does not change the cards of runs that leave it alone.
    """
    recipe = known.recipe
    rows: list[tuple[str, Any, bool]] = []
    for name in ("train", "lora", "model", "data") if known.decoding is None else _BLOCKS:
        block = getattr(recipe, name)
        if isinstance(block, BaseModel):
            rows += _flat(block, f"{name}.")
    without_effect = {"data.source", "data.feature_store_folder", "train.dataloader_num_workers"}
    if not recipe.generate.do_sample:
        without_effect |= {f"generate.{name}" for name in SAMPLING_ONLY}
    changed = []
    for key, value, is_default in rows:
        of_gradients = known.is_fitted and key.startswith("train.") and key not in _TRAIN_KEYS_OF_FITTED
        if is_default or key in without_effect or of_gradients:
            continue
        shown = portable(value)
        # Where the images lie on the author's machine is no hyper-parameter.
        if shown == value and not str(value).startswith("path/to"):
            changed.append([code(key), code(str(shown))])
    if not changed:
        return None
    return Safe("Settings that differ from hfcap's defaults:\n\n" + table(["Key", "Value"], changed))


# ---- the rest ------------------------------------------------------------------------------------------------------


def limits(known: RunFacts) -> list[Safe]:
    """Return what users of any captioner must know, and what this run's facts add."""
    train = known.environment.get("datasets", {}).get("train", {})
    seen = f" ({count(train['n_images'])} images)" if train.get("n_images") else ""
    than = " than the numbers above" if known.scores else ""
    lines = [
        f"Captions follow the style, gaps and biases of the training data{seen}; on other kinds of images expect worse "
        f"captions{than}.",
        "Captions can name objects, counts, colours or people that are not in the image. Have a person check them "
        "where an error does harm.",
        "Not meant for identifying people, for judging persons, or for medical, legal or safety decisions.",
    ]
    if known.recipe.publish.language in ("en", ["en"]):
        lines.append("Captions are in English only.")
    return [Safe(line) for line in lines]


def reproduce(known: RunFacts) -> dict[str, Any]:
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
