"""Rank images by a text: by what they show (CLIP), by the words of their captions (BM25), or by both.

Both rankings are joined by reciprocal ranks (Cormack, Clarke and Buettcher 2009), because their scores have no common
scale. Shapes: N images, D width of the common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hfcap.data.checks import check_images_decode
from hfcap.errors import UserError
from hfcap.schema import CaptionedImage
from hfcap.search.words import CaptionWords

if TYPE_CHECKING:
    from hfcap.captioners.shared.dual_encoder import DualEncoder

By = Literal["auto", "images", "captions", "both"]

_RANK_OFFSET = 60.0


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that was found.

    Attributes:
        score: what the ranking went by: cosine, BM25, or the sum of reciprocal ranks x 100.
        cosine: similarity of text and image; None where images were not looked at.
        words: BM25 of the captions; None where captions were not read.
        caption: the image's caption with most words of the text; empty where it has none.
    """

    record: CaptionedImage
    score: float
    cosine: float | None
    words: float | None
    caption: str


def find(
    query: str,
    records: Sequence[CaptionedImage],
    *,
    encoder: DualEncoder | None = None,
    by: By = "auto",
    count: int = 10,
    where: str = "",
) -> list[Hit]:
    """Return the `count` best images, best first; captions that share no word with the text are no hits.

    Args:
        encoder: needed to search what images show; their vectors are kept in the feature store.
        by: auto = both where there are an encoder and captions, else what there is.
        where: what is searched, for messages.

    Raises:
        UserError: the text is empty, or there is nothing to search by.
    """
    if not query.strip():
        raise UserError("QUERY: the text to search for is empty; write one")
    if not records:
        raise UserError(f"{where}: no images; give another place")
    by_images, by_captions = _ways(records, encoder, by, where)
    cosines = words = None
    if by_images:
        assert encoder is not None
        records = check_images_decode(records, len(records) - 1, where)
        cosines = _cosines(query, records, encoder)
    captions = CaptionWords([record.captions for record in records])
    if by_captions:
        words = captions.scores(query)
    scores = _joined(cosines, words)
    order = [number for number in np.argsort(-scores, kind="stable")[:count] if scores[number] > 0 or by_images]
    return [
        Hit(
            records[number],
            float(scores[number]),
            None if cosines is None else float(cosines[number]),
            None if words is None else float(words[number]),
            captions.best_caption(number, query),
        )
        for number in order
    ]


def _ways(records: Sequence[CaptionedImage], encoder: DualEncoder | None, by: By, where: str) -> tuple[bool, bool]:
    has_captions = any(record.captions for record in records)
    if by in ("images", "both") and encoder is None:
        raise UserError(f"--by {by}: needs a CLIP or SigLIP model; give --model (for example a Hub id or a folder)")
    if by in ("captions", "both") and not has_captions:
        raise UserError(f"--by {by}: the images of {where} have no captions; search what they show, with --model")
    if by != "auto":
        return by != "captions", by != "images"
    if encoder is None and not has_captions:
        raise UserError(
            f"{where}: these images have no captions; give --model, a CLIP or SigLIP that sees what they show"
        )
    return encoder is not None, has_captions


def _cosines(query: str, records: Sequence[CaptionedImage], encoder: DualEncoder) -> NDArray[np.float64]:
    from hfcap.store.features import FeatureStore, embedding_encoder

    store = FeatureStore(embedding_encoder(encoder.location, encoder.model, encoder.image_processor))
    vectors = store.inputs(records, num_workers=2 if len(records) > 200 else 0)
    matrix = np.stack([vectors[number].float().numpy() for number in range(len(records))]).astype(np.float64)
    matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    found: NDArray[np.float64] = matrix @ encoder.texts([query])[0].double().numpy()
    return found


def _joined(cosines: NDArray[np.float64] | None, words: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if cosines is None or words is None:
        found = words if cosines is None else cosines
        assert found is not None
        return found
    total = np.zeros(len(cosines))
    for values in (cosines, words):
        rank = np.empty(len(values))
        rank[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
        # An image without any of the words has no rank among the captions.
        total += np.where((values > 0) | (values is cosines), 100.0 / (_RANK_OFFSET + rank), 0.0)
    return total
