"""What a run notes about itself, as it must look when it is read again: a disk or a person may have changed it.

Each key may be missing (an earlier version wrote the file), and keys that are not named here may hold anything.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from hfcap.errors import UserError
from hfcap.files import read_json

_AS_WRITTEN = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

Count = Annotated[int, Field(ge=0, le=2**63)] | None
Amount = Annotated[float, Field(ge=0, le=1e30)] | None


@with_config(_AS_WRITTEN)
class _BaseModel(TypedDict):
    id: str
    revision: str | None
    role: str


@with_config(_AS_WRITTEN)
class _Split(TypedDict, total=False):
    n_images: Count
    n_captions: Count
    fingerprint: str | None
    revision: str | None


@with_config(_AS_WRITTEN)
class _Hardware(TypedDict, total=False):
    cpu: str | None
    cores: Count
    memory_bytes: Count
    gpu: str | list[str] | None


@with_config(_AS_WRITTEN)
class Environment(TypedDict, total=False):
    """environment.json."""

    versions: dict[str, str]
    python: str
    platform: str
    hardware: _Hardware
    git_commit: str | None
    seed: int
    base_models: list[_BaseModel]
    datasets: dict[str, _Split]
    hub_revisions: dict[str, str]
    changes: list[dict[str, Any]]
    places: dict[str, str]
    start: dict[str, str]


@with_config(_AS_WRITTEN)
class _Bootstrap(TypedDict, total=False):
    confidence_level: Annotated[float, Field(gt=0, lt=1)]
    n_resamples: Count
    seed: int


@with_config(_AS_WRITTEN)
class Signature(TypedDict, total=False):
    """The conditions in a score file."""

    hfcap: str
    tokenizer: str
    language: str
    split: str
    n_images: Count
    image_ids_sha256: str | None
    references_sha256: str | None
    images_without_prediction: Count
    references_per_image: Annotated[list[int], Field(min_length=2, max_length=2)]
    unspaced_language: str | None
    metrics: dict[str, dict[str, Any]]
    agreement_with_people: dict[str, str]
    bootstrap: _Bootstrap
    run: dict[str, Any]


@with_config(_AS_WRITTEN)
class Emissions(TypedDict):
    """One entry of the measured emissions."""

    grams: Annotated[float, Field(ge=0, le=1e30)]
    source: str


@with_config(_AS_WRITTEN)
class _BestMetric(TypedDict):
    name: str
    value: float | None


@with_config(_AS_WRITTEN)
class _Member(TypedDict):
    name: str
    captioner: str
    weight: float


@with_config(_AS_WRITTEN)
class Summary(TypedDict, total=False):
    """training_summary.json."""

    method: str
    stopped: str
    steps: Count
    epochs: Amount
    images_seen: Count
    captions_seen: Count
    train_seconds: Amount
    images_per_second: Amount
    captions_per_second: Amount
    peak_memory_bytes: Count
    parameters: Count
    trainable_parameters: Count
    best_step: Count
    best_metric: _BestMetric | None
    members: list[_Member] | None
    co2_eq_emissions: Emissions | None


@with_config(_AS_WRITTEN)
class Sample(TypedDict):
    """One entry of samples.json."""

    caption: str
    file_name: NotRequired[str]
    image_id: NotRequired[str]
    references: NotRequired[list[str]]


@functools.cache
def _shape_of(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked_record(path: Path, what: str, kind: Any) -> Any:
    """Read a JSON file that a run wrote, and check the keys that hfcap uses.

    Args:
        what: names the file in the error.
        kind: its shape, from this module.

    Raises:
        UserError: missing, no JSON, or a key holds something that no run writes.
    """
    value = read_json(path, what, finite=True)
    check_shape(value, f"{path}: {what}", kind)
    return value


def check_shape(value: Any, where: str, kind: Any) -> None:
    """Check the keys that hfcap uses of something that a run wrote.

    Args:
        where: file and part of it, for the error.

    Raises:
        UserError: names the first key that holds something else.
    """
    try:
        _shape_of(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole file"
        said = first["msg"][:1].lower() + first["msg"][1:]
        raise UserError(f"{where} is damaged ({key}: {said}); put it back as the run wrote it") from None


def read_summary(path: Path) -> dict[str, Any]:
    """Read training_summary.json; see `checked_record`."""
    return cast("dict[str, Any]", checked_record(path, "training summary", Summary))
