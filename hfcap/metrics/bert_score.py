"""BERTScore (Zhang et al. 2020, arXiv:1904.09675): words of captions matched by the vectors of a language model."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfcap.errors import UserError
from hfcap.files import read_text, sha256_of
from hfcap.metrics.base import CaptionMetric, CaptionSet, MetricOptions
from hfcap.metrics.shared.models import loading, model_signature
from hfcap.places import LocalPath, Location

DEFAULT_MODEL = "FacebookAI/roberta-large"
"""The model that the authors recommend for English."""

LAYERS = {
    "roberta-large": 17,
    "roberta-base": 10,
    "roberta-large-mnli": 19,
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "bert-base-multilingual-cased": 9,
    "bert-base-chinese": 8,
    "distilroberta-base": 5,
    "distilbert-base-uncased": 5,
    "distilbert-base-multilingual-cased": 5,
}
"""Last part of a model's name -> the layer whose vectors agreed best with people on WMT16, as the authors chose it."""

_IMAGES_AT_A_TIME = 256


@dataclass(frozen=True)
class _Words:
    """Unit vectors of the tokens of a caption, (T, D), and which of them are words, (T,) bool."""

    vectors: Any
    are_words: Any


class WordEncoder:
    """A language model that gives a vector for each token, in float32.

    Args:
        model: folder or Hub id. layer: whose output is taken; 0 = the embeddings.

    Raises:
        UserError: the model cannot be loaded, or has fewer layers.
    """

    def __init__(self, model: str, layer: int, device: str | None = None, batch_size: int = 64) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        with loading(model, "the language model of metric 'bert_score'"):
            loaded: Any = AutoModel.from_pretrained(model, dtype=torch.float32, use_safetensors=True)
            # Words in the middle of a text begin with a blank; so does the first one, as with the authors.
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, add_prefix_space=True)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = loaded.to(self.device).eval()
        self._layer, self._batch_size = layer, batch_size
        n_layers = int(loaded.config.num_hidden_layers)
        if layer > n_layers:
            raise UserError(f"bert_score.num_layers: {model} has {n_layers} layers, not {layer}; give a smaller number")
        limit = int(getattr(loaded.config, "max_position_embeddings", 0) or self._tokenizer.model_max_length)
        self._longest = min(self._tokenizer.model_max_length, limit)

    def words(self, captions: Sequence[str]) -> list[_Words]:
        """Return the vectors of each caption's tokens; those after the model's limit are cut."""
        import torch

        found: dict[int, _Words] = {}
        order = sorted(range(len(captions)), key=lambda number: len(captions[number]))
        for first in range(0, len(order), self._batch_size):
            numbers = order[first : first + self._batch_size]
            tokens = self._tokenizer(
                [captions[number].strip() for number in numbers],
                padding=True,
                truncation=True,
                max_length=self._longest,
                return_special_tokens_mask=True,
                return_tensors="pt",
            ).to(self.device)
            with torch.inference_mode():
                states = self._model(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True
                ).hidden_states[self._layer]
            unit = torch.nn.functional.normalize(states, dim=-1)
            there, special = tokens["attention_mask"].bool(), tokens["special_tokens_mask"].bool()
            for row, number in enumerate(numbers):
                kept = there[row]
                found[number] = _Words(unit[row][kept], ~special[row][kept])
        return [found[number] for number in range(len(captions))]


def matched(candidate: _Words, reference: _Words) -> tuple[float, float, float]:
    """Return precision, recall and F of two captions: means of each word's best cosine (equations 2 and 3).

    As with the authors, marks of beginning and end may be what a word fits best, but do not count themselves, and a
    caption without words gets 0.
    """
    if not bool(candidate.are_words.any()) or not bool(reference.are_words.any()):
        return 0.0, 0.0, 0.0
    cosines = candidate.vectors @ reference.vectors.T
    precision = float(cosines.max(dim=1).values[candidate.are_words].mean())
    recall = float(cosines.max(dim=0).values[reference.are_words].mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0


def read_baseline(path: Path, layer: int) -> NDArray[np.float64]:
    """Return what precision, recall and F of unrelated texts come to: (3,) of a file of the authors' format.

    Raises:
        UserError: the file has no row for the layer, or its numbers are none below 1.
    """
    lines = read_text(path, "baseline of BERTScore").splitlines()
    rows = {row.get("LAYER"): row for row in csv.DictReader(lines)}
    try:
        values = np.array([float(rows[str(layer)][name]) for name in ("P", "R", "F")])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: no baseline of layer {layer} (columns LAYER, P, R, F, separated by commas); take the file of "
            f"this model from the authors' repository ({error})"
        ) from None
    if not all(math.isfinite(value) and value < 1 for value in values):
        raise UserError(f"{path}: the baseline of layer {layer} is {values.tolist()}; give numbers below 1")
    return values


