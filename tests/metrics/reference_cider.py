"""CIDEr-D of pycocoevalcap with document frequencies from elsewhere: the independent side of consensus tests."""

from __future__ import annotations

from collections.abc import Sequence

from pycocoevalcap.cider.cider_scorer import CiderScorer

from hfcap.metrics.shared.tokenizer import tokenize


def reference_cider(candidate: str, references: Sequence[str], documents: Sequence[Sequence[str]]) -> float:
    """Score one caption against `references`; document frequencies are counted in the groups of `documents`."""
    counted = CiderScorer()
    for group in documents:
        counted += ("", [" ".join(tokenize(text)) for text in group])
    counted.compute_doc_freq()
    scorer = CiderScorer(test=" ".join(tokenize(candidate)), refs=[" ".join(tokenize(text)) for text in references])
    scorer.document_frequency = counted.document_frequency
    # It takes the number of documents from the number of images it holds references of.
    scorer.crefs += counted.crefs[1:]
    [score] = scorer.compute_cider()
    return float(score)
