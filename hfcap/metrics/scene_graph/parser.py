"""The models of the scene-graph metric: FACTUAL's parser (a T5), and an encoder for soft matches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.scene_graph.graphs import Element
from hfcap.metrics.shared.models import loading

PROMPT = "Generate Scene Graph: "
"""In front of every sentence, as FACTUAL was trained."""

MAX_INPUT, MAX_OUTPUT, NUM_BEAMS = 64, 128, 5
"""Tokens of a sentence and of its graph, and beams: those of the authors' code."""


def sentences(caption: str) -> list[str]:
    """Return the sentences of a caption, which the parser reads one by one."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", caption.strip()) if part.strip()]


class GraphParser:
    """A sequence-to-sequence model that writes the scene graph of a sentence, in float32.

    Args:
        model: folder or Hub id. revision: of the latter.

    Raises:
        UserError: the model cannot be loaded. WorkError: the Hub cannot be reached.
    """

    def __init__(
        self, model: str, revision: str | None = None, device: str | None = None, batch_size: int = 32
    ) -> None:
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        with loading(model, "the parser of metric 'scene_graph'"):
            loaded: Any = AutoModelForSeq2SeqLM.from_pretrained(
                model, revision=revision, dtype=torch.float32, use_safetensors=True
            )
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, revision=revision)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model, self._batch_size = loaded.to(self.device).eval(), batch_size

    def texts(self, lines: Iterable[str]) -> dict[str, str]:
        """Return sentence -> the text of its graph."""
        import torch

        ordered = sorted(dict.fromkeys(lines), key=len)
        found: dict[str, str] = {}
        for first in range(0, len(ordered), self._batch_size):
            batch = ordered[first : first + self._batch_size]
            tokens = self._tokenizer(
                [PROMPT + line for line in batch],
                max_length=MAX_INPUT,
                truncation=True,
                padding=True,
                return_tensors="pt",
            ).to(self.device)
            with torch.inference_mode():
                written = self._model.generate(
                    input_ids=tokens["input_ids"],
                    attention_mask=tokens["attention_mask"],
                    num_beams=NUM_BEAMS,
                    early_stopping=True,
                    do_sample=False,
                    max_length=MAX_OUTPUT,
                )
            found |= zip(batch, self._tokenizer.batch_decode(written, skip_special_tokens=True), strict=True)
        return found


class PhraseEncoder:
    """Unit vectors of phrases: the mean of a sentence encoder's last states, in float32.

    Raises:
        UserError: the model cannot be loaded. WorkError: the Hub cannot be reached.
    """

    def __init__(self, model: str, device: str | None = None) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        with loading(model, "the encoder of metric 'scene_graph'"):
            loaded: Any = AutoModel.from_pretrained(model, dtype=torch.float32, use_safetensors=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = loaded.to(self.device).eval()
        self._known: dict[str, NDArray[np.float64]] = {}

    def similarities(self, first: Sequence[Element], second: Sequence[Element]) -> NDArray[np.float64]:
        """Return the cosines of two lists of elements, (C, R)."""
        texts = [" ".join(" ".join(phrase) for phrase in element) for element in (*first, *second)]
        self._encode([text for text in dict.fromkeys(texts) if text not in self._known])
        vectors = np.stack([self._known[text] for text in texts])
        return vectors[: len(first)] @ vectors[len(first) :].T

    def _encode(self, texts: Sequence[str]) -> None:
        import torch

        if not texts:
            return
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            states = self._model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(dim=1) / mask.sum(dim=1)
        unit = torch.nn.functional.normalize(means, dim=-1).double().cpu().numpy()
        self._known |= zip(texts, unit, strict=True)
