"""Records that cross the borders between data, captioners, training, decoding, scoring and publishing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch

IGNORED_LABEL = -100
"""Label of positions that never count in a loss: prompt, padding, image tokens (torch's ignore_index)."""


IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow's other decoders (EPS, PSD, FITS, ...) are never tried: more code that strangers' bytes would reach."""

IMAGE_BACKEND = "pil"
"""Backend of every image processor that transformers has several of. Pillow is there wherever hfcap is, torchvision may
come and go, and the two round differently: training, captioning and scores must not see other pixels for that."""


class ImageBytes(Protocol):
    """Where the encoded bytes of one image come from; small and picklable, so that workers can receive it."""

    def read(self) -> bytes:
        """Return the encoded image (JPEG, PNG, ...)."""
        ...

    def describe(self) -> str:
        """Return a name that a person can find the image by (path, row of a dataset)."""
        ...


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on `device`; for a CUDA device it is pinned, so that the host goes on while it is copied.

    Only torch's pinned memory is kept until such a copy is done: elsewhere the host waits.
    """
    to_cuda = device.type == "cuda"
    if to_cuda and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=to_cuda)


@dataclass(frozen=True, slots=True)
class SizedImages:
    """Images that keep their shape, or what an encoder says of them: tensors of different shapes, not one.

    It moves, is cut and counted as a tensor (B, ...) is, so that most code need not tell the two apart.

    Attributes:
        values: of each image its pixels as its processor gives them, or its states (S, D).
        sizes: (width, height) of each image before its processor.
    """

    values: tuple[torch.Tensor, ...]
    sizes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, chosen: int | slice | Sequence[int]) -> SizedImages:
        """Return one image, or some, as images."""
        if isinstance(chosen, slice):
            return SizedImages(self.values[chosen], self.sizes[chosen])
        numbers = [chosen] if isinstance(chosen, int) else chosen
        return SizedImages(tuple(self.values[n] for n in numbers), tuple(self.sizes[n] for n in numbers))

    @property
    def shape(self) -> tuple[int]:
        """How many images there are: the first number of a tensor's shape."""
        return (len(self.values),)

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.values[0].device

    def numel(self) -> int:
        """How many numbers there are."""
        return sum(value.numel() for value in self.values)

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> SizedImages:
        """Return the same images with every tensor changed."""
        return SizedImages(tuple(map(change, self.values)), self.sizes)

    def to(self, device: torch.device) -> SizedImages:
        """Return them on `device`."""
        return self.mapped(lambda value: sent(value, device))

    def float(self) -> SizedImages:
        """Return them in float32."""
        return self.mapped(lambda value: value.float())

    def cpu(self) -> SizedImages:
        """Return them on the CPU."""
        return self.mapped(lambda value: value.cpu())

    def pin_memory(self) -> SizedImages:
        """Return them in memory that a GPU reads by itself; DataLoader calls this."""
        return self.mapped(lambda value: value.pin_memory())

    @staticmethod
    def joined(parts: Iterable[SizedImages]) -> SizedImages:
        """Put images together, in order."""
        listed = list(parts)
        values = tuple(value for part in listed for value in part.values)
        return SizedImages(values, tuple(size for part in listed for size in part.sizes))


