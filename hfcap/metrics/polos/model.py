"""The parts of Polos (Wada et al. 2024, arXiv:2402.18091): RoBERTa's layers mixed to one vector, and the trained head.

Features and head are those of the authors' `PolosEstimator`, the mixture of layers is COMET's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from hfcap.errors import UserError
from hfcap.metrics.shared.models import loading

HEAD_FILE, TEXT_FOLDER, CLIP_FOLDER = "polos.safetensors", "text", "clip"
"""What `scripts/convert_polos.py` writes: the head with the weights of the layers, RoBERTa, and CLIP."""

N_LINEAR = 3
_SMALLEST_VARIANCE = 1e-12

Floats = NDArray[np.float32]


def head_shapes(n_states: int, text_size: int, clip_size: int, hidden: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of the head's file.

    Args:
        n_states: outputs of RoBERTa that are mixed: its embeddings and its layers.
        text_size: D of RoBERTa's vectors. clip_size: of CLIP's.
        hidden: widths of the two hidden layers.
    """
    sizes = [4 * text_size + 6 * clip_size, *hidden, 1]
    shapes: dict[str, tuple[int, ...]] = {"mix.weights": (n_states,), "mix.gamma": (1,)}
    for number, (into, out) in enumerate(pairwise(sizes), start=1):
        shapes |= {f"linear_{number}.weight": (out, into), f"linear_{number}.bias": (out,)}
    return shapes


@dataclass(frozen=True)
class Sentences:
    """What RoBERTa says of T texts, in L outputs of D numbers a token.

    Attributes:
        first: (T, L, D) vectors of the first token.
        sums: (T, L) sums of all numbers of a text's tokens, float64.
        squares: (T, L) sums of their squares.
        counts: (T,) how many numbers these are: tokens times D.
    """

    first: Floats
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    counts: NDArray[np.int64]


class SentenceEncoder:
    """RoBERTa with the outputs of all its layers, in float32.

    Args:
        folder: model and tokenizer.
        device: where it runs; None = CUDA where there is one, else the CPU.
        batch_size: texts at a time.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(self, folder: Path, device: str | None, batch_size: int) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        with loading(str(folder), "the language model of metric 'polos'"):
            loaded: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = loaded.to(self.device).eval()
        self._batch_size = batch_size
        config = loaded.config
        self.n_states, self.size = int(config.num_hidden_layers) + 1, int(config.hidden_size)
        # RoBERTa numbers positions from the padding token's number on: 514 of them are for 512 tokens.
        own = int(config.max_position_embeddings) - (int(config.pad_token_id or 0) + 1)
        self._longest = min(int(self._tokenizer.model_max_length), own)

    def encoded(self, texts: Sequence[str]) -> Sentences:
        """Return what is said of texts; their tokens after the model's limit are cut."""
        import torch

        n_texts = len(texts)
        first = np.zeros((n_texts, self.n_states, self.size), dtype=np.float32)
        sums, squares = np.zeros((n_texts, self.n_states)), np.zeros((n_texts, self.n_states))
        counts = np.zeros(n_texts, dtype=np.int64)
        order = sorted(range(n_texts), key=lambda number: len(texts[number]))
        for start in range(0, n_texts, self._batch_size):
            numbers = order[start : start + self._batch_size]
            tokens = self._tokenizer(
                [texts[number] for number in numbers],
                padding=True,
                truncation=True,
                max_length=self._longest,
                return_tensors="pt",
            ).to(self.device)
            mask = tokens["attention_mask"]
            with torch.inference_mode():
                states = self._model(
                    input_ids=tokens["input_ids"], attention_mask=mask, output_hidden_states=True
                ).hidden_states
                for layer, state in enumerate(states):
                    there = state.double() * mask[..., None]
                    first[numbers, layer] = state[:, 0].cpu().numpy()
                    sums[numbers, layer] = there.sum(dim=(1, 2)).cpu().numpy()
                    squares[numbers, layer] = there.square().sum(dim=(1, 2)).cpu().numpy()
            counts[numbers] = mask.sum(dim=1).cpu().numpy() * self.size
        return Sentences(first, sums, squares, counts)


