"""Objects, attributes and relations of captions, read by FACTUAL's parser and matched as CAPTURE matches them."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfcap.metrics.base import CaptionMetric, CaptionSet, MetricOptions
from hfcap.metrics.scene_graph.graphs import Graph, Synonyms, agreement, graph_of_texts
from hfcap.metrics.scene_graph.parser import MAX_INPUT, MAX_OUTPUT, NUM_BEAMS, GraphParser, PhraseEncoder, sentences
from hfcap.metrics.shared.models import model_signature
from hfcap.places import Location

DEFAULT_PARSER = "lizhuang144/flan-t5-base-VG-factual-sg"
"""The parser that CAPTURE uses."""


class SceneGraphOptions(MetricOptions):
    """Options of the scene-graph metric."""

    model: Location = Field(DEFAULT_PARSER, description="folder or Hub id of FACTUAL's parser")
    revision: str | None = Field(None, description="commit, branch or tag of a parser on the Hub; default: the newest")
    synonyms: bool = Field(True, description="WordNet's synonyms match (pycocoevalcap); otherwise equal words alone")
    encoder: Location | None = Field(
        None, description="sentence encoder for soft matches, such as sentence-transformers/all-mpnet-base-v2"
    )
    merge_references: bool = Field(
        False, description="the human captions of an image are one graph; otherwise values are means over them"
    )
    device: str | None = Field(None, description="where the models run; default: CUDA where there is one, else the CPU")
    batch_size: Annotated[int, Field(gt=0)] = Field(32, description="sentences at a time")


class SceneGraph(CaptionMetric):
    """Precision, recall and F of objects, attributes and relations, and CAPTURE's weighted mean of the three F.

    Raises:
        UserError: a model cannot be loaded, or the package with WordNet's synonyms is missing.
    """

    name = "scene_graph"
    outputs = (
        "graph_score",
        *(
            f"{kind}_{value}"
            for kind in ("graph_object", "graph_attribute", "graph_relation")
            for value in ("precision", "recall", "f1")
        ),
    )
    english_only = True
    summary = "objects, attributes and relations by FACTUAL's parser, matched as in CAPTURE (Dong et al. 2024)"
    citation = (
        "Li et al. (2023): FACTUAL: A Benchmark for Faithful and Consistent Textual Scene Graph Parsing. ACL Findings; "
        "Dong et al. (2024): Benchmarking and Improving Detail Image Caption"
    )

    options_class = SceneGraphOptions

    def __init__(self, options: SceneGraphOptions | None = None) -> None:
        self._options = options or SceneGraphOptions()
        self._alike = Synonyms() if self._options.synonyms else None

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return the ten values of each image, (N, 10)."""
        options = self._options
        parser = GraphParser(options.model, options.revision, options.device, options.batch_size)
        everything = [*captions.candidates, *(text for group in captions.references for text in group)]
        written = parser.texts(line for text in everything for line in sentences(text))
        encoder = None if options.encoder is None else PhraseEncoder(options.encoder, options.device)
        similar = None if encoder is None else encoder.similarities

        def graph_of(texts: tuple[str, ...]) -> Graph:
            return graph_of_texts(written[line] for text in texts for line in sentences(text))

        rows = []
        for candidate, group in zip(captions.candidates, captions.references, strict=True):
            own = graph_of((candidate,))
            human = [group] if options.merge_references else [(text,) for text in group]
            rows.append(np.mean([agreement(own, graph_of(texts), self._alike, similar) for texts in human], axis=0))
        return np.stack(rows)

    def signature(self) -> dict[str, Any]:
        """Return the models, of folders with hashes of their weights, and how graphs are matched."""
        options = self._options
        encoder = {} if options.encoder is None else model_signature(options.encoder)
        return {
            **model_signature(options.model),
            "revision": options.revision,
            "synonyms": "WordNet of METEOR 1.5" if options.synonyms else None,
            "encoder": encoder.get("model"),
            **({"encoder_weights": encoder["weights"]} if "weights" in encoder else {}),
            "references": "merged" if options.merge_references else "mean",
            "decoding": f"{NUM_BEAMS} beams, {MAX_INPUT} to {MAX_OUTPUT} tokens",
            "precision": "float32",
        }


REGISTERED = SceneGraph
