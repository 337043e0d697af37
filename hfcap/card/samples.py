"""Which captions a card shows: the best, middling ones and the worst, so that it does not only show successes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hfcap.schema import CaptionedImage

N_SAMPLES = 9


def choose_samples(
    predictions: Mapping[str, str], ciders: Mapping[str, float | None], records: Sequence[CaptionedImage]
) -> list[dict[str, Any]]:
    """Return rows of samples.json: best, middling and worst by CIDEr-D, or without it by image id.

    Args:
        predictions: image id -> caption.
        ciders: image id -> CIDEr-D of its caption (raw scale).
    """
    by_id = {record.image_id: record for record in records}
    ranked = sorted(predictions, key=lambda image_id: (-(ciders.get(image_id) or 0.0), image_id))
    third = N_SAMPLES // 3
    middle = max(0, len(ranked) // 2 - third // 2)
    chosen = list(dict.fromkeys([*ranked[:third], *ranked[middle : middle + third], *ranked[-third:]]))
    return [
        {
            "image_id": image_id,
            "file_name": by_id[image_id].file_name,
            "caption": predictions[image_id],
            "references": list(by_id[image_id].captions),
            "score": ciders.get(image_id),
        }
        for image_id in chosen
    ]
