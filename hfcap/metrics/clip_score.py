"""CLIPScore and RefCLIPScore (Hessel et al. 2021): how well a caption fits its image, according to CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionMetric, CaptionSet, MetricOptions
from hfcap.metrics.shared.caption_files import warn_on_terminal
from hfcap.metrics.shared.images import DecodedImages, FileBytes, Images, image_files
from hfcap.metrics.shared.models import loading, model_signature
from hfcap.places import LocalPath, Location
from hfcap.schema import IMAGE_BACKEND

PROMPT = "A photo depicts "
"""Stands before every candidate and every human caption, as in the paper."""

DEFAULT_MODEL = "openai/clip-vit-base-patch32"
"""The model of the paper, ViT-B/32."""

_SCALE = 2.5


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def clip_score(
    images: NDArray[np.float32], captions: NDArray[np.float32], scale: float = _SCALE
) -> NDArray[np.float64]:
    """Return scale * max(cosine, 0) of pairs of unit vectors: (N, D) and (N, D) -> (N,) float64."""
    return scale * np.maximum((images * captions).sum(axis=-1), 0.0).astype(np.float64)


def _in_batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


class ClipEncoder:
    """CLIP's two encoders in float32.

    Args:
        model: folder or Hub id of a CLIP model with its processor.
        device: where it runs; None = CUDA where there is one, else the CPU.
        batch_size: images or captions at a time.

    Raises:
        UserError: the model cannot be loaded, or has no image and text encoder.
    """

    def __init__(self, model: str, device: str | None = None, batch_size: int = 64) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        with loading(model, "the CLIP model of metric 'clip_score'"):
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
        self._longest = int(loaded.config.text_config.max_position_embeddings)

    def texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors of captions after the prompt, (M, D) float32.

        Long captions are cut such that the end token, where CLIP reads the caption off, remains.
        """
        import torch

        found: list[NDArray[np.float32]] = []
        for batch in _in_batches(captions, self._batch_size):
            # The tokenizer cuts the words and puts the end token after what is left.
            tokens = self._tokenizer(
                [PROMPT + caption for caption in batch],
                padding=True,
                truncation=True,
                max_length=self._longest,
                return_tensors="pt",
            ).to(self.device)
            with torch.inference_mode():
                output = self._model.get_text_features(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                )
            # transformers 5 wraps the features in an output object, transformers 4 returns the tensor.
            found.append(getattr(output, "pooler_output", output).cpu().numpy())
        return _unit(np.concatenate(found))

    @property
    def longest(self) -> int:
        """Tokens that the text encoder reads, prompt, start and end among them."""
        return self._longest

    def is_cut(self, captions: Sequence[str]) -> NDArray[np.bool_]:
        """Return whether each caption has more tokens than the text encoder reads, (M,) bool."""
        longer: list[bool] = []
        for batch in _in_batches(captions, self._batch_size):
            tokens = self._tokenizer([PROMPT + caption for caption in batch], verbose=False)["input_ids"]
            longer += [len(ids) > self._longest for ids in tokens]
        return np.asarray(longer, dtype=bool)

    def images(self, image_source: Images, image_ids: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors of images, (N, D) float32.

        Raises:
            UserError: an image is missing or cannot be read; the message names it.
        """
        return _unit(
            image_source.embeddings(self._name, self._model, self._image_processor, image_ids, self._batch_size)
        )


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
            "only their beginning is scored: choose a model for long texts, or judge them by other metrics too"
        )


class ClipScoreOptions(MetricOptions):
    """Options of CLIPScore."""

    model: Location = Field(DEFAULT_MODEL, description="folder or Hub id of a CLIP model")
    images: LocalPath | Path | None = Field(
        None, description="folder of the images; hfcap run uses those of the scored split"
    )
    device: str | None = Field(None, description="where CLIP runs; default: CUDA where there is one, else the CPU")
    batch_size: Annotated[int, Field(gt=0)] = Field(64, description="images or captions at a time")
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
        encoder = ClipEncoder(options.model, options.device, options.batch_size)
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
        """Return model (of a folder its name, and a hash of its weights), prompt and precision."""
        return {
            **model_signature(self._options.model),
            "prompt": PROMPT,
            "precision": "float32",
            "scale": self._options.scale,
        }


REGISTERED = ClipScore
