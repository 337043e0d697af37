"""What self-critical training rewards: a weighted sum of caption metrics, ready to score many samples of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.bleu import BleuReward
from hfcap.metrics.cider import CiderReward
from hfcap.metrics.clip_score import clip_score
from hfcap.metrics.clip_score.encoder import ClipEncoder
from hfcap.metrics.shared.images import Images
from hfcap.metrics.shared.tokenizer import tokenize
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.scst import ScstOptions
from hfcap.schema import CaptionedImage
from hfcap.store.features import FeatureStore, embedding_encoder


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


@dataclass(frozen=True, slots=True)
class RewardImages:
    """Training images for CLIP: each is encoded once, by one of the processes, into the feature store."""

    records: Sequence[CaptionedImage]
    recipe: Recipe
    accelerator: Any

    def embeddings(
        self, name: str, model: Any, image_processor: Any, image_ids: Sequence[str], batch_size: int
    ) -> NDArray[np.float32]:
        """See hfcap.metrics.shared.images.Images."""
        folder = self.recipe.data.feature_store_folder
        encoder = embedding_encoder(name, model, image_processor)
        store = FeatureStore(encoder, None if folder is None else Path(folder), self.accelerator)
        if store.rows.write_problem() is not None:
            store = FeatureStore(encoder, store.folder.parent)  # each process for itself
        by_id = {record.image_id: record for record in self.records}
        wanted = [by_id[image_id] for image_id in image_ids]
        rows = store.inputs(wanted, batch_size, self.recipe.train.loading_workers)
        vectors: NDArray[np.float32] = rows.stacked().numpy()
        return vectors


class ClipReward:
    """CLIPScore of many candidates per image; the images are encoded before training begins."""

    def __init__(self, model: str, image_ids: Sequence[str], image_source: Images, device: str) -> None:
        self._encoder = ClipEncoder(model, device)
        vectors = self._encoder.images(image_source, image_ids)
        self._vectors = dict(zip(image_ids, vectors, strict=True))

    def scores(self, image_ids: Sequence[str], candidates: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """Return CLIPScore of K candidates for each of B images, (B, K) float64."""
        images = np.stack([self._vectors[image_id] for image_id in image_ids])
        n_candidates = len(candidates[0])
        texts = self._encoder.texts([caption for group in candidates for caption in group])
        return clip_score(np.repeat(images, n_candidates, axis=0), texts).reshape(len(image_ids), n_candidates)


class CaptionReward:
    """The reward of `scst.reward` against the human captions of the training split.

    Args:
        records: the whole training split: references, and by default the corpus of CIDEr-D's document frequencies.
        image_source: of the records, for CLIP.
        device: where CLIP runs.
        words: caption -> its words joined by one space, where the captions are not English.
    """

    def __init__(
        self,
        records: Sequence[CaptionedImage],
        options: ScstOptions,
        image_source: Images | None = None,
        device: str = "cpu",
        words: Callable[[str], str] | None = None,
    ) -> None:
        self.weights = options.reward
        self._words = words or str
        references = {record.image_id: tuple(map(self._words, record.captions)) for record in records}
        self._cider = (
            CiderReward(references, document_frequencies=options.document_frequencies, end_word=options.end_token)
            if self.weights.cider
            else None
        )
        self._bleu = BleuReward(references, end_word=options.end_token) if self.weights.bleu_4 else None
        self._length = LengthPenalty(references) if self.weights.length else None
        self._clip = None
        if self.weights.clip_score:
            assert image_source is not None, "CLIPScore looks at the images"
            self._clip = ClipReward(self.weights.clip_model, list(references), image_source, device)

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
        split = [list(map(self._words, group)) for group in candidates]
        if self._cider is not None:
            parts["cider"] = self._cider.scores(image_ids, split, ended)
        if self._bleu is not None:
            parts["bleu_4"] = self._bleu.scores(image_ids, split, ended)
        if self._length is not None:
            parts["length"] = self._length.scores(image_ids, split)
        if self._clip is not None:
            parts["clip_score"] = self._clip.scores(image_ids, candidates)
        signs = {"length": -1.0}
        total = sum(signs.get(name, 1.0) * getattr(self.weights, name) * values for name, values in parts.items())
        return {"reward": np.asarray(total), **parts}