class Head:
    """The mixture of RoBERTa's layers, and the perceptron over the features of caption, human caption and image.

    Args:
        folder: holds HEAD_FILE.
        text_size, clip_size, n_states: see `head_shapes`.

    Raises:
        UserError: the file is missing, damaged or of another layout.
    """

    def __init__(self, folder: Path, n_states: int, text_size: int, clip_size: int, device: str | None) -> None:
        import torch
        from safetensors.torch import load_file

        path = folder / HEAD_FILE
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({error}); write the folder with convert_polos.py again") from None
        hidden = [len(tensors.get(f"linear_{number}.bias", ())) for number in range(1, N_LINEAR)]
        expected = head_shapes(n_states, text_size, clip_size, hidden)
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        if wrong:
            raise UserError(
                f"{path}: {wrong[0]} is {given.get(wrong[0], 'missing')}, and the RoBERTa and CLIP next to it need "
                f"{expected.get(wrong[0], 'none')}; write the folder with convert_polos.py again"
            )
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._tensors = {name: tensor.float().to(self._device) for name, tensor in tensors.items()}
        weights = torch.softmax(self._tensors["mix.weights"], dim=0).cpu().numpy()
        self._layer_weights: Floats = weights
        self._gamma = float(self._tensors["mix.gamma"])

    def mixed(self, sentences: Sentences, numbers: NDArray[np.int64], groups: NDArray[np.int64]) -> Floats:
        """Return the vectors of P texts, (P, D): their first tokens, the layers normalised and mixed.

        A layer is normalised by mean and variance of all numbers of all tokens of a group, as COMET's mixture does with
        those of a batch.

        Args:
            numbers: (P,) which of the sentences. groups: (P,) the group of each, from 0 on.
        """
        shape = (int(groups.max()) + 1, len(self._layer_weights)) if len(groups) else (0, len(self._layer_weights))
        sums, squares = np.zeros(shape), np.zeros(shape)
        np.add.at(sums, groups, sentences.sums[numbers])
        np.add.at(squares, groups, sentences.squares[numbers])
        counts = np.bincount(groups, weights=sentences.counts[numbers], minlength=shape[0])[:, None]
        means = sums / counts
        deviations = np.sqrt(np.maximum(squares / counts - means**2, 0.0) + _SMALLEST_VARIANCE)
        result = np.zeros((len(numbers), sentences.first.shape[2]), dtype=np.float64)
        for layer, weight in enumerate(self._layer_weights.astype(np.float64)):
            mean, deviation = means[groups, layer, None], deviations[groups, layer, None]
            result += weight * (sentences.first[numbers, layer] - mean) / deviation
        return (self._gamma * result).astype(np.float32)

    def scores(self, texts: tuple[Floats, Floats], clips: tuple[Floats, Floats], images: Floats) -> NDArray[np.float64]:
        """Return the scores of P pairs of a candidate and a human caption, (P,) from 0 to 1 (the paper's section 4).

        Args:
            texts: RoBERTa's vectors of the candidates and of the human captions, (P, D) each.
            clips: CLIP's of the same, (P, E) each. images: CLIP's of their images, (P, E).
        """
        import torch

        own, human = (torch.from_numpy(each).to(self._device) for each in texts)
        own_clip, human_clip, image = (torch.from_numpy(each).to(self._device) for each in (*clips, images))
        features = [
            *(human, own, (own - human).abs(), own * human),
            *(image, own_clip, (image - own_clip).abs(), image * own_clip),
            *((human_clip - own_clip).abs(), human_clip * own_clip),
        ]
        with torch.inference_mode():
            found = torch.cat(features, dim=1)
            for number in range(1, N_LINEAR + 1):
                weight, bias = (self._tensors[f"linear_{number}.{kind}"] for kind in ("weight", "bias"))
                found = torch.nn.functional.linear(found, weight, bias)
                found = torch.tanh(found) if number < N_LINEAR else torch.sigmoid(found)
        return np.asarray(found[:, 0].double().cpu().numpy())