Images: TypeAlias = "torch.Tensor | SizedImages"
"""Pixels or states of B images: (B, ...), or one tensor for each where they keep their shape."""


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One image with its human captions.

    Attributes:
        image_id: unique within a dataset; always a string, also where the source counts with integers.
        file_name: name relative to the image folder, with forward slashes.
        captions: human captions, at least one, none empty (empty only where a user captions images without text).
        image: where the encoded bytes come from.
        group: what the dataset tells images apart by (nocaps: in-domain, near-domain, out-domain); empty = nothing.
        prompts: what the captions answer, as the dataset says (LLaVA's questions); empty = it names none.
        asked: the prompt that each caption answers, in training too and in place of the captioner's own; empty = that.
        columns: what the image's table says of it otherwise, column -> text, which prompts may name as fields.
    """

    image_id: str
    file_name: str
    captions: tuple[str, ...]
    image: ImageBytes
    group: str = ""
    prompts: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict, compare=False)
    asked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedCaptions:
    """Several captions of each image in one decoder row (see hfcap/data/packing.py).

    Shapes: B images, P positions per row.

    Attributes:
        input_ids: (B, P) int64.
        position_ids: (B, P) int64, restarting at 0 for each caption.
        caption_index: (B, P) int64, 0..K-1 = which caption of the row, -1 = padding.
        labels: (B, P) int64, the token each position must predict (already shifted), IGNORED_LABEL elsewhere.
        prompts: of each caption of each image, what it answers in place of the captioner's prompt; None = that one.
        label_places: (N,) int64, where labels stand among all B * P positions. lengths: positions of each caption of
            each image. Both tell the host what the tensors hold, so that no device has to be waited for; None where
            the tensors were made on a device.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    caption_index: torch.Tensor
    labels: torch.Tensor
    prompts: tuple[tuple[str, ...], ...] | None = None
    label_places: torch.Tensor | None = field(init=False, default=None)
    lengths: list[list[int]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.labels.device.type == "cpu":
            places = (self.labels.flatten() != IGNORED_LABEL).nonzero().squeeze(1)
            self._note(places, _lengths(self.caption_index))

    def _note(self, label_places: torch.Tensor | None, lengths: list[list[int]] | None) -> None:
        object.__setattr__(self, "label_places", label_places)
        object.__setattr__(self, "lengths", lengths)

    @property
    def n_labels(self) -> int:
        """Number of positions that carry a label."""
        if self.label_places is not None:
            return len(self.label_places)
        return int((self.labels != IGNORED_LABEL).sum())

    def caption_lengths(self) -> list[list[int]]:
        """Return how many positions each caption of each image has."""
        return _lengths(self.caption_index) if self.lengths is None else self.lengths

    def to(self, device: torch.device) -> PackedCaptions:
        """Return a copy on `device`."""
        return self._moved(lambda tensor: sent(tensor, device))

    def pin_memory(self) -> PackedCaptions:
        """Return a copy in memory that a device can copy from while the host goes on; torch's data loader calls it."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def rows(self, numbers: Sequence[int]) -> PackedCaptions:
        """Return the rows of some of the images."""
        chosen = list(numbers)
        prompts = None if self.prompts is None else tuple(self.prompts[number] for number in chosen)
        ids, positions = self.input_ids[chosen], self.position_ids[chosen]
        rows = PackedCaptions(ids, positions, self.caption_index[chosen], self.labels[chosen], prompts)
        if rows.lengths is None and self.lengths is not None:
            rows._note(None, [self.lengths[number] for number in chosen])
        return rows

    def _moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> PackedCaptions:
        ids, positions = move(self.input_ids), move(self.position_ids)
        moved = PackedCaptions(ids, positions, move(self.caption_index), move(self.labels), self.prompts)
        moved._note(None if self.label_places is None else move(self.label_places), self.lengths)
        return moved


def _lengths(caption_index: torch.Tensor) -> list[list[int]]:
    return [[row.count(number) for number in range(max(row) + 1)] for row in caption_index.tolist()]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of predictions/<split>.jsonl.

    Attributes:
        score: sequence log-probability that the decoder ranked by; None for greedy decoding and sampling.
        candidates: all returned captions, best first (n-best or samples); the first is `caption`.
        review: why a person should look at it, empty where nothing speaks against it; None = it was not examined.
        cut: whether the caption ends at the length limit and not where the captioner ended it.
        usage: tokens that a server read and wrote for all candidates (prompt_tokens, completion_tokens); None where
            nobody counts them.
        clip_score: how well the caption fits its image (0 to 2.5), where it was examined by CLIPScore.
    """

    image_id: str
    file_name: str
    caption: str
    score: float | None = None
    candidates: tuple[str, ...] = ()
    review: str | None = None
    cut: bool = False
    usage: dict[str, int] | None = None
    clip_score: float | None = None

    def as_row(self) -> dict[str, Any]:
        """Return the JSON object of this prediction; what is not known of it is left out, `cut` where it is not."""
        row: dict[str, Any] = {
            "image_id": self.image_id,
            "file_name": self.file_name,
            "caption": self.caption,
            "score": self.score,
            "candidates": list(self.candidates),
        }
        row |= {"cut": True} if self.cut else {}
        row |= {} if self.usage is None else {"usage": self.usage}
        row |= {} if self.clip_score is None else {"clip_score": self.clip_score}
        return row if self.review is None else {**row, "review": self.review}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the captions of an image.

    Attributes:
        score: log-probability that beam search ranked by, the length penalty applied; None when greedy or sampled.
    """

    text: str
    score: float | None


@dataclass(frozen=True, slots=True)
class Caption:
    """The caption of one image, as the Python interface returns it.

    Attributes:
        text: the best candidate's.
        score: the best candidate's.
        candidates: all returned captions, best first; the first is this one.
        image: file name or web address; of an image without one "image N", N counted from 0 in what was given.
        cut: whether the text ends at the length limit (max_new_tokens) and not where the captioner ended it.
        usage: tokens that a server read and wrote for it (prompt_tokens, completion_tokens); None where none counted.
    """

    text: str
    score: float | None
    candidates: tuple[Candidate, ...]
    image: str
    cut: bool = False
    usage: dict[str, int] | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class SliceScores:
    """Scores of the images that have one value in a column.

    Attributes:
        n_images: how many they are.
        metrics: as in ScoreReport.
        intervals: bootstrap intervals within the slice.
        p_values: of the test against all other images, after Holm's correction over all slices and values of the file.
    """

    n_images: int
    metrics: dict[str, float | None]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    p_values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ErrorSlice:
    """Images with something in common on which captions score significantly worse than on all others.

    Attributes:
        kind: what they have in common: word, colour, count, relation, length, people, ...
        name: the word, or the value.
        n_images: how many they are.
        output: the value by which they are worse.
        value, value_of_others: its mean over these images, and over all others; raw scale.
        p_value: corrected over all groups that were looked at.
        examples: (image id, caption) of the worst ones.
        interval, interval_of_others: (lower, upper) of the bootstrap, of both means.
        image_ids: which images they are.
    """

    kind: str
    name: str
    n_images: int
    output: str
    value: float
    value_of_others: float
    p_value: float
    examples: tuple[tuple[str, str], ...] = ()
    interval: tuple[float, float] | None = None
    interval_of_others: tuple[float, float] | None = None
    image_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """The content of scores/<split>.json.

    Attributes:
        metrics: raw scale as pycocoevalcap gives it (CIDEr-D 1.28, BLEU 0.38); None where undefined, never NaN.
        intervals: metric name -> (lower, upper) of the bootstrap interval (signature["bootstrap"] says which).
        signature: the conditions of the numbers (split hash, tokeniser, df source, decoding, versions).
        per_image: image id -> metric name -> value of that image alone; None where undefined.
        statistics: metric name -> one row of sufficient statistics per image, in the order of `per_image`, for
            metrics that are not the mean of their per-image values (BLEU, METEOR): what resampling needs.
        predictions_sha256: which captions were scored; None in files of earlier versions.
        groups: column -> image id -> value, of the columns that scores are told apart by.
        slices: column -> value -> scores of the images that have it.
        error_slices: groups of images that score significantly worse, surest first; None where nobody asked for them.
    """

    split: str
    n_images: int
    metrics: dict[str, float | None]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    signature: dict[str, Any] = field(default_factory=dict)
    per_image: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    statistics: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    predictions_sha256: str | None = None
    schema_version: int = 1
    groups: dict[str, dict[str, str]] = field(default_factory=dict)
    slices: dict[str, dict[str, SliceScores]] = field(default_factory=dict)
    error_slices: list[ErrorSlice] | None = None
