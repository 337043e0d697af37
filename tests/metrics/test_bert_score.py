"""BERTScore with a tiny random BERT against the sums written out from the paper's equations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.bert_score import DEFAULT_MODEL, LAYERS, BertScore
from hfcap.metrics.suite import CaptionSuite, build_metric

torch = pytest.importorskip("torch")

WORDS = ["a", "man", "dog", "cat", "red", "car", "street", "on", "the", "runs", "sleeps", "two", "##s"]
CANDIDATES = {"1": "man a dog", "2": "two cats", "3": "a red car on the street", "4": "", "5": "the dog"}
REFERENCES = {
    "1": ["a man sleeps on the street", "the man runs"],
    "2": ["two cats sleeps", "two dogs", "a cat"],
    "3": ["the red car"],
    "4": ["a dog"],
    "5": ["", "the dog"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("bert")
    marks = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    vocabulary = {word: number for number, word in enumerate([*marks, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=12,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(path)
    return str(path)


def by_hand(folder: str, candidate: str, reference: str, layer: int) -> tuple[float, float, float]:
    """Precision, recall and F: one text at a time, no padding, token by token."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def vectors(text: str) -> list[np.ndarray]:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[layer][0]
        return [(row / row.norm()).double().numpy() for row in states]

    ours, theirs = vectors(candidate), vectors(reference)
    if len(ours) == 2 or len(theirs) == 2:  # nothing but the marks of beginning and end
        return 0.0, 0.0, 0.0
    precision = np.mean([max(float(x @ y) for y in theirs) for x in ours[1:-1]])
    recall = np.mean([max(float(x @ y) for x in ours) for y in theirs[1:-1]])
    return float(precision), float(recall), float(2 * precision * recall / (precision + recall))


def best(folder: str, image: str, layer: int) -> list[float]:
    each = [by_hand(folder, CANDIDATES[image], reference, layer) for reference in REFERENCES[image]]
    precision, recall, score = (max(column) for column in zip(*each, strict=True))
    return [score, precision, recall]


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_values_are_the_paper_s(folder: str, layer: int, batch_size: int) -> None:
    metric = build_metric("bert_score", {"model": folder, "num_layers": layer, "batch_size": batch_size})
    found = metric.statistics(CaptionSet(CANDIDATES, ReferenceSet(REFERENCES)))
    expected = [best(folder, image, layer) for image in CANDIDATES]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert found[3].tolist() == [0, 0, 0] and found[4, 0] == pytest.approx(1, abs=1e-6)
    assert len(np.unique(found[:3].round(3))) >= 7


def test_a_long_caption_is_cut_at_the_model_s_positions(folder: str) -> None:
    metric = build_metric("bert_score", {"model": folder, "num_layers": 1})
    long = {"1": "a man " * 40}
    found = metric.statistics(CaptionSet(long, ReferenceSet({"1": ["a man " * 5]})))
    assert found[0, 0] == pytest.approx(1, abs=1e-6)  # twelve positions: ten words and two marks


def test_rescaling_with_the_authors_file(folder: str, tmp_path: Path) -> None:
    """(x - b) / (1 - b) for each of the three, with the row of the layer."""
    file = tmp_path / "model.tsv"
    file.write_text("LAYER,P,R,F\n1,0.9,0.9,0.9\n2,0.25,0.5,-0.1\n")
    captions = CaptionSet(CANDIDATES, ReferenceSet(REFERENCES))
    plain = build_metric("bert_score", {"model": folder, "num_layers": 2}).statistics(captions)
    metric = build_metric("bert_score", {"model": folder, "num_layers": 2, "baseline": file})
    baseline = np.array([-0.1, 0.25, 0.5])
    np.testing.assert_allclose(metric.statistics(captions), (plain - baseline) / (1 - baseline), rtol=1e-6, atol=1e-9)
    assert metric.signature()["baseline"] is not None and metric.signature()["weights"]


def test_the_signature_says_what_values_depend_on(folder: str) -> None:
    suite = CaptionSuite(["bert_score"], options={"bert_score": {"model": folder, "num_layers": 2}})
    result = suite.compute(CANDIDATES, REFERENCES)
    assert set(result.values) == {"bert_score", "bert_score_precision", "bert_score_recall"}
    signature = suite.signature()["metrics"]["bert_score"]
    assert signature["num_layers"] == 2 and signature["idf"] is False and signature["baseline"] is None
    assert signature["model"] == Path(folder).name and len(signature["weights"]) == 16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "FOLDER"}, r"^bert_score\.num_layers: nobody has chosen a layer of"),
        ({"model": "FOLDER", "num_layers": 4}, r"^bert_score\.num_layers: .* has 3 layers, not 4"),
        ({"model": "nowhere/at-all/x", "num_layers": 1}, "the language model of metric 'bert_score' cannot be loaded"),
        ({"model": "FOLDER", "num_layers": 1, "baseline": "missing.tsv"}, r"missing\.tsv"),
        ({"model": "FOLDER", "num_layers": 3, "baseline": "FILE"}, r"no baseline of layer 3"),
        ({"model": "FOLDER", "num_layers": 1, "baseline": "FILE"}, r"the baseline of layer 1 is .* numbers below 1"),
    ],
)
def test_wrong_options_are_one_message(folder: str, tmp_path: Path, options: dict[str, object], said: str) -> None:
    file = tmp_path / "b.tsv"
    file.write_text("LAYER,P,R,F\n1,1.0,nan,0.5\n")
    given = {key: {"FOLDER": folder, "FILE": str(file)}.get(str(value), value) for key, value in options.items()}
    with pytest.raises(UserError, match=said):
        build_metric("bert_score", given).statistics(CaptionSet(CANDIDATES, ReferenceSet(REFERENCES)))


def test_the_english_model_is_refused_for_other_languages() -> None:
    suite = CaptionSuite(["bert_score"], language="de")
    with pytest.raises(UserError, match=r"roberta-large reads English; give bert_score\.model"):
        suite.compute({"1": "ein Hund"}, {"1": ["der Hund"]})
    assert Path(DEFAULT_MODEL).name in LAYERS and BertScore().signature()["num_layers"] == 17
