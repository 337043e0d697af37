"""Retrieval captioners against pycocoevalcap's CIDEr-D, plain loops over cosines, and plain transformers' CLIP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModel

from hfcap.captioners.loading import load_captioner
from hfcap.captioners.published.modeling_retrieval import RetrievalConfig
from hfcap.captioners.retrieval import Retrieval, RetrievalOptions
from hfcap.captioners.shared import dual_encoder
from hfcap.captioners.shared.dual_encoder import DualEncoder
from hfcap.captioners.shared.nonparametric import FittingData
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.loading import RecipeError, recipe_from_mapping
from hfcap.schema import CaptionedImage
from tests.captioners.clip_folder import write_clip
from tests.captioners.helpers import MemoryImage, build, fit, pixel_values, plain_processor, random_image
from tests.metrics.reference_cider import reference_cider
from tests.training.harness import recipe_values

WORDS = [*"aaa", "the", "red", "blue", "dog", "cat", "sits", "runs", "on", "over", "green", "grass", ".", ",", "mat's"]


def random_groups(n_images: int, seed: int, per_image: int = 3) -> list[list[str]]:
    draw = np.random.default_rng(seed)
    return [
        [" ".join(draw.choice(WORDS, size=draw.integers(1, 12)).tolist()) for _ in range(per_image)]
        for _ in range(n_images)
    ]


def fitted(groups: Sequence[Sequence[str]], **options: Any) -> Retrieval:
    captioner = build("retrieval", **options)
    assert isinstance(captioner, Retrieval)
    fit(captioner, groups)
    return captioner


def test_agreement_is_the_cider_d_of_pycocoevalcap() -> None:
    groups = random_groups(9, seed=1)
    captions = [caption for group in groups for caption in group]
    captioner = fitted(groups)
    found = captioner.model.agreement(torch.arange(len(captions)))
    for row, candidate in enumerate(captions):
        for column, reference in enumerate(captions):
            if row != column:
                expected = reference_cider(candidate, [reference], groups)
                assert float(found[row, column]) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("consensus_size", [None, 4])
def test_caption_is_the_consensus_among_the_nearest_images(consensus_size: int | None) -> None:
    groups = random_groups(12, seed=2)
    captioner = fitted(groups, n_neighbours=4, consensus_size=consensus_size)
    with torch.inference_mode():
        index = captioner.encode(pixel_values(captioner, 12))[:, 0].numpy()
        queries = captioner.encode(pixel_values(captioner, 3, seed=50))
    found = captioner.caption_states(queries, GenerateOptions(num_beams=3, num_return_sequences=3))
    for query, chosen in zip(queries[:, 0].numpy(), found, strict=True):
        cosines = [query @ row / np.linalg.norm(query) / np.linalg.norm(row) for row in index]
        nearest = np.argsort(cosines)[::-1][:4]
        pool = [caption for number in nearest for caption in groups[number]]
        scores: dict[str, float] = {}
        for place, caption in enumerate(pool):
            others = sorted(
                (reference_cider(caption, [other], groups) for at, other in enumerate(pool) if at != place),
                reverse=True,
            )
            kept = others[: consensus_size or len(others)]
            text = " ".join(caption.split())
            scores[text] = max(scores.get(text, 0.0), sum(kept) / len(kept))
        best = sorted(scores, key=lambda text: -scores[text])[:3]
        assert [caption.text for caption in chosen] == best
        assert [caption.score for caption in chosen] == pytest.approx([scores[text] for text in best], abs=1e-4)


def test_without_consensus_the_nearest_image_speaks() -> None:
    groups = random_groups(12, seed=3)
    captioner = fitted(groups, consensus=False)
    with torch.inference_mode():
        states = captioner.encode(pixel_values(captioner, 12))
    found = captioner.caption_states(states, GenerateOptions())
    assert [chosen[0].text for chosen in found] == [" ".join(group[0].split()) for group in groups]
    assert all(chosen[0].score == pytest.approx(1.0, abs=1e-2) for chosen in found)


def test_n_best_has_different_texts_and_a_small_index_starts_again() -> None:
    captioner = fitted([["a dog", "a  dog"], ["a dog", "a cat"]], n_neighbours=9)
    with torch.inference_mode():
        states = captioner.encode(pixel_values(captioner, 1))
    [found] = captioner.caption_states(states, GenerateOptions(num_beams=4, num_return_sequences=4))
    assert [caption.text for caption in found] == ["a dog", "a cat", "a dog", "a cat"]


def test_captions_come_back_letter_by_letter_and_whole() -> None:
    written = 'Ein Café: <end> «12» 🐈 said "no" — and then it went on for a very long time, as captions do ' * 3
    captioner = fitted([[written]])
    with torch.inference_mode():
        states = captioner.encode(pixel_values(captioner, 1))
    [[found]] = captioner.caption_states(states, GenerateOptions(max_new_tokens=3))
    assert found.text == " ".join(written.split())


def test_search_in_pieces_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = fitted(random_groups(40, seed=4, per_image=1))
    queries = torch.nn.functional.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    whole = captioner.model.nearest(queries, 7)
    monkeypatch.setattr("hfcap.captioners.published.modeling_retrieval.ROWS_AT_ONCE", 3)
    pieces = captioner.model.nearest(queries, 7)
    assert torch.equal(whole[1], pieces[1])
    assert torch.allclose(whole[0], pieces[0])


def test_saved_index_is_bit_equal_and_has_no_path_or_run_of_this_machine(tmp_path: Path) -> None:
    captioner = fitted(random_groups(7, seed=5))
    captioner.save(tmp_path / "model", GenerateOptions())
    again = load_captioner(str(tmp_path / "model"))
    state = captioner.model.state_dict()
    assert again.model.state_dict().keys() == state.keys()
    assert all(
        torch.equal(value, state[name]) and value.dtype == state[name].dtype
        for name, value in again.model.state_dict().items()
    )
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_a_prompt_saved_with_an_index_names_its_file(tmp_path: Path) -> None:
    fitted(random_groups(12, seed=6)).save(tmp_path / "model", GenerateOptions())
    notes = json.loads((tmp_path / "model" / "hfcap.json").read_text())
    (tmp_path / "model" / "hfcap.json").write_text(json.dumps(notes | {"prompt": "a photo of"}))
    with pytest.raises(UserError, match=r"hfcap\.json: prompt: a retrieval captioner returns whole captions"):
        load_captioner(str(tmp_path / "model"))


def test_a_loaded_index_stays_in_its_file(tmp_path: Path) -> None:
    fitted(random_groups(12, seed=6)).save(tmp_path / "model", GenerateOptions())
    again = load_captioner(str(tmp_path / "model"))
    address = again.model.vectors.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= address < last:
            assert line.endswith("model/model.safetensors")
            return
    raise AssertionError("the index is nowhere")


# ---- captions by CLIP ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip"))


CORPUS = [
    "a red cat sits on a mat",
    "two dogs",
    "a very long caption that does not fit in so few positions",
    "two dogs",
]


def clip_captioner(clip: str, **options: Any) -> Retrieval:
    return Retrieval.build(RetrievalOptions(vision=clip, search="captions", **options), CORPUS)


def records(captions: Sequence[str]) -> list[CaptionedImage]:
    return [
        CaptionedImage(str(number), f"{number}.png", (text,), MemoryImage(number))
        for number, text in enumerate(captions)
    ]


def test_nearest_caption_by_plain_clip(clip: str, tmp_path: Path) -> None:
    captioner = clip_captioner(clip)
    assert not captioner.fits_on_images
    captioner.fit(FittingData(records(CORPUS), None, 2, tmp_path))
    model, processor = AutoModel.from_pretrained(clip), plain_processor(clip)
    images = [random_image(number) for number in range(6)]
    unique = list(dict.fromkeys(CORPUS))
    inputs = processor(text=unique, images=images, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.inference_mode():
        cosines = model(**inputs).logits_per_image / model.logit_scale.exp()
        states = captioner.encode(pixel_values(captioner, 6))
    options = GenerateOptions(num_beams=3, num_return_sequences=3)
    for row, found in zip(cosines, captioner.caption_states(states, options), strict=True):
        order = row.argsort(descending=True).tolist()
        assert [caption.text for caption in found] == [unique[number] for number in order]
        assert [caption.score for caption in found] == pytest.approx(row[order].tolist(), abs=2e-3)
    assert len({int(row.argmax()) for row in cosines}) > 1, "one caption for every image shows little"


def test_saved_clip_retrieval_holds_no_text_encoder(clip: str, tmp_path: Path) -> None:
    captioner = clip_captioner(clip)
    captioner.fit(FittingData(records(CORPUS), None, 2, tmp_path))
    captioner.save(tmp_path / "model", GenerateOptions())
    again = load_captioner(str(tmp_path / "model"))
    assert not any("text_model" in name for name in again.model.state_dict())
    pixels = pixel_values(captioner, 2)
    with torch.inference_mode():
        ours, theirs = (c.caption_states(c.encode(pixels), GenerateOptions()) for c in (captioner, again))
    assert ours == theirs
    with pytest.raises(UserError, match=r"model\.pretrained.*no text encoder.*model\.vision"):
        Retrieval.build(RetrievalOptions(pretrained=str(tmp_path / "model")), CORPUS)


def test_corpus_from_a_file(clip: str, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a horse\n\n a  boat \na horse\n", encoding="utf-8")
    captioner = clip_captioner(clip, corpus=str(tmp_path / "lines.txt"))
    captioner.fit(FittingData(records(CORPUS), None, 2, tmp_path))
    states = torch.zeros(1, 1, 16)
    options = GenerateOptions(num_beams=2, num_return_sequences=2)
    assert {caption.text for caption in captioner.caption_states(states, options)[0]} == {"a horse", "a boat"}
    (tmp_path / "lines.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"lines\.txt: no caption"):
        captioner.fit(FittingData(records(CORPUS), None, 2, tmp_path))
    captioner.corpus = tmp_path / "gone.json"
    with pytest.raises(UserError, match=r"gone\.json"):
        captioner.fit(FittingData(records(CORPUS), None, 2, tmp_path))


def test_killed_encoding_of_texts_goes_on_behind_the_last_shard(
    clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dual_encoder, "TEXTS_PER_SHARD", 4)
    texts = [f"caption number {number}" for number in range(10)]
    encoder = DualEncoder(clip, "model.vision")
    whole = encoder.all_texts(texts, tmp_path / "whole", 3, "Encoding")
    original = encoder.texts
    done: list[int] = []

    def killed(batch: Sequence[str]) -> torch.Tensor:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(len(batch))
        return original(batch)

    monkeypatch.setattr(encoder, "texts", killed)
    with pytest.raises(KeyboardInterrupt):
        encoder.all_texts(texts, tmp_path / "killed", 3, "Encoding")
    assert sum(done) == 3 + 1 + 3
    counted: list[int] = []

    def counting(batch: Sequence[str]) -> torch.Tensor:
        counted.append(len(batch))
        return original(batch)

    monkeypatch.setattr(encoder, "texts", counting)
    assert torch.equal(encoder.all_texts(texts, tmp_path / "killed", 3, "Encoding"), whole)
    assert sum(counted) == 6, "the first four texts were encoded again"
    for path in (tmp_path / "killed").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:40])
    assert torch.equal(encoder.all_texts(texts, tmp_path / "killed", 3, "Encoding"), whole)
    assert capsys.readouterr().err.count("damaged text vectors") == 3


# ---- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of pretrained, vision and vision_config"),
        ({"vision": "a/b", "prompt": "a photo of"}, "leave prompt empty"),
        ({"vision_config": {"model_type": "vit"}, "search": "captions"}, "give vision, not vision_config"),
        ({"vision": "a/b", "corpus": "x.txt"}, "set search: captions"),
    ],
)
def test_options_that_do_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RetrievalOptions(**values)


def test_lora_and_parts_are_refused_by_the_recipe(tmp_path: Path) -> None:
    values = recipe_values("blip", tmp_path, "lora", num_train_epochs=1)
    values |= {"captioner": "retrieval", "model": Retrieval.tiny()}
    values["train"]["freeze"] = ["text"]
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping(values, "mine.yaml")
    problems = "\n".join(caught.value.problems)
    assert "lora: captioner retrieval trains no weights; remove this block" in problems
    assert "no part 'text'" in problems


def test_an_encoder_of_images_alone_cannot_search_captions(tmp_path: Path) -> None:
    from tests.captioners.backbones import ENCODERS, write_encoder

    folder = write_encoder(tmp_path / "vit", ENCODERS["vit"])
    with pytest.raises(UserError, match=r"model\.vision.*no image and text encoder"):
        Retrieval.build(RetrievalOptions(vision=str(folder), search="captions"), CORPUS)


def test_a_prompt_is_refused_and_an_index_without_captions_says_so() -> None:
    captioner = build("retrieval")
    states = torch.zeros(1, 1, 32)
    with pytest.raises(UserError, match="prompt: a retrieval captioner"):
        captioner.caption_states(states, GenerateOptions(), "a photo of")
    empty = Retrieval.build(RetrievalOptions(**Retrieval.tiny()), CORPUS)
    with pytest.raises(ValueError, match="fit it first"):
        empty.caption_states(states, GenerateOptions())


@pytest.mark.parametrize("changes", [{"n_neighbours": 3.0}, {"consensus_size": "4"}, {"consensus_size": True}])
def test_a_damaged_configuration(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"config\.json: {next(iter(changes))} must be a whole number"):
        RetrievalConfig(**changes)
