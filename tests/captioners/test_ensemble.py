"""Ensembles: choice against plain loops over pycocoevalcap's CIDEr-D and plain CLIP, members as they are alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModel

from hfcap.captioners.ensemble import Ensemble, EnsembleOptions
from hfcap.captioners.loading import load_captioner
from hfcap.captioners.published.modeling_ensemble import (
    EnsembleForImageCaptioning,
    EnsembleProcessor,
    expected_ciders,
    ngram_counts,
    pooled,
)
from hfcap.captioners.retrieval import Retrieval
from hfcap.errors import UserError
from hfcap.metrics.shared.consensus import Pool, ranked_by_consensus
from hfcap.metrics.shared.document_frequencies import count_document_frequencies
from hfcap.metrics.shared.tokenizer import tokenize
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.clip_folder import write_clip
from tests.captioners.helpers import CORPUS, build, fit, pixel_values, plain_processor, random_image
from tests.metrics.random_captions import random_captions
from tests.metrics.reference_cider import reference_cider

OPTIONS = GenerateOptions(num_beams=3, num_return_sequences=3, max_new_tokens=6)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Captioners of three families with a size of their own each, one of them with a prompt."""
    folder = tmp_path_factory.mktemp("somewhere")
    build("clip_prefix", seed=1).save(folder / "first", OPTIONS)
    build("vit_gpt2", seed=2, prompt="a picture of").save(folder / "second", OPTIONS)
    build("retrieval", seed=3).save(folder / "third", OPTIONS)
    (folder / "second" / "README.md").write_text("---\nlicense: mit\n---\n# second\n")
    return [str(folder / name) for name in ("first", "second", "third")]


def ensemble(members: list[str], weights: tuple[float, ...] = (1, 1, 1), **options: Any) -> Ensemble:
    listed = [{"model": model, "weight": weight} for model, weight in zip(members, weights, strict=True)]
    captioner = Ensemble.build(EnsembleOptions(members=listed, **{"candidates": 3, **options}), CORPUS)
    captioner.model.eval()
    fit(captioner, DOCUMENTS)
    return captioner


DOCUMENTS = list(random_captions(30, seed=4)[1].values())


SAMPLING = GenerateOptions(do_sample=True, num_beams=1, num_return_sequences=24, temperature=0.3, max_new_tokens=2)
"""Short captions of little chance: many of the samples are alike."""


def alone(members: list[str], count: int, options: GenerateOptions = OPTIONS) -> list[list[list[str]]]:
    """For each member and image its captions, by itself."""
    found = []
    for location in members:
        captioner = load_captioner(location)
        with torch.inference_mode():
            states = captioner.encode(pixel_values(captioner, count))
        found.append([[c.text for c in captions] for captions in captioner.caption_states(states, options)])
    return found


def spelled_plainly(text: str, known: dict[str, str]) -> str:
    """Put a made-up word for each word: random captioners say what the tokenisers cut differently."""
    words = [ngram[0] for ngram in ngram_counts(text).elements() if len(ngram) == 1]
    ordered = re.findall(r"\w+(?:-\w+)*", text.lower())
    assert sorted(words) == sorted(ordered)
    letters = "abcdefghijklmnop"
    return " ".join(
        known.setdefault(word, "w" + "".join(letters[int(digit, 16)] for digit in f"{len(known):x}"))
        for word in ordered
    )


@pytest.mark.parametrize("options", [OPTIONS, SAMPLING], ids=["beams", "samples"])
def test_consensus_is_that_of_pycocoevalcap_over_what_the_members_say_alone(
    members: list[str], options: GenerateOptions
) -> None:
    weights, count = (1.0, 2.0, 0.5), options.num_return_sequences
    captioner = ensemble(members, weights, candidates=count, beam_candidates=2)
    torch.manual_seed(5)
    by_member = alone(members, 3, options)
    beams = alone(members, 3, GenerateOptions(num_beams=2, num_return_sequences=2, max_new_tokens=2))
    torch.manual_seed(5)
    with torch.inference_mode():
        states = captioner.encode(pixel_values(captioner, 3))
        found = captioner.caption_states(states, options.model_copy(update={"num_return_sequences": 3}))
    if options.do_sample:
        assert any(len(set(texts)) < count for texts in by_member[0]), "no caption was drawn twice"
    known: dict[str, str] = {}
    documents = [[spelled_plainly(text, known) for text in group] for group in DOCUMENTS]
    for image, chosen in enumerate(found):
        # Every sample is a vote: one that was drawn twice counts twice.
        votes = [(text, w / count) for member, w in zip(by_member, weights, strict=True) for text in member[image]]
        # The best by beams stand for choice beside samples, and do not vote.
        more = [text for member in beams for text in member[image]] if options.do_sample else []
        spelled = {text: spelled_plainly(text, known) for text in [*(text for text, _ in votes), *more] if text}
        ciders = {
            (one, other): reference_cider(spelled[one], [spelled[other]], documents)
            for one in spelled
            for other in spelled
        }
        whole = sum(w for other, w in votes if other)
        expected = {one: sum(w * ciders[one, other] for other, w in votes if other) / whole for one in spelled}
        assert [c.score for c in chosen] == pytest.approx(sorted(expected.values(), reverse=True)[:3], abs=1e-5)
        assert all(c.score == pytest.approx(expected[c.text], abs=1e-5) for c in chosen)


