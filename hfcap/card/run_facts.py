"""Everything the card says, read from a run directory once; what is not there stays None and is listed as missing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcap import registry
from hfcap.card.example_images import RECORD, SAMPLES_FOLDER, read_record
from hfcap.card.machine_paths import is_machine_path
from hfcap.card.requirements import needed_packages, with_bounds
from hfcap.card.usage_code import brings_code
from hfcap.files import read_json_lines, read_json_object
from hfcap.metrics.shared.caption_files import read_references
from hfcap.recipe.blocks import GenerateOptions, Recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.recipe import recipe_of_run
from hfcap.run_directory.records import Environment, Summary, checked_record
from hfcap.run_directory.records import Sample as SampleRow
from hfcap.scoring import read_scores
from hfcap.training.records.log_file import read_log

if TYPE_CHECKING:
    from hfcap.captioners.base import Captioner, CardFacts
    from hfcap.data.source import Source

N_SAMPLES_BEYOND_IMAGES = 6
N_WORST = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """A caption that the card shows.

    Attributes:
        score: the caption's CIDEr-D (raw scale), where it was scored.
        image: path in the repository, where a licence allows the image there.
    """

    file_name: str
    caption: str
    reference: str | None
    score: float | None
    image: str | None = None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run directory knows; see DESIGN section 4 for the files.

    Attributes:
        repo_id: where the model is or will be; None where the recipe does not say.
        model: folder of the weights that the card describes.
        must_merge: the weights are an adapter to a base model that only this run has; `model` is that base.
        is_adapter: `model` holds a PEFT adapter.
        has_code: `model` holds its own modelling code, which users must trust.
        requirements: what to install to caption with the model, with lower bounds where versions are known.
        published_captions: path of each published image -> what the model says about exactly that file.
        described: image id -> human captions, of the images that found slices show captions of.
        missing: one line for each fact that is not known, with its remedy.
    """

    recipe: Recipe
    family: CardFacts
    repo_id: str | None
    model: Path
    must_merge: bool
    is_adapter: bool
    has_code: bool
    model_type: str | None
    environment: dict[str, Any]
    summary: dict[str, Any]
    log: list[dict[str, Any]]
    split: str
    scores: dict[str, Any]
    baselines: dict[str, dict[str, Any]]
    samples: list[Sample]
    worst: list[Sample]
    requirements: list[str]
    published_captions: dict[str, str]
    described: dict[str, tuple[str, ...]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def base_models(self) -> list[dict[str, Any]]:
        """Base models with Hub ids only; a local copy is named by the recipe's publish.base_model or left out."""
        return hub_base_models(self.recipe, self.environment)

    @property
    def split_name(self) -> str:
        """The data source's own name of the scored split."""
        return str(getattr(self.recipe.data, f"{self.recipe.score.split}_split"))

    @property
    def dataset_name(self) -> str:
        """The dataset as people know it, else the kind of source."""
        publish = self.recipe.publish
        return publish.dataset_name or publish.dataset or f"own data (source {self.recipe.data.source})"

    @property
    def about_data(self) -> str:
        """What the data source itself knows of its images and captions: origin, known biases."""
        source: Source = registry.load("sources", self.recipe.data.source).REGISTERED
        return source.about

    @property
    def is_planned(self) -> bool:
        """Whether only a recipe is there: nothing was trained, captioned or scored yet."""
        return not (self.environment or self.summary or self.scores or self.model.is_dir())

    @property
    def is_fitted(self) -> bool:
        """Whether the captioner was fitted in one pass: no weight was trained."""
        family: type[Captioner] = registry.load("captioners", self.recipe.captioner).REGISTERED
        return not family.trains_by_gradients

    @property
    def decoding(self) -> GenerateOptions | None:
        """How captions are decoded; None where the captioner decodes nothing."""
        family: type[Captioner] = registry.load("captioners", self.recipe.captioner).REGISTERED
        return family.effective_decoding(self.recipe.model, self.recipe.generate)

    @property
    def started_from_weights(self) -> bool:
        """Whether any part of the captioner started from pretrained weights."""
        return bool(self.environment.get("base_models"))


def hub_base_models(recipe: Recipe, environment: dict[str, Any]) -> list[dict[str, Any]]:
    """Return {"id", "revision", "role"} of base models that are on the Hub.

    Where the run used a local copy, the revision is the one that publishing found and proved (`hub_revisions`).
    """
    found = []
    for base in environment.get("base_models", []):
        is_local = base.get("local") or is_machine_path(base["id"]) or base["id"].count("/") > 1
        if not is_local:
            found.append({"id": base["id"], "revision": base.get("revision"), "role": base.get("role")})
        elif recipe.publish.base_model and base.get("role", "captioner") == "captioner":
            found.append({"id": recipe.publish.base_model, "revision": None, "role": "captioner"})
    if not found and recipe.publish.base_model:
        found.append({"id": recipe.publish.base_model, "revision": None, "role": "captioner"})
    planned = recipe.model.pretrained
    if not environment and not found and planned and not is_machine_path(planned):
        found.append({"id": planned, "revision": recipe.model.revision, "role": "captioner"})
    known = environment.get("hub_revisions", {})
    return [{**base, "revision": base["revision"] or known.get(base["id"])} for base in found]


def read_card_input(run: RunDirectory, repo_id: str | None = None, model: Path | None = None) -> RunFacts:
    """Read a run directory; only recipe.yaml has to be there.

    Args:
        repo_id: overrides the recipe's publish.repo_id.
        model: folder with the weights where they are not in run.model (merged LoRA).

    Raises:
        UserError: a file of the run is damaged.
    """
    recipe = recipe_of_run(run)
    if model is None and recipe.publish.merged and run.merged_model.is_dir():
        model = run.merged_model
    folder = model or run.model
    # Without a base model on the Hub only merged weights can be published; they look like the run's own base model.
    must_merge = model is None and (folder / "adapter_config.json").is_file() and run.base_model.is_dir()
    folder = run.base_model if must_merge else folder
    environment = _record(run.environment, "environment of the run", Environment)
    summary = _record(run.summary, "training summary", Summary)
    split = recipe.score.split
    scores = _scores(run, split)
    baselines = {name: _scores(run, f"{split}.{name}") for name in recipe.score.baselines}
    log = read_log(run.log) if run.log.is_file() else []
    config = _object(folder / "config.json", "configuration of the model")
    samples = _samples(run)
    images = {sample.file_name: sample.image for sample in samples}
    has_references = scores and run.references(split).is_file()
    human: Mapping[str, tuple[str, ...]] = read_references(run.references(split)) if has_references else {}
    worst = [replace(sample, image=images.get(sample.file_name)) for sample in _worst(run, split, scores, human)]
    shown = {sample.file_name for sample in worst}
    record = read_record(run.path) if (run.path / RECORD).is_file() else {}
    card_input = RunFacts(
        recipe=recipe,
        family=registry.load("captioners", recipe.captioner).REGISTERED.card_facts,
        repo_id=repo_id or recipe.publish.repo_id,
        model=folder,
        must_merge=must_merge,
        is_adapter=(folder / "adapter_config.json").is_file(),
        has_code=brings_code(folder),
        model_type=config.get("model_type"),
        environment=environment,
        summary=summary,
        log=log,
        split=split,
        scores=scores,
        baselines={name: values for name, values in baselines.items() if values},
        samples=[sample for sample in samples if sample.file_name not in shown][:N_SAMPLES_BEYOND_IMAGES],
        worst=worst,
        requirements=_requirements(folder, record, environment),
        published_captions=record.get("captions", {}),
        described={image_id: human[image_id] for image_id in ids_of_examples(scores) if image_id in human},
    )
    card_input.missing.extend(_missing(run, card_input))
    return card_input


def _requirements(folder: Path, record: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    names = dict.fromkeys([*needed_packages(folder), *record.get("also_needed", [])])
    versions = record.get("versions") or environment.get("versions", {})
    return with_bounds(names, versions)


def _object(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return read_json_object(path, what)


def _record(path: Path, what: str, kind: Any) -> dict[str, Any]:
    found: dict[str, Any] = checked_record(path, what, kind) if path.is_file() else {}
    return found


def _scores(run: RunDirectory, name: str) -> dict[str, Any]:
    path = run.scores(name)
    return asdict(read_scores(path)) if path.is_file() else {}


def _samples(run: RunDirectory) -> list[Sample]:
    if not run.samples.is_file():
        return []
    rows = checked_record(run.samples, "sample captions", list[SampleRow])
    return [
        Sample(
            file_name=str(row.get("file_name") or row.get("image_id") or ""),
            caption=str(row["caption"]),
            reference=str(row["references"][0]) if row.get("references") else None,
            score=_cider(row.get("score")),
            image=_image(run, row.get("image", row.get("picture"))),
        )
        for row in rows
    ]


def _image(run: RunDirectory, value: Any) -> str | None:
    known = isinstance(value, str) and re.fullmatch(rf"{SAMPLES_FOLDER}/\d+\.jpg", value)
    return value if known and (run.path / value).is_file() else None


def _cider(value: Any) -> float | None:
    if isinstance(value, dict):
        value = value.get("cider")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 else None


def ids_of_examples(scores: dict[str, Any]) -> list[str]:
    """Return the images whose captions found slices show, of a score file's content."""
    found = (image_id for one in scores.get("error_slices") or () for image_id, _ in one["examples"])
    return list(dict.fromkeys(found))


def _worst(run: RunDirectory, split: str, scores: dict[str, Any], human: Mapping[str, Sequence[str]]) -> list[Sample]:
    """The captions with the lowest CIDEr-D of the whole split, so that a card does not only show successes."""
    per_image = {
        image_id: value for image_id, row in scores.get("per_image", {}).items() if (value := _cider(row)) is not None
    }
    if not per_image or not run.predictions(split).is_file():
        return []
    lowest = sorted(per_image, key=lambda image_id: (per_image[image_id], image_id))[:N_WORST]
    rows = {str(row.get("image_id")): row for _, row in read_json_lines(run.predictions(split), "predictions")}
    return [
        Sample(
            file_name=str(rows[image_id].get("file_name") or image_id),
            caption=str(rows[image_id].get("caption", "")),
            reference=next(iter(human.get(image_id, ())), None),
            score=per_image[image_id],
        )
        for image_id in lowest
        if image_id in rows
    ]


def _missing(run: RunDirectory, known: RunFacts) -> list[str]:
    publish, recipe = known.recipe.publish, run.recipe
    files = [
        (known.environment, f"{run.environment.name}: not written; versions, hardware and base models are unknown"),
        (known.summary, f"{run.summary.name}: not written; run 'hfcap train {run.path}'"),
        (known.scores, f"scores/{known.split}.json: not written; run 'hfcap score {run.path}'"),
        (known.samples, f"{run.samples.name}: not written; run 'hfcap caption {run.path}'"),
        (
            known.log or known.is_fitted,
            f"{run.log.name}: empty; the card has no training curve",
        ),
    ]
    lines = [line for value, line in files if not value]
    lines += [
        f"scores/{known.split}.{n}.json: baseline not scored"
        for n in known.recipe.score.baselines
        if n not in known.baselines
    ]
    if known.scores and not known.scores.get("intervals"):
        lines.append(f"scores/{known.split}.json: no intervals; set score.n_resamples and run 'hfcap score' again")
    if not known.published_captions:
        lines.append(f"{RECORD}: not written; the card does not show what its code prints; run 'hfcap score' again")
    if known.repo_id is None:
        lines.append(f"{recipe}: publish.repo_id: where the model will be; the card's code names this folder instead")
    if not licence_of(known):
        lines.append(
            f"{recipe}: publish.license: licence of the published weights (a Hub identifier such as apache-2.0)"
        )
    if publish.dataset_name is None and publish.dataset is None:
        lines.append(f"{recipe}: publish.dataset_name: the name of the training data")
    if len(known.base_models) < len(known.environment.get("base_models", [])):
        lines.append(f"{recipe}: publish.base_model: Hub id of the base model (the run used a local copy)")
    lines += [
        f"{run.environment.name}: revision of {base['id']}: not pinned"
        for base in known.base_models
        if not base["revision"]
    ]
    return lines


def licence_of(known: RunFacts) -> str | None:
    """The licence that the recipe gives, else the family's where its published weights were tuned."""
    if known.recipe.publish.license:
        return known.recipe.publish.license
    tuned = any(base["role"] == "captioner" for base in known.base_models)
    return known.family.license if tuned else None
