"""What scores were computed under, system against system: what differs, with the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hfcap.comparison.systems import System
from hfcap.errors import UserError
from hfcap.metrics.shared.scripts import unspaced_problem
from hfcap.metrics.shared.tokenizer import TOKENIZER_VERSION
from hfcap.scoring.image_values import ImageValues, Values
from hfcap.scoring.signature import agreement_lines, flattened, language_of
from hfcap.text import counted

_N_NAMED = 3
_LONGEST = 60
_ABSENT = object()


def check_same_data(systems: Sequence[System]) -> None:
    """Refuse systems that were not scored on the same images against the same human captions.

    Raises:
        UserError: names the two files, what differs, and both values.
    """
    _refuse_languages(systems)
    for key, said in (("image_ids_sha256", _other_images), ("references_sha256", _other_captions)):
        first = systems[0]
        for other in systems[1:]:
            if other.report.signature.get(key) != first.report.signature.get(key):
                raise UserError(
                    f"{first.path} and {other.path} were scored on {said(first, other)}; score both predictions "
                    "against the same reference file"
                )
    known = [system for system in systems if system.report.per_image]
    for other in known[1:]:
        # Rows are paired by their place, and an edited file may keep the hash of other images.
        if not _same_ids(known[0].report.per_image, other.report.per_image):
            raise UserError(
                f"{known[0].path} and {other.path} hold values of {_other_images(known[0], other)}, though both say "
                "that they were scored on the same; score both again"
            )


def _same_ids(first: Values, other: Values) -> bool:
    if isinstance(first, ImageValues) and isinstance(other, ImageValues) and first.image_ids is other.image_ids:
        return True
    return first.keys() == other.keys()


def in_several_languages(systems: Sequence[System]) -> bool:
    """Whether systems were scored against human captions in several languages, as far as their score files say."""
    signatures = [system.report.signature for system in systems]
    # The same captions cut into words by the rules of two languages are one language, under other conditions.
    captions = {signature.get("references_sha256") for signature in signatures}
    return len(captions) > 1 and len({language_of(signature) for signature in signatures}) > 1


def _refuse_languages(systems: Sequence[System]) -> None:
    if not in_several_languages(systems):
        return
    first, language = systems[0], language_of(systems[0].report.signature)
    other = next(one for one in systems if language_of(one.report.signature) != language)
    names = [code or "not recorded" for code in (language, language_of(other.report.signature))]
    raise UserError(
        f"{first.path} and {other.path} were scored in different languages ({names[0]} and {names[1]}), whose values "
        "are not comparable; give score files alone to 'hfcap compare' or to hfcap.compare_languages, for a "
        "table with a column for each language"
    )


def _other_images(first: System, other: System) -> str:
    found = []
    splits = [str(one.report.signature.get("split", "unknown")) for one in (first, other)]
    if splits[0] != splits[1]:
        found.append(f"split {splits[0]} and {splits[1]}")
    found.append(f"{first.report.n_images:,} and {other.report.n_images:,} images")
    for one, another in ((first, other), (other, first)):
        only = [name for name in one.report.per_image if name not in another.report.per_image]
        if only and another.report.per_image:
            more = ", ..." if len(only) > _N_NAMED else ""
            named = ", ".join(map(repr, only[:_N_NAMED]))
            found.append(f"{counted(len(only), 'image')} only in {one.path}: {named}{more}")
    return f"different images ({'; '.join(found)})"


def _other_captions(first: System, other: System) -> str:
    values = [[_shown(one.report.signature.get(key)) for one in (first, other)] for key in _OF_CAPTIONS]
    found = [
        f"{words} {mine} and {others}"
        for words, (mine, others) in zip(_OF_CAPTIONS.values(), values, strict=True)
        if mine != others
    ]
    return f"different human captions ({'; '.join(found)}; {first.report.n_images:,} images)"


_OF_CAPTIONS = {
    "split": "split",
    "references_per_image": "captions per image, least and most,",
    "references_sha256": "hash",
}


def metric_conditions(systems: Sequence[System], metric: str) -> str:
    """Say with which parameters, or on which tokens, a metric was computed in the systems; "" where it is the same."""
    conditions = [
        dict(flattened(one.report.signature.get("metrics", {}).get(metric) or {}))
        | {"tokenizer": one.report.signature.get("tokenizer", "unknown")}
        for one in systems
    ]
    return differing(systems, conditions)


def unequal_conditions(systems: Sequence[System]) -> list[str]:
    """Return what differs between the systems besides the metrics, and what holds of none."""
    found = []
    decoded = [one for one in systems if isinstance(_decoding(one), dict)]
    if settings := differing(decoded, [dict(flattened(_decoding(one))) for one in decoded]):
        found.append(f"captioned with different settings of generate: {settings}")
    if versions := _values(systems, [one.report.signature.get("hfcap", "unknown") for one in systems]):
        found.append(f"scored by different versions of hfcap: {versions}")
    if missing := _values(systems, [one.report.signature.get("images_without_prediction", 0) for one in systems]):
        found.append(f"images without a caption count as empty captions: {missing}")
    # Said of all systems alike, where the same judge looked at them.
    found += dict.fromkeys(line for one in systems for line in agreement_lines(one.report.signature))
    by_spaces = [one.report.signature for one in systems if one.report.signature.get("tokenizer") == TOKENIZER_VERSION]
    languages = {signature.get("unspaced_language"): None for signature in by_spaces}
    found += [f"the human captions are {unspaced_problem(str(name))}" for name in languages if name is not None]
    for system in systems:
        if not system.report.per_image and len(systems) > 1:
            found.append(f"{system.name}: no per-image values in its score file, so it is not tested")
    return found


def _decoding(system: System) -> Any:
    return system.report.signature.get("run", {}).get("decoding")


def differing(systems: Sequence[System], conditions: Sequence[Mapping[str, Any]]) -> str:
    """Return `key value (system) and value (system)` of every condition that differs, the keys in order; "" if none."""
    keys = sorted({key for of_system in conditions for key in of_system})
    values = ((key, _values(systems, [of_system.get(key, _ABSENT) for of_system in conditions])) for key in keys)
    return "; ".join(f"{key} {said}" for key, said in values if said)


def _values(systems: Sequence[System], values: Sequence[Any]) -> str:
    """Return each value and whose it is; "" where all are the same."""
    owners: dict[str, list[str]] = {}
    for system, value in zip(systems, values, strict=True):
        owners.setdefault(_shown(value), []).append(system.name)
    if len(owners) < 2:
        return ""
    return " and ".join(f"{value} ({_names(names)})" for value, names in owners.items())


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _N_NAMED:,} more" if len(names) > _N_NAMED else ""
    return ", ".join(names[:_N_NAMED]) + more


def _shown(value: Any) -> str:
    text = "not recorded" if value is _ABSENT or value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
