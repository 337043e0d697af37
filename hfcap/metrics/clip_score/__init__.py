"""CLIPScore and RefCLIPScore (Hessel et al. 2021): how well a caption fits its image, according to CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionMetric, CaptionSet, MetricOptions
from hfcap.metrics.clip_score.encoder import PROMPT, ClipEncoder, LongCaptions
from hfcap.metrics.shared.caption_files import warn_on_terminal
from hfcap.metrics.shared.images import DecodedImages, FileBytes, Images, image_files
from hfcap.metrics.shared.models import model_signature
from hfcap.places import LocalPath, Location

DEFAULT_MODEL = "openai/clip-vit-base-patch32"
"""The model of the paper, ViT-B/32."""

_SCALE = 2.5


def clip_score(
    images: NDArray[np.float32], captions: NDArray[np.float32], scale: float = _SCALE
) -> NDArray[np.float64]:
    """Return scale * max(cosine, 0) of pairs of unit vectors: (N, D) and (N, D) -> (N,) float64."""
    return scale * np.maximum((images * captions).sum(axis=-1), 0.0).astype(np.float64)


def _warn_of_cut(encoder: ClipEncoder, cut: NDArray[np.bool_], candidates: Sequence[int], human: Sequence[int]) -> None:
    """Say how many captions are longer than what CLIP reads of them."""
    found = [
        f"{int(cut[numbers].sum()):,} of {len(numbers):,} {what}"
        for what, numbers in (("captions", list(candidates)), ("human captions", list(human)))
        if cut[numbers].any()
    ]
    if found:
        warn_on_terminal(
            f"clip_score: {' and '.join(found)} are longer than the {encoder.longest} tokens that the model reads; "
            "only their beginning is scored: choose a model for long texts (Long-CLIP), or set "
            "clip_score.long_captions to sentences or windows"
        )


class ClipScoreOptions(MetricOptions):
    """Options of CLIPScore."""

    model: Location = Field(DEFAULT_MODEL, description="folder or Hub id of a CLIP model")
    images: LocalPath | Path | None = Field(
        None, description="folder of the images; hfcap run uses those of the scored split"
    )
    device: str | None = Field(None, description="where CLIP runs; default: CUDA where there is one, else the CPU")
    batch_size: Annotated[int, Field(gt=0)] = Field(64, description="images or captions at a time")
    long_captions: LongCaptions = Field(
        "cut",
        description="captions of more tokens than the model reads: cut = their beginning alone; sentences or windows = "
        "all of them, in pieces",
    )
    scale: Annotated[float, Field(gt=0, le=100)] = Field(
        _SCALE, description="factor of the cosine: 2.5 as CLIPScore, 2 as PAC-S, whose weights `model` then is"
    )


class ClipScore(CaptionMetric):
    """CLIPScore = 2.5 * max(cos(image, caption), 0), and RefCLIPScore = its harmonic mean with the best reference.

    Raw captions are scored, in float32, after the prompt "A photo depicts ". Both are means over images. Values depend
    on the model; only those of one model may be compared.

    Args:
        image_source: the images, in place of the folder that the option `images` names.

    Raises:
        UserError: no images, one is missing or broken, or the model cannot be loaded.
    """

    name = "clip_score"
    outputs = ("clip_score", "ref_clip_score")
    looks_at_images = True
    summary = "CLIPScore and RefCLIPScore (Hessel et al. 2021): fit of caption and image; needs images"
    citation = (
        "Hessel et al. (2021): CLIPScore: A Reference-free Evaluation Metric for Image Captioning. EMNLP; "
        "Radford et al. (2021): Learning Transferable Visual Models From Natural Language Supervision. ICML"
    )

    options_class = ClipScoreOptions

    def __init__(self, options: ClipScoreOptions | None = None, *, image_source: Images | None = None) -> None:
        self._options = options or ClipScoreOptions()
        if image_source is None and self._options.images is None:
            raise UserError("metric 'clip_score' looks at the images: give its option images, the folder of the images")
        self._image_source = image_source

    def _images_of(self, image_ids: Sequence[str]) -> Images:
        if self._image_source is not None:
            return self._image_source
        files = image_files(Path(self._options.images or ""), image_ids)
        return DecodedImages({image_id: FileBytes(path) for image_id, path in files.items()})

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return CLIPScore and RefCLIPScore of each image, (N, 2)."""
        options = self._options
        image_source = self._images_of(captions.image_ids)
        encoder = ClipEncoder(options.model, options.device, options.batch_size, options.long_captions)
        images = encoder.images(image_source, captions.image_ids)
        number_of: dict[str, int] = {}
        own = [number_of.setdefault(caption, len(number_of)) for caption in captions.candidates]
        human = [number_of.setdefault(caption, len(number_of)) for group in captions.references for caption in group]
        texts = encoder.texts(list(number_of))
        _warn_of_cut(encoder, encoder.is_cut(list(number_of)), own, human)
        candidates = texts[own]
        score = clip_score(images, candidates, options.scale)
        of_image = captions.reference_set.image_of_caption
        similarity = (texts[human] * candidates[of_image]).sum(axis=-1).astype(np.float64)
        best = np.zeros(len(captions))
        np.maximum.at(best, of_image, similarity)  # starting from 0: negative similarities count as none
        total = score + best
        harmonic = np.divide(2 * score * best, total, out=np.zeros_like(total), where=total > 0)
        return np.stack((score, harmonic), axis=1)

    def signature(self) -> dict[str, Any]:
        """Return model (of a folder its name, and a hash of its weights), prompt, precision, and how captions are read.

        What is done with long captions is named where it is not to cut them, as score files before it existed have it.
        """
        long_captions = self._options.long_captions
        return {
            **model_signature(self._options.model),
            "prompt": PROMPT,
            "precision": "float32",
            "scale": self._options.scale,
            **({} if long_captions == "cut" else {"long_captions": long_captions}),
        }


REGISTERED = ClipScore
