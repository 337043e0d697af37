"""CLIP, SigLIP and their like for metrics: unit vectors of captions, whatever their length, and of images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hfcap.errors import UserError
from hfcap.metrics.shared.images import Images
from hfcap.metrics.shared.models import loading
from hfcap.schema import IMAGE_BACKEND

PROMPT = "A photo depicts "
"""Stands before every candidate and every human caption (Hessel et al. 2021, section 3)."""

LongCaptions = Literal["cut", "sentences", "windows"]
"""What is done with a caption of more tokens than the model reads: see `ClipEncoder.texts`."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors of length one, (..., D)."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _in_batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _windows(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Halve a text at the blank nearest its middle until every part fits; a single word stays whole."""
    words = text.split()
    if len(words) < 2 or fits(text):
        return [text]
    ends = np.cumsum([len(word) + 1 for word in words])
    middle = 1 + int(np.abs(ends[:-1] - ends[-1] / 2).argmin())
    return [*_windows(" ".join(words[:middle]), fits), *_windows(" ".join(words[middle:]), fits)]


def pieces_of(caption: str, fits: Callable[[str], bool], how: LongCaptions) -> list[str]:
    """Return the pieces that a long caption is encoded in.

    Args:
        fits: whether the model reads all of a text.
        how: "sentences" = one piece each, those that do not fit in windows; "windows" = windows at once.
    """
    parts = _SENTENCE_END.split(caption.strip()) if how == "sentences" else [caption]
    return [window for part in parts for window in _windows(part, fits)]


class ClipEncoder:
    """The two encoders of a CLIP or SigLIP in float32.

    Args:
        model: folder or Hub id of the model with its processor.
        device: where it runs; None = CUDA where there is one, else the CPU.
        batch_size: images or captions at a time.
        long_captions: see `texts`.
        metric: name of the metric that asks, for messages.

    Raises:
        UserError: the model cannot be loaded, or has no image and text encoder.
    """

    def __init__(
        self,
        model: str,
        device: str | None = None,
        batch_size: int = 64,
        long_captions: LongCaptions = "cut",
        metric: str = "clip_score",
    ) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        with loading(model, f"the CLIP model of metric {metric!r}"):
            # float32: half precision moves CLIPScore in the third decimal.
            loaded: Any = AutoModel.from_pretrained(model, dtype=torch.float32)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
            self._image_processor: Any = AutoImageProcessor.from_pretrained(model, backend=IMAGE_BACKEND)
        if not (hasattr(loaded, "get_image_features") and hasattr(loaded, "get_text_features")):
            raise UserError(
                f"{model}: not a CLIP model ({type(loaded).__name__} has no image and text encoder); choose a "
                "CLIP or SigLIP"
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = loaded.to(self.device).eval()
        self._batch_size = batch_size
        self._name = model
        self._long_captions = long_captions
        self._longest = int(loaded.config.text_config.max_position_embeddings)
        # SigLIP reads a caption off its last position and was trained on texts of full length, without a mask.
        self._is_padded_to_the_end = "siglip" in str(loaded.config.model_type)

    @property
    def longest(self) -> int:
        """Tokens that the text encoder reads, prompt, start and end among them: 77 of CLIP, 248 of Long-CLIP."""
        return self._longest

    def texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors of captions after the prompt, (M, D) float32.

        Of a caption of more tokens than the model reads, "cut" encodes the beginning, the end token kept, where CLIP
        reads the caption off. "sentences" and "windows" encode all of it in pieces, each after the prompt, and take the
        mean of their unit vectors, weighted by tokens, brought to length one again. Captions that fit are the same in
        all three.
        """
        pieces = self._pieces(captions)
        vectors = unit(self.text_features([piece for group in pieces for piece in group]))
        if all(len(group) == 1 for group in pieces):
            return vectors
        counts = [len(group) for group in pieces]
        weights = np.ones(len(vectors), dtype=np.float32)
        first = np.cumsum([0, *counts])
        for start, group in zip(first, pieces, strict=False):
            if len(group) > 1:
                weights[start : start + len(group)] = self._n_tokens(group)
        joined = np.add.reduceat(vectors * weights[:, None], first[:-1], axis=0)
        alone = np.flatnonzero(np.asarray(counts) == 1)
        result = unit(joined)
        result[alone] = vectors[first[alone]]
        return result

    def is_cut(self, captions: Sequence[str]) -> NDArray[np.bool_]:
        """Return whether the model reads only the beginning of each caption, (M,) bool."""
        longer = self._is_longer(captions)
        if self._long_captions != "cut":  # one word may be longer than the model reads
            for number in np.flatnonzero(longer).tolist():
                longer[number] = not all(map(self._fits, self._pieces([captions[number]])[0]))
        return longer

    def images(self, image_source: Images, image_ids: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors of images, (N, D) float32.

        Raises:
            UserError: an image is missing or cannot be read; the message names it.
        """
        return unit(self.image_features(image_source, image_ids))

    def image_features(self, image_source: Images, image_ids: Sequence[str]) -> NDArray[np.float32]:
        """Return what the model says of images, not brought to length one, (N, D) float32; see `images`."""
        return image_source.embeddings(self._name, self._model, self._image_processor, image_ids, self._batch_size)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of texts after the prompt, all of them."""
        ids: list[list[int]] = self._tokenizer([PROMPT + text for text in texts], verbose=False)["input_ids"]
        return ids

    def _is_longer(self, captions: Sequence[str]) -> NDArray[np.bool_]:
        batches = _in_batches(captions, self._batch_size)
        return np.asarray([len(ids) > self._longest for batch in batches for ids in self._ids(batch)], dtype=bool)

    def _pieces(self, captions: Sequence[str]) -> list[list[str]]:
        """Pieces that each caption is encoded in, itself alone where it fits or is cut."""
        how = self._long_captions
        if how == "cut":
            return [[caption] for caption in captions]
        return [
            pieces_of(caption, self._fits, how) if is_longer else [caption]
            for caption, is_longer in zip(captions, self._is_longer(captions).tolist(), strict=True)
        ]

    def _fits(self, text: str) -> bool:
        return len(self._ids([text])[0]) <= self._longest

    def _n_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of texts, without those of the prompt, start and end; at least one."""
        (nothing,) = self._ids([""])
        return [max(len(ids) - len(nothing), 1) for ids in self._ids(texts)]

    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return what the model says of texts after the prompt, not brought to length one, (M, D) float32.

        Of a text of more tokens than the model reads, the beginning is encoded, with the end token.
        """
        import torch

        found: list[NDArray[np.float32]] = []
        for batch in _in_batches(texts, self._batch_size):
            # The tokenizer cuts the words and puts the end token after what is left.
            tokens = self._tokenizer(
                [PROMPT + text for text in batch],
                padding="max_length" if self._is_padded_to_the_end else True,
                truncation=True,
                max_length=self._longest,
                return_tensors="pt",
            ).to(self.device)
            mask = {} if self._is_padded_to_the_end else {"attention_mask": tokens["attention_mask"]}
            with torch.inference_mode():
                output = self._model.get_text_features(input_ids=tokens["input_ids"], **mask)
            # transformers 5 wraps the features in an output object, transformers 4 returns the tensor.
            found.append(getattr(output, "pooler_output", output).cpu().numpy())
        return np.concatenate(found)
