"""What self-critical training rewards: a weighted sum of caption metrics, ready to score many samples of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hfcap.data.images import decode_image
from hfcap.metrics.bleu import BleuReward
from hfcap.metrics.cider import CiderReward
from hfcap.metrics.clip_score import ClipEncoder, clip_score
from hfcap.metrics.tokenizer import tokenize
from hfcap.recipe import ScstOptions
from hfcap.schema import CaptionedImage, ImageBytes


class LengthPenalty:
    """How far the number of words is from that of the human captions, relative to it."""

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        self._words = {
            image_id: sum(len(tokenize(caption)) for caption in captions) / len(captions)
            for image_id, captions in references.items()
        }

    def scores(self, image_ids: Sequence[str], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """Return |words - mean words of the references| / mean words, (B, K) float64; 0 is best."""
        words = np.array([[len(tokenize(caption)) for caption in group] for group in candidates], dtype=np.float64)
        wanted = np.maximum([[self._words[image_id]] for image_id in image_ids], 1.0)
        return np.abs(words - wanted) / wanted


class ClipReward:
    """CLIPScore of many candidates per image; each picture passes through CLIP once."""

    def __init__(self, model: str, images: Mapping[str, ImageBytes], device: str) -> None:
        self._encoder = ClipEncoder(model, device)
        self._images = images
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def scores(self, image_ids: Sequence[str], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """Return CLIPScore of K candidates for each of B images, (B, K) float64."""
        new = [image_id for image_id in dict.fromkeys(image_ids) if image_id not in self._vectors]
        if new:
            vectors = self._encoder.images([self._images[image_id] for image_id in new], decode_image)
            self._vectors |= dict(zip(new, vectors, strict=True))
        images = np.stack([self._vectors[image_id] for image_id in image_ids])
        n_candidates = len(candidates[0])
        texts = self._encoder.texts([caption for group in candidates for caption in group])
        return clip_score(np.repeat(images, n_candidates, axis=0), texts).reshape(len(image_ids), n_candidates)


class CaptionReward:
    """The reward of `scst.reward` against the human captions of the training split.

    Args:
        records: the whole training split: references, and by default the corpus of CIDEr-D's document frequencies.
        device: where CLIP runs, if it is asked for.
    """

    def __init__(self, records: Sequence[CaptionedImage], options: ScstOptions, device: str) -> None:
        self.weights = options.reward
        references = {record.image_id: record.captions for record in records}
        self._cider = (
            CiderReward(references, document_frequencies=options.document_frequencies, end_word=options.end_token)
            if self.weights.cider
            else None
        )
        self._bleu = BleuReward(references, end_word=options.end_token) if self.weights.bleu_4 else None
        self._length = LengthPenalty(references) if self.weights.length else None
        images = {record.image_id: record.image for record in records}
        self._clip = ClipReward(self.weights.clip_model, images, device) if self.weights.clip_score else None

    def scores(
        self, image_ids: Sequence[str], candidates: Sequence[Sequence[str]], ended: NDArray[np.bool_]
    ) -> dict[str, NDArray[np.float64]]:
        """Score K candidates for each of B images.

        Args:
            ended: (B, K) whether the end token was chosen; captions cut at the length limit have none.

        Returns:
            "reward", the weighted sum, and under their names its parts, unweighted; each (B, K) float64.
        """
        parts: dict[str, NDArray[np.float64]] = {}
        if self._cider is not None:
            parts["cider"] = self._cider.scores(image_ids, candidates, ended)
        if self._bleu is not None:
            parts["bleu_4"] = self._bleu.scores(image_ids, candidates, ended)
        if self._length is not None:
            parts["length"] = self._length.scores(image_ids, candidates)
        if self._clip is not None:
            parts["clip_score"] = self._clip.scores(image_ids, candidates)
        signs = {"length": -1.0}
        total = sum(signs.get(name, 1.0) * getattr(self.weights, name) * values for name, values in parts.items())
        return {"reward": np.asarray(total), **parts}