def test_published_consensus_agrees_with_the_metric_package() -> None:
    """On captions without clitics both tokenisers see the same words."""
    training = {str(number): group for number, group in enumerate(DOCUMENTS)}
    frequencies = count_document_frequencies(training, "training")
    captioner = build("ensemble")
    assert isinstance(captioner, Ensemble)
    fit(captioner, DOCUMENTS)
    for group in random_captions(12, seed=8)[1].values():
        captions, mass = pooled([[group]], [1.0])
        assert all(
            sum(ngram_counts(text).values()) == sum(max(len(tokenize(text)) - n, 0) for n in range(4))
            for text in captions
        )
        [ranked] = ranked_by_consensus([Pool(tuple(captions), tuple(mass))], frequencies)
        idf = captioner.model._idf({ngram for text in captions for ngram in ngram_counts(text)})
        found = dict(zip(captions, expected_ciders(captions, mass, idf), strict=True))
        assert found == pytest.approx({item.caption: item.expected_cider for item in ranked}, abs=1e-5)


def test_reload_is_bit_equal_and_tells_no_place(members: list[str], tmp_path: Path) -> None:
    captioner = ensemble(members)
    captioner.save(tmp_path / "model", OPTIONS)
    again = load_captioner(str(tmp_path / "model"))
    state = captioner.model.state_dict()
    assert again.model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())
    pixels = pixel_values(captioner, 3)
    assert torch.equal(pixel_values(again, 3), pixels)
    with torch.inference_mode():
        ours, theirs = (c.caption_states(c.encode(pixels), OPTIONS) for c in (captioner, again))
    assert ours == theirs
    for path in (tmp_path / "model").rglob("*"):
        assert not path.is_file() or b"somewhere" not in path.read_bytes(), path


def test_clip_chooses_the_caption_nearest_to_the_image(members: list[str], tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip")
    captioner = ensemble(members, choice="clip", clip=clip)
    captioner.save(tmp_path / "model", OPTIONS)
    model, processor = AutoModel.from_pretrained(clip), plain_processor(clip)
    by_member = alone(members, 3)
    for loaded in (captioner, load_captioner(str(tmp_path / "model"))):
        with torch.inference_mode():
            found = loaded.caption_states(loaded.encode(pixel_values(loaded, 3)), OPTIONS)
        for image, chosen in enumerate(found):
            texts = list(dict.fromkeys(text for member in by_member for text in member[image] if text))
            inputs = processor(
                text=texts,
                images=[random_image(image)],
                padding=True,
                truncation=True,
                max_length=24,
                return_tensors="pt",
            )
            with torch.inference_mode():
                cosines = (model(**inputs).logits_per_image / model.logit_scale.exp())[0]
            best = cosines.argsort(descending=True)[:3].tolist()
            assert [c.text for c in chosen] == [texts[number] for number in best]
            assert [c.score for c in chosen] == pytest.approx(cosines[best].tolist(), abs=1e-4)


def test_card_facts_of_members(members: list[str]) -> None:
    facts = ensemble(members).fitted_facts()["members"]
    assert [row["captioner"] for row in facts] == ["clip_prefix", "vit_gpt2", "retrieval"]
    assert [row["name"] for row in facts] == ["first", "second", "third"]
    assert [row["license"] for row in facts] == [None, "mit", None]


def test_a_member_that_needs_its_own_processor_is_named(members: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = ensemble(members)
    assert "unpublishable" not in captioner.sidecar()
    monkeypatch.setattr(Retrieval, "captions_from_pixels", False)
    assert "member 2 (retrieval, RetrievalForImageCaptioning)" in captioner.sidecar()["unpublishable"]


# ---- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of pretrained and members"),
        ({"members": [{"model": "a"}]}, "at least two"),
        ({"members": [{"model": "a"}, {"model": "b"}], "choice": "clip"}, "needs the key clip"),
        ({"members": [{"model": "a"}, {"model": "b"}], "clip": "c"}, "needs choice: clip"),
        ({"members": [{"model": "a"}, {"model": "b"}], "prompt": "a"}, "leave prompt empty"),
        ({"members": [{"model": "a"}, {"model": "b", "weight": 0}]}, "greater than 0"),
        ({"members": [{"model": "a"}, {"modle": "b"}]}, "Extra inputs"),
    ],
)
def test_options_that_do_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EnsembleOptions(**values)


def test_a_member_that_is_not_there(members: list[str]) -> None:
    with pytest.raises(UserError, match=r"model\.members: \./gone: .*no such folder"):
        ensemble([members[0], "./gone"], (1, 1))


def test_a_member_folder_outside_is_refused(members: list[str], tmp_path: Path) -> None:
    captioner = ensemble(members)
    captioner.save(tmp_path / "model", OPTIONS)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    shutil.copytree(members[0], tmp_path / "elsewhere")
    config["members"][0]["folder"] = "../elsewhere"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"names a member folder '\.\./elsewhere'"):
        load_captioner(str(tmp_path / "model"))
    for published in (EnsembleForImageCaptioning, EnsembleProcessor):
        with pytest.raises(ValueError, match=r"names a member folder '\.\./elsewhere'"):
            published.from_pretrained(str(tmp_path / "model"))


def test_a_prompt_is_refused(members: list[str]) -> None:
    captioner = ensemble(members)
    with pytest.raises(UserError, match="prompt: an ensemble takes none"):
        captioner.caption_states(captioner.encode(pixel_values(captioner, 1)), OPTIONS, "a photo of")
