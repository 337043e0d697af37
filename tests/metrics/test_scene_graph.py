"""Scene graphs: hand-written texts of the parser with values counted by hand, and a tiny random T5 for the plumbing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.scene_graph import SceneGraph
from hfcap.metrics.scene_graph.graphs import Graph, Synonyms, agreement, graph_of_texts, matched, same
from hfcap.metrics.scene_graph.parser import PROMPT, GraphParser, PhraseEncoder, sentences
from hfcap.metrics.suite import build_metric

torch = pytest.importorskip("torch")


def test_graphs_of_texts() -> None:
    text = "( man , hold , red cup ) , ( cup , is , red ) , ( cup , is , 2 ) , ( Man , is , tall ) , ( dog , run"
    graph = graph_of_texts([text, "( dog )", "( cup , is , red ) , ( broken ) , ( a , b , c , d )", ""])
    assert graph.objects == ((("cup",),), (("dog",),), (("man",),), (("red", "cup"),))
    assert graph.attributes == ((("red",),), (("tall",),))
    assert graph.relations == ((("man",), ("hold",), ("red", "cup")),)


@pytest.mark.parametrize("text", ["( cat )", "( cat , is", "cat", "( cat , is )"])
def test_a_single_broken_fact_is_an_object(text: str) -> None:
    assert graph_of_texts([text]) == Graph(objects=((("cat",),),))


@pytest.fixture(scope="module")
def synonyms() -> Synonyms:
    pytest.importorskip("pycocoevalcap")
    return Synonyms()


@pytest.mark.parametrize(
    ("first", "second", "equal", "alike"),
    [
        ("dogs", "dog", True, True),
        ("couch", "sofa", False, True),
        ("children", "kids", False, True),  # an irregular plural
        ("wooden table", "table", False, True),  # all words of the other
        ("man", "woman", False, False),  # CAPTURE's own code finds one inside the other
        ("little dog", "small dog", False, True),
        ("cat", "table", False, False),
    ],
)
def test_phrases_that_mean_the_same(first: str, second: str, equal: bool, alike: bool, synonyms: Synonyms) -> None:
    one, other = tuple(first.split()), tuple(second.split())
    assert same(one, other) is equal and synonyms(one, other) is alike and synonyms(other, one) is alike


CANDIDATE = "( man , sit on , couch ) , ( couch , is , red ) , ( man , is , old ) , ( cat , sleep , floor )"
REFERENCE = "( man , sit on , sofa ) , ( sofa , is , red ) , ( dog , lie on , carpet )"


def test_agreement_is_counted_by_hand(synonyms: Synonyms) -> None:
    """Objects man, couch, cat, floor / man, sofa, dog, carpet; attributes red, old / red; two relations each."""
    own, human = graph_of_texts([CANDIDATE]), graph_of_texts([REFERENCE])
    exact = agreement(own, human, None)
    # man; red; nothing.
    f_attribute = 2 * 0.5 * 1 / 1.5
    expected = [(0.5 * 0.25 + 0.5 * f_attribute) / 1.2, 1 / 4, 1 / 4, 1 / 4, 1 / 2, 1, f_attribute, 0, 0, 0]
    assert exact == pytest.approx(expected)
    with_synonyms = agreement(own, human, synonyms)
    # couch is a sofa, in the relation too.
    expected = [(0.5 * 0.5 + 0.5 * f_attribute + 0.2 * 0.5) / 1.2, 0.5, 0.5, 0.5, 0.5, 1, f_attribute, 0.5, 0.5, 0.5]
    assert with_synonyms == pytest.approx(expected)


def test_soft_matches_count_what_is_left(synonyms: Synonyms) -> None:
    def similar(first: object, second: object) -> np.ndarray:
        assert (first, second) == ([(("cat",),), (("floor",),)], [(("carpet",),), (("dog",),)])
        return np.array([[0.1, 0.6], [0.7, 0.2]])

    own, human = graph_of_texts([CANDIDATE]).objects, graph_of_texts([REFERENCE]).objects
    assert matched(own, human, synonyms, similar) == pytest.approx((2 + 0.6 + 0.7, 2 + 0.7 + 0.6))
    assert matched(own, own, synonyms, similar) == (4, 4)


def test_nothing_to_match_is_zero() -> None:
    assert agreement(Graph(), Graph(), None).tolist() == [0.0] * 10


def test_sentences() -> None:
    assert sentences(" A dog. It runs!  Why? 3.5 m long") == ["A dog.", "It runs!", "Why?", "3.5 m long"]
    assert sentences("  ") == []


WORDS = ["Generate", "Scene", "Graph", ":", "a", "dog", "cat", "red", "on", "sofa", "sleeps", "(", ")", ",", "is", "."]


def tokenizer_of(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("parser")
    tokenizer_of(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=3 + len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, initializer_factor=3.0,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    config.decoder_start_token_id = 0
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


LINES = ["a dog sleeps on a sofa.", "a red cat.", "a cat on a red sofa is red."]


def test_the_parser_writes_what_the_model_writes_for_each_sentence_alone(parser: str) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    found = GraphParser(parser, device="cpu", batch_size=2).texts([*LINES, LINES[0]])
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(parser), AutoTokenizer.from_pretrained(parser)
    for line in LINES:
        ids = tokenizer(f"Generate Scene Graph: {line}", return_tensors="pt")["input_ids"]
        written = model.generate(input_ids=ids, num_beams=5, max_length=128, early_stopping=True)
        assert found[line] == tokenizer.decode(written[0], skip_special_tokens=True)
    assert len(set(found)) == 3 and PROMPT == "Generate Scene Graph: "


def test_the_metric_joins_sentences_and_takes_means_over_references(
    parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = {"x.": "( dog , on , sofa )", "y.": "( sofa , is , red )", "one": CANDIDATE, "two": "( dog , is , red )"}
    monkeypatch.setattr(GraphParser, "texts", lambda self, lines: {line: graphs[line] for line in lines})
    captions = CaptionSet({"1": "x. y."}, ReferenceSet({"1": ["one", "two"]}))
    own, parts = graph_of_texts([graphs["x."], graphs["y."]]), [graph_of_texts([graphs[key]]) for key in ("one", "two")]
    metric = build_metric("scene_graph", {"model": parser, "synonyms": False})
    each = [agreement(own, part, None) for part in parts]
    assert metric.statistics(captions) == pytest.approx(np.mean(each, axis=0)[None])
    merged = build_metric("scene_graph", {"model": parser, "synonyms": False, "merge_references": True})
    both = agreement(own, graph_of_texts([graphs["one"], graphs["two"]]), None)
    assert merged.statistics(captions) == pytest.approx(both[None])
    assert metric.is_mean and len(SceneGraph.outputs) == 10


def test_from_captions_to_values_with_an_encoder(parser: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

    tokenizer_of(tmp_path)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=3 + len(WORDS),
        initializer_range=0.5,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(tmp_path)
    encoder = PhraseEncoder(str(tmp_path), "cpu")
    phrases = [(("red", "dog"),), (("cat",), ("on",), ("sofa",))]
    model, tokenizer = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    vectors = []
    for text in ("red dog", "cat on sofa"):
        with torch.no_grad():
            vectors.append(
                model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0].mean(0)
            )
    expected = torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0).item()
    assert encoder.similarities(phrases[:1], phrases[1:])[0, 0] == pytest.approx(expected, abs=1e-6)
    options = {"model": parser, "encoder": str(tmp_path), "synonyms": False, "device": "cpu"}
    metric = build_metric("scene_graph", options)
    captions = CaptionSet({"1": LINES[0], "2": ""}, ReferenceSet({"1": LINES[:2], "2": LINES[2:]}))
    rows = metric.statistics(captions)
    assert rows.shape == (2, 10) and np.isfinite(rows).all() and (rows[1] == 0).all()
    signed = metric.signature()
    assert (
        signed["model"] == Path(parser).name and len(signed["weights"]) == 16 and len(signed["encoder_weights"]) == 16
    )
    assert signed["synonyms"] is None and signed["references"] == "mean" and signed["revision"] is None


def test_a_missing_parser_is_named(tmp_path: Path) -> None:
    metric = build_metric("scene_graph", {"model": str(tmp_path / "nowhere"), "synonyms": False})
    with pytest.raises(UserError, match="the parser of metric 'scene_graph' cannot be loaded"):
        metric.statistics(CaptionSet({"1": "a"}, ReferenceSet({"1": ["a"]})))
