"""The conditions of a score: what was scored against, and everything on one printable line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hfcap.metrics.shared.languages import CODES
from hfcap.metrics.shared.scripts import unspaced_language
from hfcap.metrics.shared.tokenizer import TOKENIZER_VERSION

_HASH_DIGITS = 16
_ENGLISH = TOKENIZER_VERSION.partition("-")[0]
_OF_ONE_LANGUAGE = ("zh", "ja")
"""How the names of tokenisers begin that serve one language alone."""


def _hash_of(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:_HASH_DIGITS]


def data_signature(references: Mapping[str, Sequence[str]], split: str, n_missing: int) -> dict[str, Any]:
    """Return what was scored against: the images and their human captions, in any order of images."""
    ordered = sorted(references)
    counts = [len(group) for group in references.values()]
    signature: dict[str, Any] = {
        "split": split,
        "n_images": len(references),
        "image_ids_sha256": _hash_of(ordered),
        "references_sha256": _hash_of(line for key in ordered for line in (key, *references[key], "")),
        "references_per_image": [min(counts), max(counts)],
    }
    if language := unspaced_language(line for group in references.values() for line in group):
        signature["unspaced_language"] = language
    if n_missing:
        signature["images_without_prediction"] = n_missing
    return signature


def predictions_hash(captions: Mapping[str, str]) -> str:
    """Return what tells one set of predicted captions from another, in any order of images."""
    return _hash_of(line for key in sorted(captions) for line in (key, captions[key]))


def language_of(signature: Mapping[str, Any]) -> str | None:
    """Return the code of the language that captions were scored in.

    Score files of English do not name it. None for those of earlier versions whose tokeniser serves many languages.
    """
    if (named := signature.get("language")) is not None:
        return str(named)
    name = str(signature.get("tokenizer", TOKENIZER_VERSION)).partition("-")[0]
    if name == _ENGLISH:
        return "en"
    return name if name in _OF_ONE_LANGUAGE else CODES.get(str(signature.get("unspaced_language")))


def signature_line(signature: Mapping[str, Any]) -> str:
    """Return the conditions of a score as one printable line, e.g. for a table's footnote or a paper.

    It reads `hfcap:0.1.0|tok:ptb-coco-2|split:test|n:5000|ids:0a1b...|refs:5|...|cider.document_frequencies:corpus`.
    """
    counts = signature.get("references_per_image", [0, 0])
    references = str(counts[0]) if counts[0] == counts[1] else f"{counts[0]}-{counts[1]}"
    parts = [
        f"hfcap:{signature.get('hfcap', 'unknown')}",
        f"tok:{signature.get('tokenizer', 'unknown')}",
        *([f"lang:{signature['language']}"] if "language" in signature else []),
        f"split:{signature.get('split', 'unknown')}",
        f"n:{signature.get('n_images', 'unknown')}",
        f"ids:{signature.get('image_ids_sha256', 'unknown')}",
        f"refs:{references}",
        f"refs-sha:{signature.get('references_sha256', 'unknown')}",
    ]
    for metric, conditions in sorted(signature.get("metrics", {}).items()):
        parts += [f"{metric}.{key}:{value}" for key, value in sorted(conditions.items())] or [metric]
    return "|".join(parts + [f"{key}:{value}" for key, value in flattened(signature.get("run", {}))])


def flattened(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) of nested conditions, in the order of the keys."""
    flat: list[tuple[str, Any]] = []
    for key, entry in sorted(value.items()):
        if isinstance(entry, Mapping):
            flat += flattened(entry, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", entry))
    return flat


def agreement_lines(signature: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each value that is a judge's opinion: how well it agrees with people."""
    found: dict[str, list[str]] = {}
    for output, said in signature.get("agreement_with_people", {}).items():
        found.setdefault(said, []).append(output)
    return [f"{', '.join(outputs)}: agreement with people {said}" for said, outputs in found.items()]
