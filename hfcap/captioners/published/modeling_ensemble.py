"""Ensemble of captioners: each proposes captions, and the one that agrees most with all of them is chosen.

This file is published with the weights and runs without hfcap: it imports only torch, transformers and what they bring.
Every member lies as a whole model in a folder of its own (`member_0`, ...). Choice: minimum Bayes risk (Kumar and Byrne
2004) under CIDEr-D (Vedantam et al. 2015), or the caption that CLIP finds nearest to the picture. Shapes: B images,
P numbers of all members' pixel values of an image, U n-grams.
"""

import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.generic import ModelOutput

RERANKER = "reranker"
PROCESSOR_FILE = "processor_config.json"
_ORDERS = (1, 2, 3, 4)
_SIGMA = 6.0
_WORD = re.compile(r"\w+(?:-\w+)*")
_LENGTHS = ("max_new_tokens", "min_new_tokens", "length_penalty", "no_repeat_ngram_size", "repetition_penalty")
_DECODING = (*_LENGTHS, "num_beams", "do_sample")
_SAMPLING = ("temperature", "top_k", "top_p")


class EnsembleConfig(PreTrainedConfig):
    """Configuration of an ensemble.

    Args:
        members: for each member {"folder", "model_type", "prompt", "weight"}.
        candidates: captions that each member proposes. beam_candidates: beside samples, so many more by beams.
        choice: "consensus" or "clip" (nearest to the picture by the dual encoder in the folder `reranker`).
        pixel_shapes: shape of the pixel values of each member and of the reranker, in the order they are joined in.
        n_documents: pictures that document frequencies were counted in. n_ngrams: U.
    """

    model_type = "caption_ensemble"

    def __init__(
        self,
        members: list[dict[str, Any]] | None = None,
        candidates: int = 5,
        beam_candidates: int = 0,
        choice: str = "consensus",
        pixel_shapes: list[list[int]] | None = None,
        n_documents: int = 1,
        n_ngrams: int = 0,
        **kwargs: Any,
    ) -> None:
        self.members = members or []
        self.candidates = candidates
        self.beam_candidates = beam_candidates
        self.choice = choice
        self.pixel_shapes = pixel_shapes or []
        self.n_documents = n_documents
        self.n_ngrams = n_ngrams
        super().__init__(**kwargs)


def ngram_counts(text: str) -> Counter[tuple[str, ...]]:
    """Count the n-grams of one to four words of a caption, lower-cased, punctuation left out."""
    words = _WORD.findall(text.lower())
    return Counter(tuple(words[first : first + order]) for order in _ORDERS for first in range(len(words) - order + 1))


def ngram_key(ngram: tuple[str, ...]) -> int:
    """Return a signed 64-bit number for an n-gram, the same in every process."""
    return int.from_bytes(hashlib.blake2b(" ".join(ngram).encode(), digest_size=8).digest(), "little", signed=True)


def expected_ciders(captions: list[str], weights: list[float], idf: dict[tuple[str, ...], float]) -> list[float]:
    """Return the weighted mean CIDEr-D of each of C captions to all captions of its pool, itself among them.

    min(a, b) b of counts a and b is the sum over t = 1, 2, ... of [a >= t] times [b >= t] b: with a column for every
    n-gram and t, all pairs are one matrix product, (C, columns) by (columns, C).
    """
    columns: dict[tuple[tuple[str, ...], int], int] = {}
    rows, places, ours, theirs, bigrams = [], [], [], [], []
    for row, caption in enumerate(captions):
        counts = ngram_counts(caption)
        squares = [0.0] * (len(_ORDERS) + 1)
        for ngram, count in counts.items():
            squares[len(ngram)] += (count * idf[ngram]) ** 2
        for ngram, count in counts.items():
            share = idf[ngram] / math.sqrt(squares[len(ngram)]) if squares[len(ngram)] else 0.0
            for level in range(count):
                places.append(columns.setdefault((ngram, level), len(columns)))
                ours.append(share)
                theirs.append(share * count)
            rows.extend([row] * count)
        bigrams.append(float(sum(count for ngram, count in counts.items() if len(ngram) == 2)))
    filled = torch.zeros(2, len(captions), len(columns), dtype=torch.float64)
    filled[:, rows, places] = torch.tensor([ours, theirs], dtype=torch.float64)
    lengths = torch.tensor(bigrams, dtype=torch.float64)
    penalty = torch.exp(-((lengths[:, None] - lengths) ** 2) / (2 * _SIGMA**2))
    mass = torch.tensor(weights, dtype=torch.float64)
    similarity = (filled[0] @ filled[1].T) * penalty * (10.0 / len(_ORDERS))
    return [float(value) for value in similarity @ mass / mass.sum()]


