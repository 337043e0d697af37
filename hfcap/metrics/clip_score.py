"""CLIPScore and RefCLIPScore (Hessel et al. 2021): how well a caption fits its image, according to CLIP."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionMetric, CaptionSet
from hfcap.progress import track
from hfcap.schema import ImageBytes

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

PROMPT = "A photo depicts "
"""Stands before every candidate and every human caption, as in the paper."""

DEFAULT_MODEL = "openai/clip-vit-base-patch32"
"""The model of the paper, ViT-B/32."""

_SCALE = 2.5

Decode = Callable[[ImageBytes], "Image"]
"""Turns a picture's record into an RGB image; raises OSError or ValueError for a broken one."""


def plain_decode(image: ImageBytes) -> Image:
    """Decode a picture with Pillow alone; `hfcap.data.images.decode_image` bounds sizes and turns upright as well."""
    from PIL import Image

    with Image.open(io.BytesIO(image.read())) as picture:
        return picture.convert("RGB")


def _features(output: Any) -> torch.Tensor:
    """The projected features; transformers 5 wraps them in an output object, transformers 4 returns the tensor."""
    pooled = getattr(output, "pooler_output", output)
    normalised: torch.Tensor = pooled / pooled.norm(dim=-1, keepdim=True)
    return normalised


def clip_score(images: NDArray[np.float32], captions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return 2.5 * max(cosine, 0) of pairs of unit vectors: (N, D) and (N, D) -> (N,) float64."""
    return _SCALE * np.maximum((images * captions).sum(axis=-1), 0.0).astype(np.float64)


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
        from transformers import AutoModel, AutoProcessor

        try:
            # float32: half precision moves CLIPScore in the third decimal.
            loaded: Any = AutoModel.from_pretrained(model, dtype=torch.float32)
            self._processor: Any = AutoProcessor.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise UserError(f"{model}: the CLIP model of metric 'clip_score' cannot be loaded ({error})") from None
        if not (hasattr(loaded, "get_image_features") and hasattr(loaded, "get_text_features")):
            raise UserError(f"{model}: not a CLIP model ({type(loaded).__name__} has no image and text encoder)")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = loaded.to(self.device).eval()
        self._batch_size = batch_size
        self._longest = int(loaded.config.text_config.max_position_embeddings)

    def texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors of captions behind the prompt, (M, D) float32.

        Long captions are cut such that the end token, where CLIP reads the caption off, remains.
        """
        import torch

        found: list[NDArray[np.float32]] = []
        for batch in _in_batches(captions, self._batch_size):
            # The tokenizer cuts the words and puts the end token behind what is left.
            tokens = self._processor.tokenizer(
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
            found.append(_features(output).cpu().numpy())
        return np.concatenate(found)

    def images(self, images: Sequence[ImageBytes], decode: Decode) -> NDArray[np.float32]:
        """Return unit vectors of pictures, (N, D) float32.

        Raises:
            UserError: a picture cannot be read; the message names it.
        """
        import torch

        found: list[NDArray[np.float32]] = []
        batches = list(_in_batches(images, self._batch_size))
        for batch in track(batches, "CLIPScore: images"):
            pictures = [_decoded(image, decode) for image in batch]
            pixels = self._processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                output = self._model.get_image_features(pixel_values=pixels.to(self.device))
            found.append(_features(output).cpu().numpy())
        return np.concatenate(found)


def _decoded(image: ImageBytes, decode: Decode) -> Image:
    try:
        return decode(image)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{image.describe()}: metric 'clip_score' cannot read this picture ({error})") from None


class ClipScore(CaptionMetric):
    """CLIPScore = 2.5 * max(cos(image, caption), 0), and RefCLIPScore = its harmonic mean with the best reference.

    Raw captions are scored, in float32, behind the prompt "A photo depicts ". Both are means over images. Values depend
    on the model; only those of one model may be compared.

    Args:
        model: folder or Hub id of a CLIP model.
        images: image id -> picture.
        decode: turns a picture's record into an RGB image.
        image_features: image id -> CLIP's projected features (D,), in place of `images`, for example from a feature
            store of the same model.
        device: where CLIP runs; None = CUDA where there is one, else the CPU.
        batch_size: images or captions at a time.

    Raises:
        UserError: no pictures, one is missing or broken, or the model cannot be loaded.
    """

    name = "clip_score"
    outputs = ("clip_score", "ref_clip_score")
    needs = ("captions", "references", "images")
    citation = (
        "Hessel et al. (2021): CLIPScore: A Reference-free Evaluation Metric for Image Captioning. EMNLP; "
        "Radford et al. (2021): Learning Transferable Visual Models From Natural Language Supervision. ICML"
    )

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        images: Mapping[str, ImageBytes] | None = None,
        decode: Decode = plain_decode,
        image_features: Mapping[str, NDArray[np.float32]] | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ) -> None:
        if images is None and image_features is None:
            raise UserError("metric 'clip_score' looks at the pictures: give images, a mapping of image id to picture")
        self._images, self._image_features = images, image_features
        self._decode = decode
        self._model_name = model
        self._encoder_options = (device, batch_size)

    def _vectors_of_images(self, encoder: ClipEncoder, image_ids: Sequence[str]) -> NDArray[np.float32]:
        known: Mapping[str, Any] = self._image_features if self._image_features is not None else (self._images or {})
        missing = [image_id for image_id in image_ids if image_id not in known]
        if missing:
            raise UserError(
                f"metric 'clip_score': no picture for {len(missing):,} images, for example {missing[0]!r}; "
                "give the pictures of the split that is scored"
            )
        if self._image_features is None:
            return encoder.images([known[image_id] for image_id in image_ids], self._decode)
        vectors = np.stack([np.asarray(known[image_id], dtype=np.float32) for image_id in image_ids])
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return CLIPScore and RefCLIPScore of each image, (N, 2)."""
        encoder = ClipEncoder(self._model_name, *self._encoder_options)
        images = self._vectors_of_images(encoder, captions.image_ids)
        number_of: dict[str, int] = {}
        own = [number_of.setdefault(caption, len(number_of)) for caption in captions.candidates]
        human = [number_of.setdefault(caption, len(number_of)) for group in captions.references for caption in group]
        texts = encoder.texts(list(number_of))
        if images.shape[1] != texts.shape[1]:
            raise UserError(
                f"metric 'clip_score': image features have {images.shape[1]} numbers, {self._model_name} gives "
                f"captions {texts.shape[1]}; use features of the same model, after its projection"
            )
        candidates = texts[own]
        score = clip_score(images, candidates)
        of_image = captions.reference_set.image_of_caption
        similarity = (texts[human] * candidates[of_image]).sum(axis=-1).astype(np.float64)
        best = np.zeros(len(captions))
        np.maximum.at(best, of_image, similarity)  # starting from 0: negative similarities count as none
        total = score + best
        harmonic = np.divide(2 * score * best, total, out=np.zeros_like(total), where=total > 0)
        return np.stack((score, harmonic), axis=1)

    def signature(self) -> dict[str, Any]:
        """Return model, prompt and precision."""
        return {"model": self._model_name, "prompt": PROMPT, "precision": "float32", "scale": _SCALE}


REGISTERED = ClipScore
