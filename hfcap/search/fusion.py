"""Late fusion of prediction files: the caption that agrees most with the candidates of all captioners, or of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hfcap.errors import UserError
from hfcap.files import read_json_lines, write_json_lines
from hfcap.metrics.shared.caption_files import Warn, normalised_image_id, read_predictions, warn_on_terminal
from hfcap.metrics.shared.consensus import pooled, ranked_by_consensus
from hfcap.metrics.shared.document_frequencies import load_document_frequencies
from hfcap.schema import Prediction

_FEW_POOLS = 100


@dataclass(frozen=True, slots=True)
class Candidates:
    """What one captioner says about one image; the first caption is its choice."""

    file_name: str
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fusion:
    """The captions that were chosen, and how many of them came from each file: the first that has the caption."""

    predictions: list[Prediction]
    origins: tuple[int, ...]


def fuse_predictions(
    predictions: Sequence[Path],
    output: Path,
    *,
    weights: Sequence[float] | None = None,
    document_frequencies: str = "corpus",
    warn: Warn = warn_on_terminal,
) -> Fusion:
    """Write predictions whose captions are the consensus of several captioners, and return them.

    Args:
        predictions: files of the same images, best with many sampled captions each (predictions/<split>.jsonl); one
            file is enough where it has three candidates of an image or more.
        output: .jsonl, rows as in predictions/<split>.jsonl; `score` is the expected CIDEr-D.
        weights: one for each file; None = equal. Captions of a file of weight 0 can be chosen but do not vote: beams
            beside files of samples.
        document_frequencies: as CIDEr-D takes them; "corpus" counts in the candidates themselves.

    Raises:
        UserError: a file is malformed or would be written over, files hold different images, or the weights do not
            fit.
    """
    _require_new_output(output, predictions)
    chosen = [1.0] * len(predictions) if weights is None else list(weights)
    if len(chosen) != len(predictions) or not all(0 <= weight < float("inf") for weight in chosen) or not any(chosen):
        raise UserError(
            f"weights: give one positive number (or 0: no vote) for each of the {len(predictions)} files, not {chosen}"
        )
    members = [read_candidates(path, warn) for path in predictions]
    _require_same_images(predictions, members)
    if sum(max(len(found.captions) for found in member.values()) for member in members) < 3:
        if len(members) == 1:
            raise UserError(
                f"{predictions[0]}: nothing to choose from with fewer than three captions an image; give more files, "
                "or many samples: hfcap caption --sample --num-return-sequences 32"
            )
        warn(
            "two single captions of an image cannot outvote each other: which one is written depends on how CIDEr-D "
            "weighs their words; give many candidates"
        )
    if document_frequencies == "corpus" and len(members[0]) < _FEW_POOLS:
        warn(
            f"only {len(members[0])} images: n-gram weights counted in so few candidates are rough; "
            "give --document-frequencies"
        )
    pools = [pooled([member[image_id].captions for member in members], chosen) for image_id in members[0]]
    ranked = ranked_by_consensus(pools, load_document_frequencies(document_frequencies))
    fused = [
        Prediction(
            image_id,
            found.file_name,
            best[0].caption,
            best[0].expected_cider,
            tuple(candidate.caption for candidate in best),
        )
        for (image_id, found), best in zip(members[0].items(), ranked, strict=True)
    ]
    write_json_lines(output, (prediction.as_row() for prediction in fused))
    return Fusion(fused, _origins(fused, members))


def _origins(fused: Sequence[Prediction], members: Sequence[dict[str, Candidates]]) -> tuple[int, ...]:
    origins = [0] * len(members)
    for prediction in fused:
        # As in the pools, white space does not tell captions apart.
        proposed = ([" ".join(text.split()) for text in member[prediction.image_id].captions] for member in members)
        origins[next(number for number, texts in enumerate(proposed) if prediction.caption in texts)] += 1
    return tuple(origins)


def read_candidates(path: Path, warn: Warn = warn_on_terminal) -> dict[str, Candidates]:
    """Read image id -> candidates of hfcap's prediction file, or single captions of any prediction file.

    Raises:
        UserError: the file is missing or malformed, or an image is there twice.
    """
    if path.suffix.lower() != ".jsonl":
        return {image_id: Candidates("", (caption,)) for image_id, caption in read_predictions(path, warn=warn).items()}
    found: dict[str, Candidates] = {}
    for number, row in read_json_lines(path, "prediction file"):
        where = f"{path}: line {number}"
        image_id = normalised_image_id(row.get("image_id"), where)
        caption, candidates = row.get("caption"), row.get("candidates") or []
        if not isinstance(caption, str) or not isinstance(candidates, list):
            raise UserError(f"{where}: needs a caption (text) and may have candidates (a list of texts)")
        texts = candidates or [caption]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: candidates must be texts")
        if image_id in found:
            raise UserError(f"{where}: image {image_id} is there twice; keep one line per image")
        found[image_id] = Candidates(str(row.get("file_name") or ""), tuple(texts))
    if not found:
        raise UserError(f"{path}: no captions in this prediction file; give another")
    return found


def _require_new_output(output: Path, predictions: Sequence[Path]) -> None:
    if output.suffix.lower() != ".jsonl":
        raise UserError(f"{output}: give a name that ends in .jsonl")
    if output.resolve() in {path.resolve() for path in predictions}:
        raise UserError(
            f"{output}: is one of the files that are joined, whose candidates would be lost; give another -o"
        )


def _require_same_images(paths: Sequence[Path], members: Sequence[dict[str, Candidates]]) -> None:
    for path, member in zip(paths[1:], members[1:], strict=True):
        missing, more = members[0].keys() - member.keys(), member.keys() - members[0].keys()
        if missing or more:
            example = min(missing or more)
            raise UserError(
                f"{path}: lacks {len(missing):,} images of {paths[0]} and has {len(more):,} others (for example "
                f"{example!r}); caption the same split with every captioner"
            )