def pooled(proposals: list[list[list[str]]], weights: list[float]) -> tuple[list[str], list[float]]:
    """Join the captions of one image by round and member: different texts and their votes, all of the first round."""
    mass: dict[str, float] = {}
    for number, of_round in enumerate(proposals):
        for texts, weight in zip(of_round, weights, strict=True):
            for text in texts:
                mass[text] = mass.get(text, 0.0) + (0.0 if number else weight / len(texts))
    kept = {text: value for text, value in mass.items() if text} or {"": 1.0}
    return list(kept), list(kept.values() if any(kept.values()) else [1.0] * len(kept))


def rounds(options: dict[str, Any], candidates: int, beam_candidates: int) -> list[dict[str, Any]]:
    """Return how every member decodes, round by round; the captions of the first round vote.

    Beams find likely captions; samples alone tell what else is likely (Eikema and Aziz 2022, arXiv:2108.04718).
    """
    if not options.get("do_sample"):
        return [{"num_beams": max(options.get("num_beams") or 1, candidates), "num_return_sequences": candidates}]
    beams = {"do_sample": False, "num_beams": beam_candidates, "num_return_sequences": beam_candidates}
    return [{"num_beams": 1, "num_return_sequences": candidates}, *([beams] if beam_candidates else [])]


class EnsembleForImageCaptioning(PreTrainedModel, GenerationMixin):
    """An ensemble for `AutoModelForImageTextToText`; `generate(pixel_values=...)` returns the chosen captions.

    Buffers: `ngram_keys` (U,) sorted, `ngram_idf` (U,): n-grams that at least two training pictures' captions hold;
    all others weigh the logarithm of the number of pictures.
    """

    config_class = EnsembleConfig
    base_model_prefix = "caption_ensemble"
    main_input_name = "pixel_values"

    config: EnsembleConfig
    ngram_keys: torch.Tensor
    ngram_idf: torch.Tensor

    def __init__(self, config: EnsembleConfig) -> None:
        super().__init__(config)
        self.members = nn.ModuleList()
        self.reranker: Any = None
        self.member_processors: list[Any] = []
        self.reranker_processor: Any = None
        self.tokenizer: Any = None
        self.register_buffer("ngram_keys", torch.zeros(config.n_ngrams, dtype=torch.int64))
        self.register_buffer("ngram_idf", torch.zeros(config.n_ngrams, dtype=torch.float32))
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """Number type of this model's own buffers; while it is saved it holds no parameter."""
        return self.ngram_idf.dtype

    @classmethod
    def from_pretrained(  # type: ignore[override]  # all of its arguments are handed on
        cls, location: Any, *args: Any, with_members: bool = True, **kwargs: Any
    ) -> Any:
        """Load the ensemble and, unless the caller puts them in itself, its members."""
        loaded = super().from_pretrained(location, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if with_members:
            revision = getattr(model.config, "_commit_hash", None) or kwargs.get("revision")
            model.load_members(whole_folder(location, revision, kwargs.get("token")))
        return loaded

    def load_members(self, folder: Path) -> None:
        """Load every member and what it needs to write captions from the folders beside this model's own files."""
        for member in self.config.members:
            place = folder / checked_name(member["folder"])
            self.members.append(AutoModelForImageTextToText.from_pretrained(place, trust_remote_code=True).eval())
            self.member_processors.append(AutoProcessor.from_pretrained(place, trust_remote_code=True))
        if self.config.choice == "clip":
            self.reranker = AutoModel.from_pretrained(folder / RERANKER, trust_remote_code=True).eval()
            self.reranker_processor = AutoProcessor.from_pretrained(folder / RERANKER, trust_remote_code=True)
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write this model's own files; members are saved as models of their own."""
        members, reranker = self.members, self.reranker
        self.members, self.reranker = nn.ModuleList(), None
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self.members, self.reranker = members, reranker

    def pixels_of_parts(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Cut joined pixel values (B, P) into those of each member and of the reranker."""
        sizes = [math.prod(shape) for shape in self.config.pixel_shapes]
        parts = pixel_values.flatten(1).split(sizes, dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.config.pixel_shapes, strict=True)]

    def propose(self, pixel_values: torch.Tensor, options: dict[str, Any]) -> list[list[list[list[str]]]]:
        """For each image (B, P), round and member the captions, best first, by plain transformers."""
        changes = rounds(options, self.config.candidates, self.config.beam_candidates)
        proposals: list[list[list[list[str]]]] = [[[] for _ in changes] for _ in range(len(pixel_values))]
        parts = self.pixels_of_parts(pixel_values)
        for member, processor, facts, pixels in zip(
            self.members, self.member_processors, self.config.members, parts, strict=False
        ):
            given: dict[str, Any] = {"pixel_values": pixels}
            if facts["prompt"]:
                start = processor.tokenizer(facts["prompt"], return_tensors="pt").input_ids.to(pixels.device)
                name = "decoder_input_ids" if facts["model_type"] == "vision-encoder-decoder" else "input_ids"
                given[name] = start.expand(len(pixels), -1)
            model: Any = member
            for number, change in enumerate(changes):
                unused = () if change.get("do_sample", options.get("do_sample")) else _SAMPLING
                settings = {name: value for name, value in {**options, **change}.items() if name not in unused}
                texts = processor.batch_decode(model.generate(**given, **settings), skip_special_tokens=True)
                texts = [" ".join(text.strip().removeprefix(facts["prompt"]).split()) for text in texts]
                count = change["num_return_sequences"]
                for image, found in enumerate(proposals):
                    found[number].append(texts[image * count : (image + 1) * count])
        return proposals

    def rank(
        self, proposals: list[list[list[list[str]]]], reranker_pixels: torch.Tensor | None
    ) -> list[list[tuple[str, float]]]:
        """For each image its different captions with their scores, best first."""
        weights = [float(member["weight"]) for member in self.config.members]
        pools = [pooled(of_image, weights) for of_image in proposals]
        if self.config.choice == "clip":
            assert reranker_pixels is not None
            scores = self._cosines([captions for captions, _ in pools], reranker_pixels)
        else:
            idf = self._idf({ngram for captions, _ in pools for text in captions for ngram in ngram_counts(text)})
            scores = [expected_ciders(captions, mass, idf) for captions, mass in pools]
        ranked = []
        for (captions, _), values in zip(pools, scores, strict=True):
            # Equal scores must not be told apart by rounding.
            order = sorted(range(len(captions)), key=lambda place: -round(values[place], 6))
            ranked.append([(captions[place], values[place]) for place in order])
        return ranked

    def _idf(self, ngrams: set[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        listed = sorted(ngrams)
        keys = torch.tensor([ngram_key(ngram) for ngram in listed], dtype=torch.int64, device=self.ngram_keys.device)
        idf = torch.full(keys.shape, math.log(max(self.config.n_documents, 1)), dtype=torch.float32, device=keys.device)
        if len(self.ngram_keys):
            place = torch.searchsorted(self.ngram_keys, keys).clamp(max=len(self.ngram_keys) - 1)
            idf = torch.where(self.ngram_keys[place] == keys, self.ngram_idf[place], idf)
        return dict(zip(listed, idf.tolist(), strict=True))

    def _cosines(self, captions: list[list[str]], pixels: torch.Tensor) -> list[list[float]]:
        longest = self.reranker.config.get_text_config().max_position_embeddings
        padding = "max_length" if "siglip" in str(self.reranker.config.model_type) else True
        images = self.reranker.get_image_features(pixel_values=pixels)
        images = nn.functional.normalize(getattr(images, "pooler_output", images).float(), dim=-1)
        found = []
        for texts, image in zip(captions, images, strict=True):
            tokens = self.reranker_processor.tokenizer(
                texts, padding=padding, truncation=True, max_length=longest, return_tensors="pt"
            ).to(pixels.device)
            given = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
            if padding == "max_length":
                given.pop("attention_mask", None)
            vectors = self.reranker.get_text_features(**given)
            vectors = nn.functional.normalize(getattr(vectors, "pooler_output", vectors).float(), dim=-1)
            found.append((vectors @ image).tolist())
        return found

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        num_return_sequences: int | None = None,
        return_dict_in_generate: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return captions as token ids (B * n, T) of this repository's tokenizer, best first.

        Decoding options (beams, lengths, sampling) are those of the members; `candidates` of the config says how many
        captions each proposes.
        """
        assert pixel_values is not None
        config = self.generation_config if generation_config is None else generation_config
        names = _DECODING + (_SAMPLING if kwargs.get("do_sample", getattr(config, "do_sample", False)) else ())
        given = ((name, kwargs.get(name, getattr(config, name, None))) for name in names)
        options = {name: value for name, value in given if value is not None}
        count = num_return_sequences or config.num_return_sequences or 1
        parts = self.pixels_of_parts(pixel_values)
        ranked = self.rank(self.propose(pixel_values, options), parts[-1] if self.config.choice == "clip" else None)
        chosen = [of_image[min(place, len(of_image) - 1)] for of_image in ranked for place in range(count)]
        ids = self.tokenizer([text for text, _ in chosen], add_special_tokens=False, split_special_tokens=True)
        start, end, device = [self.config.bos_token_id], [self.config.eos_token_id], pixel_values.device
        rows = [torch.tensor(start + row + end, device=device) for row in ids["input_ids"]]
        sequences = nn.utils.rnn.pad_sequence(rows, True, self.config.pad_token_id)
        if return_dict_in_generate or config.return_dict_in_generate:
            scores = torch.tensor([score for _, score in chosen], device=device)
            return ModelOutput(sequences=sequences, sequences_scores=scores)
        return sequences

    def forward(self, pixel_values: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Return what `generate` does."""
        return self.generate(pixel_values, return_dict_in_generate=True)


def checked_name(name: Any) -> str:
    """Return the name of a member's folder; another one could lead to code outside of what the user trusts."""
    if not isinstance(name, str) or not re.fullmatch(r"member_[0-9]+", name):
        raise ValueError(f"config.json names a member folder {name!r}; expected member_<number>")
    return name


def whole_folder(location: Any, revision: str | None = None, token: Any = None) -> Path:
    """Return the folder that holds the ensemble with its members: a local one, or a snapshot of the repository."""
    local = Path(location).is_dir()
    return Path(location if local else snapshot_download(str(location), revision=revision, token=token))


class EnsembleImageProcessor:
    """The members' image processors, and the reranker's: their pixel values joined into one row per picture."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        sides = [int(side) for part in parts for side in dict(getattr(part, "size", None) or {}).values() if side]
        self.size = {"height": max(sides, default=224), "width": max(sides, default=224)}

    def __call__(self, images: Any, return_tensors: str = "pt", **kwargs: Any) -> BatchFeature:
        """Return pixel_values (B, P) float32."""
        pictures = images if isinstance(images, (list, tuple)) else [images]
        rows = [torch.cat([_flat_pixels(part, picture) for part in self.parts]) for picture in pictures]
        return BatchFeature({"pixel_values": torch.stack(rows)})

    def to_dict(self) -> dict[str, Any]:
        """Return what the pixel values depend on."""
        return {"parts": [part.to_dict() for part in self.parts], "size": self.size}


def _flat_pixels(processor: Any, picture: Any) -> torch.Tensor:
    return processor(images=picture, return_tensors="pt")["pixel_values"][0].flatten().float()


class EnsembleProcessor:
    """Pictures for the members, and the tokenizer of the chosen captions."""

    def __init__(self, image_processor: EnsembleImageProcessor, tokenizer: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """AutoProcessor finds this class by what `save_pretrained` writes."""

    @classmethod
    def from_pretrained(cls, location: Any, revision: str | None = None, token: Any = None, **kwargs: Any) -> Any:
        """Load the processors of all members from a folder or repository; Pillow's, as in training."""
        folder = whole_folder(location, revision, token)
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        places = [folder / checked_name(member["folder"]) for member in values["members"]]
        places += [folder / RERANKER] if values["choice"] == "clip" else []
        parts = [AutoImageProcessor.from_pretrained(place, backend="pil", trust_remote_code=True) for place in places]
        return cls(EnsembleImageProcessor(parts), PreTrainedTokenizerFast.from_pretrained(folder))

    def save_pretrained(self, folder: Any) -> None:
        """Write the tokenizer and where AutoProcessor finds this class; members keep their own processors."""
        self.tokenizer.save_pretrained(folder)
        values = {
            "processor_class": type(self).__name__,
            "auto_map": {"AutoProcessor": "modeling_ensemble.EnsembleProcessor"},
            "image_processor": {"size": self.image_processor.size},
        }
        (Path(folder) / PROCESSOR_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def __call__(self, images: Any = None, text: Any = None, return_tensors: str = "pt", **kwargs: Any) -> BatchFeature:
        """Return pixel_values (B, P); an ensemble takes no text, its members have their own prompts."""
        if text:
            raise ValueError("an ensemble takes no prompt, because its members have their own; leave it out")
        return self.image_processor(images, return_tensors)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Decode one caption."""
        return str(self.tokenizer.decode(*args, **kwargs))

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Decode several captions."""
        return list(self.tokenizer.batch_decode(*args, **kwargs))