class BertScoreOptions(MetricOptions):
    """Options of BERTScore."""

    model: Location = Field(DEFAULT_MODEL, description="folder or Hub id of a language model")
    num_layers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="whose layer's vectors are compared; default: the authors' choice for the models they tried"
    )
    baseline: LocalPath | Path | None = Field(
        None, description="the authors' file of this model to rescale with, rescale_baseline/LANGUAGE/MODEL.tsv"
    )
    device: str | None = Field(None, description="where the model runs; default: CUDA where there is one, else the CPU")
    batch_size: Annotated[int, Field(gt=0)] = Field(64, description="captions at a time")


class BertScore(CaptionMetric):
    """BERTScore without idf weights; of several human captions each value is that of the best one.

    Raw captions are compared, in float32. Values depend on the model and its layer; only those of one may be compared.

    Raises:
        UserError: nobody has chosen a layer of the model, or it cannot be loaded.
    """

    name = "bert_score"
    outputs = ("bert_score", "bert_score_precision", "bert_score_recall")
    summary = "BERTScore (Zhang et al. 2020): words matched by the vectors of a language model"
    citation = "Zhang et al. (2020): BERTScore: Evaluating Text Generation with BERT. ICLR"

    options_class = BertScoreOptions

    def __init__(self, options: BertScoreOptions | None = None) -> None:
        self._options = options or BertScoreOptions()
        name = Path(self._options.model).name
        layer = LAYERS.get(name) if self._options.num_layers is None else self._options.num_layers
        if layer is None:
            raise UserError(
                f"bert_score.num_layers: nobody has chosen a layer of {name}; give its number (the authors chose about "
                "two thirds of the layers)"
            )
        self._layer = layer
        self._baseline = np.zeros(3)
        if self._options.baseline is not None:
            self._baseline = read_baseline(Path(self._options.baseline), layer)

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return F, precision and recall of each image, (N, 3)."""
        options = self._options
        if captions.reference_set.words is not None and options.model == DEFAULT_MODEL:
            raise UserError(
                f"metric 'bert_score': {DEFAULT_MODEL} reads English; give bert_score.model a model of the captions' "
                "language, such as google-bert/bert-base-multilingual-cased"
            )
        encoder = WordEncoder(options.model, self._layer, options.device, options.batch_size)
        rows: list[NDArray[np.float64]] = []
        for first in range(0, len(captions), _IMAGES_AT_A_TIME):
            own = captions.candidates[first : first + _IMAGES_AT_A_TIME]
            human = captions.references[first : first + _IMAGES_AT_A_TIME]
            texts = list(dict.fromkeys([*own, *(text for group in human for text in group)]))
            words = dict(zip(texts, encoder.words(texts), strict=True))
            for text, group in zip(own, human, strict=True):
                each = np.array([matched(words[text], words[other]) for other in group])
                rows.append(((each - self._baseline) / (1 - self._baseline)).max(axis=0))
        precision, recall, score = np.array(rows).reshape(-1, 3).T
        return np.stack((score, precision, recall), axis=1)

    def signature(self) -> dict[str, Any]:
        """Return model (of a folder its name, and a hash of its weights), layer, idf, baseline and precision."""
        baseline = None if self._options.baseline is None else sha256_of(Path(self._options.baseline))[:16]
        return {
            **model_signature(self._options.model),
            "num_layers": self._layer,
            "idf": False,
            "baseline": baseline,
            "precision": "float32",
        }


REGISTERED = BertScore
