"""Polos (Wada et al. 2024): what people would say of a caption, learned from their judgments."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfcap.errors import UserError
from hfcap.files import sha256_of
from hfcap.metrics.base import CaptionMetric, CaptionSet, MetricOptions
from hfcap.metrics.clip_score.encoder import PROMPT, ClipEncoder
from hfcap.metrics.polos.model import CLIP_FOLDER, HEAD_FILE, TEXT_FOLDER, Head, SentenceEncoder
from hfcap.metrics.shared.caption_files import warn_on_terminal
from hfcap.metrics.shared.images import DecodedImages, FileBytes, Images, image_files
from hfcap.places import LocalPath

_IMAGES_AT_A_TIME = 256


class PolosOptions(MetricOptions):
    """Options of Polos."""

    model: LocalPath | Path | None = Field(
        None, description="folder that scripts/convert_polos.py wrote from the authors' checkpoint"
    )
    images: LocalPath | Path | None = Field(
        None, description="folder of the images; hfcap run uses those of the scored split"
    )
    device: str | None = Field(None, description="where it runs; default: CUDA where there is one, else the CPU")
    batch_size: Annotated[int, Field(gt=0)] = Field(64, description="images or captions at a time")
    normalised_together: Annotated[int, Field(gt=0, le=4096)] = Field(
        1,
        description="captions whose layers are normalised together, in the order of the file: 1 = each alone; the "
        "authors' evaluation does it with its batches of 32",
    )


def _groups(together: int, counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which human captions count, (P,) position of the image and (P,) which of its captions.

    The authors' code takes the first human captions of all images of a batch together, then the second ones, as far as
    every image of the batch has them; alone, all of an image's count.
    """
    first = np.arange(0, len(counts), together)
    kept = np.repeat(np.minimum.reduceat(counts, first), np.diff([*first, len(counts)]))
    image = np.repeat(np.arange(len(counts)), kept)
    return image, np.arange(len(image)) - np.repeat(np.cumsum(kept) - kept, kept)


class Polos(CaptionMetric):
    """Polos: the score of a caption with its best human caption, from 0 to 1; mean over images.

    Raw captions are scored, in float32; RoBERTa's reading and CLIP's "A photo depicts " before each are those of the
    authors. Values depend on the checkpoint.

    Args:
        image_source: the images, in place of the folder that the option `images` names.

    Raises:
        UserError: no images, one is missing or broken, or the folder of the model is missing, damaged or another.
    """

    name = "polos"
    outputs = ("polos",)
    looks_at_images = True
    english_only = True
    summary = "Polos (Wada et al. 2024): learned from human judgments; needs images, and the authors' weights"
    citation = (
        "Wada et al. (2024): Polos: Multimodal Metric Learning from Human Feedback for Image Captioning. CVPR; "
        "Rei et al. (2020): COMET: A Neural Framework for MT Evaluation. EMNLP"
    )

    options_class = PolosOptions

    def __init__(self, options: PolosOptions | None = None, *, image_source: Images | None = None) -> None:
        self._options = options or PolosOptions()
        if image_source is None and self._options.images is None:
            raise UserError("metric 'polos' looks at the images: give its option images, the folder of the images")
        if self._options.model is None:
            raise UserError(
                "metric 'polos' needs the authors' weights: give its option model, the folder that "
                "scripts/convert_polos.py writes"
            )
        self._folder = Path(self._options.model)
        for part in (HEAD_FILE, TEXT_FOLDER, CLIP_FOLDER):
            if not (self._folder / part).exists():
                raise UserError(
                    f"polos.model: {self._folder} has no {part}; give the folder that scripts/convert_polos.py writes"
                )
        self._image_source = image_source

    def _images_of(self, image_ids: Sequence[str]) -> Images:
        if self._image_source is not None:
            return self._image_source
        files = image_files(Path(self._options.images or ""), image_ids)
        return DecodedImages({image_id: FileBytes(path) for image_id, path in files.items()})

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return Polos of each image, (N, 1)."""
        options = self._options
        source = self._images_of(captions.image_ids)
        clip = ClipEncoder(str(self._folder / CLIP_FOLDER), options.device, options.batch_size, metric=self.name)
        images = clip.image_features(source, captions.image_ids)
        sentences = SentenceEncoder(self._folder / TEXT_FOLDER, options.device, options.batch_size)
        head = Head(self._folder, sentences.n_states, sentences.size, images.shape[1], options.device)
        cut = clip.is_cut(captions.candidates)
        if cut.any():
            warn_on_terminal(
                f"polos: {int(cut.sum()):,} of {len(cut):,} captions are longer than the {clip.longest} tokens that "
                "its CLIP reads; only their beginning is compared with the image"
            )
        step = options.normalised_together * max(1, _IMAGES_AT_A_TIME // options.normalised_together)
        ends = [*range(0, len(captions), step), len(captions)]
        parts = [
            self._scores(captions, slice(start, end), images[start:end], clip, sentences, head)
            for start, end in pairwise(ends)
        ]
        return np.concatenate(parts)[:, None] if parts else np.empty((0, 1))

    def _scores(
        self,
        captions: CaptionSet,
        part: slice,
        images: NDArray[np.float32],
        clip: ClipEncoder,
        sentences: SentenceEncoder,
        head: Head,
    ) -> NDArray[np.float64]:
        """Scores of a part of the images, (n,)."""
        candidates, references = captions.candidates[part], captions.references[part]
        together = self._options.normalised_together
        image, which = _groups(together, np.asarray([len(group) for group in references]))
        number_of: dict[str, int] = {}
        own = np.asarray([number_of.setdefault(text, len(number_of)) for text in candidates])
        texts = [references[row][column] for row, column in zip(image.tolist(), which.tolist(), strict=True)]
        human = np.asarray([number_of.setdefault(text, len(number_of)) for text in texts])
        found = sentences.encoded(list(number_of))
        features = clip.text_features(list(number_of))
        own_texts = head.mixed(found, own, np.arange(len(own)) // together)
        # The first human captions of a group are normalised together, then the second ones, and so on.
        _, of_group = np.unique((image // together) * (int(which.max()) + 1) + which, return_inverse=True)
        if together == 1:
            of_group = np.arange(len(human))
        human_texts = head.mixed(found, human, of_group)
        pairs = head.scores((own_texts[image], human_texts), (features[own][image], features[human]), images[image])
        return np.maximum.reduceat(pairs, np.flatnonzero(which == 0))

    def signature(self) -> dict[str, Any]:
        """Return the name of the folder, hashes of its weights, the prompt, and what was normalised together."""
        weights = sorted(self._folder.glob("*.safetensors")) + sorted(self._folder.glob("*/*.safetensors"))
        return {
            "model": self._folder.name,
            "weights": ",".join(sha256_of(path)[:16] for path in weights),
            "prompt": PROMPT,
            "precision": "float32",
            "normalised_together": self._options.normalised_together,
        }


REGISTERED = Polos
