"""The reward of self-critical training: a weighted sum of metrics, each equal to the metric itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hfcap.data.images import decode_image
from hfcap.data.loading import image_loader
from hfcap.data.source import load_split
from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.cider import CiderReward
from hfcap.metrics.clip_score import ClipScore, ClipScoreOptions
from hfcap.metrics.clip_score.encoder import ClipEncoder
from hfcap.metrics.shared.images import DecodedImages
from hfcap.metrics.shared.languages import tokenizer_of
from hfcap.metrics.suite import CaptionSuite
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.scst import RewardOptions, ScstOptions
from hfcap.schema import CaptionedImage
from hfcap.store.fill import OneProcess
from hfcap.store.row_store import RowStore
from hfcap.training.objectives.reward import CaptionReward, LengthPenalty, RewardImages
from tests.captioners.clip_folder import write_clip
from tests.training.harness import tiny_recipe


def photos(*captions: tuple[str, ...]) -> list[CaptionedImage]:
    return [CaptionedImage(str(number), f"{number}.jpg", group, Path()) for number, group in enumerate(captions)]  # type: ignore[arg-type]


PHOTOS = photos(
    ("a man on a horse", "a man rides a brown horse"),
    ("two dogs play in snow", "dogs in the snow"),
    ("a red bus", "a bus on the street"),
    ("a cat", "a cat asleep on a sofa"),
)


def test_the_end_token_makes_fragments_worthless() -> None:
    """'a man on a' shares all its n-grams with a caption; whole captions win only if their end counts."""
    candidates, ended = [["a man on a", "a man on a horse"]], np.array([[True, True]])
    with_end = CaptionReward(PHOTOS, ScstOptions()).scores(["0"], candidates, ended)["cider"][0]
    without = CaptionReward(PHOTOS, ScstOptions(end_token=False)).scores(["0"], candidates, ended)["cider"][0]
    assert with_end[0] / with_end[1] < 0.8 * without[0] / without[1]
    cut = CaptionReward(PHOTOS, ScstOptions()).scores(["0"], candidates, np.array([[True, False]]))["cider"][0]
    assert cut[1] < with_end[1] and cut[0] == with_end[0]
    # An independent way to the same number: the end written out as a word of all captions.
    spelled = {photo.image_id: [f"{caption} endofcaption" for caption in photo.captions] for photo in PHOTOS}
    by_hand = CiderReward(spelled, end_word=False).scores(["0"], [[f"{text} endofcaption" for text in candidates[0]]])
    assert with_end == pytest.approx(by_hand[0])


def test_document_frequencies_are_those_that_the_recipe_names(tmp_path: Path) -> None:
    """Two images with the frequencies of four have the values that they have among the four."""
    file = tmp_path / "references.json"
    file.write_text(json.dumps({photo.image_id: photo.captions for photo in PHOTOS}))
    candidates, ended = [["a man on a horse", "a dog on a horse"]], np.ones((1, 2), bool)
    among_all, found, alone = (
        CaptionReward(photos_, ScstOptions(document_frequencies=source)).scores(["0"], candidates, ended)["cider"]
        for photos_, source in ((PHOTOS, "corpus"), (PHOTOS[:2], str(file)), (PHOTOS[:2], "corpus"))
    )
    assert found == pytest.approx(among_all)
    assert not np.allclose(alone, among_all)


def test_bleu_of_the_reward_has_an_end_only_where_it_is_asked_for() -> None:
    reward = RewardOptions(cider=0.0, bleu_4=1.0)
    candidates, ended = [["a man rides", "a man rides a brown horse", "a man rides"]], np.array([[True, True, False]])
    for end_token in (False, True):
        options = ScstOptions(reward=reward, end_token=end_token)
        found = CaptionReward(PHOTOS, options).scores(["0"], candidates, ended)
        assert found.keys() == {"reward", "bleu_4"}, "what has no weight is not computed"
        end = " endofcaption" * end_token  # the end written out as a word of all captions that have one
        references = {"0": [f"{text}{end}" for text in PHOTOS[0].captions]}
        for number, caption in enumerate(candidates[0]):
            spelled = f"{caption}{end}" if ended[0, number] else caption
            metric = CaptionSuite(["bleu"]).compute({"0": spelled}, references).values["bleu_4"]
            assert found["bleu_4"][0, number] == pytest.approx(metric)


def test_captions_of_other_languages_are_split_for_the_reward() -> None:
    chinese = photos(("一只狗在草地上", "草地上有狗"), ("两只猫", "两只猫在睡觉"), ("一辆红色的公共汽车", "红色汽车"))
    apart = [replace(photo, captions=tuple(" ".join(text) for text in photo.captions)) for photo in chinese]
    words = tokenizer_of("zh").words
    options = ScstOptions(reward=RewardOptions(cider=1.0, bleu_4=0.5, length=0.1))
    candidates, ended = [["一只狗在草地上", "两只猫"]], np.ones((1, 2), bool)
    found = CaptionReward(chinese, options, words=words).scores(["0"], candidates, ended)
    by_hand = CaptionReward(apart, options).scores(["0"], [[" ".join(text) for text in candidates[0]]], ended)
    for name, values in by_hand.items():
        assert found[name] == pytest.approx(values)
    assert found["cider"][0, 0] > 2 * found["cider"][0, 1]


def test_clip_reward_agrees_with_the_metric(tmp_path: Path) -> None:
    model = write_clip(tmp_path / "clip")
    records = load_split(tiny_recipe("vit_gpt2", tmp_path).data, "train")[:4]
    options = ScstOptions(reward=RewardOptions(cider=0.0, clip_score=2.0, clip_model=str(model)))
    image_source = DecodedImages({record.image_id: record.image for record in records}, decode_image)
    ids, candidates = [records[2].image_id, records[0].image_id], [["a red circle", "a dog"], ["a blue square", "x"]]
    values = CaptionReward(records, options, image_source).scores(ids, candidates, np.ones((2, 2), bool))
    assert values.keys() == {"reward", "clip_score"}, "what has no weight is not computed"
    assert values["reward"] == pytest.approx(2.0 * values["clip_score"])
    for number in range(2):
        captions = {image_id: group[number] for image_id, group in zip(ids, candidates, strict=True)}
        references = ReferenceSet({image_id: ["an image"] for image_id in ids})
        metric = ClipScore(ClipScoreOptions(model=str(model)), image_source=image_source)
        alone = metric.statistics(CaptionSet(captions, references))[:, 0]
        # 2.5 times a cosine of float32 vectors, which may lie near 0.
        assert values["clip_score"][:, number] == pytest.approx(alone, rel=0, abs=2e-5)


def test_clip_runs_on_the_device_of_the_captioner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoder, records, recipe = clip_images(tmp_path)
    made: list[tuple[str, str]] = []

    def noted(name: str, device: str) -> Any:
        made.append((name, device))
        return encoder

    monkeypatch.setattr("hfcap.training.objectives.reward.ClipEncoder", noted)
    options = ScstOptions(reward=RewardOptions(clip_score=1.0, clip_model=model))
    CaptionReward(records, options, RewardImages(records, recipe, OneProcess()), "cuda")
    assert made == [(model, "cuda")]


def clip_images(tmp_path: Path, **data: Any) -> tuple[str, Any, list[CaptionedImage], Recipe]:
    """A tiny CLIP and its name, and four images with a recipe that keeps them in `<tmp_path>/features` by default."""
    model = str(write_clip(tmp_path / "clip"))
    recipe = tiny_recipe("vit_gpt2", tmp_path, data={"feature_store_folder": str(tmp_path / "features"), **data})
    return model, ClipEncoder(model, "cpu"), list(load_split(recipe.data, "train")[:4]), recipe


def counted(encoder: Any) -> list[int]:
    """How many images the encoder is given from now on, call by call."""
    found: list[int] = []
    encode = encoder._model.get_image_features

    def counting(pixel_values: torch.Tensor) -> Any:
        found.append(len(pixel_values))
        return encode(pixel_values=pixel_values)

    encoder._model.get_image_features = counting
    return found


@pytest.mark.parametrize("place", ["features", "file", "cache"])
def test_training_images_are_encoded_once_into_the_feature_store(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("no folder can be made below this")
    folder = None if place == "cache" else str(tmp_path / place / "store")
    model, encoder, records, recipe = clip_images(tmp_path, feature_store_folder=folder)
    ids = [records[2].image_id, records[0].image_id]
    decoded = DecodedImages({record.image_id: record.image for record in records}, decode_image)
    expected, n_encoded = encoder.images(decoded, ids), counted(encoder)
    ours = encoder.images(RewardImages(records, recipe, OneProcess()), ids)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    stores = list(tmp_path.glob("features/store/*") if place == "features" else tmp_path.glob("cache/features/*"))
    if place == "file":  # nothing is kept, nor put where the recipe does not say
        assert stores == []
        return
    info = RowStore(stores[0]).info()
    assert (len(stores), info.encoder, info.n_images) == (1, model, 2)
    n_encoded.clear()
    assert np.array_equal(encoder.images(RewardImages(records, recipe, OneProcess()), ids), ours)
    assert n_encoded == [], "all images are in the store"


def test_two_processes_encode_half_of_the_training_images_each(tmp_path: Path) -> None:
    model, encoder, records, recipe = clip_images(tmp_path)
    ids = [record.image_id for record in records]
    n_encoded = counted(encoder)

    def process(rank: int, wait: Any) -> Any:
        return SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0, wait_for_everyone=wait)

    def other_half() -> None:
        assert n_encoded == [1, 2]  # one tells the size of a row
        # It waits for nobody, as the first has come this far; both halves are there then.
        others = ClipEncoder(model, "cpu")
        of_others = counted(others)
        others.images(RewardImages(records, recipe, process(1, lambda: None)), ids)
        assert of_others == [1, 2]

    found = encoder.images(RewardImages(records, recipe, process(0, other_half)), ids)
    assert n_encoded == [1, 2]
    decoded = DecodedImages({record.image_id: record.image for record in records}, decode_image)
    np.testing.assert_allclose(found, encoder.images(decoded, ids), rtol=0, atol=1e-5)


def test_training_images_are_read_by_the_workers_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, encoder, records, recipe = clip_images(tmp_path)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"dataloader_num_workers": 3})})
    asked: list[tuple[int, int]] = []

    def loader(inputs: Any, batches: Any, num_workers: int, device: torch.device) -> Any:
        asked.append((len(batches[0]), num_workers))
        return image_loader(inputs, batches, 0, device)

    monkeypatch.setattr("hfcap.store.fill.image_loader", loader)
    RewardImages(records, recipe, OneProcess()).embeddings(
        "clip", encoder._model, encoder._image_processor, [record.image_id for record in records[:3]], 2
    )
    assert asked == [(2, 3)]


def test_length_penalty_by_hand() -> None:
    """Also where people say one word, or none: a caption is then compared with one word, and not divided by 0."""
    penalty = LengthPenalty({"0": ["bus"], "1": ["a red bus", "bus"], "2": ["", "."]})
    assert penalty.scores(["1", "0", "2"], [["a bus", "."], ["a red bus", "bus"], ["", "bus"]]).tolist() == [
        [0.0, 1.0],
        [2.0, 0.0],
        [1.0, 0.0],
    ]


def test_reward_is_the_weighted_sum_of_its_parts() -> None:
    options = ScstOptions(reward=RewardOptions(cider=2.0, bleu_4=0.5, length=0.1))
    ids, candidates = ["2", "0"], [["a red bus on a street", "bus"], ["a man rides a horse", ""]]
    values = CaptionReward(PHOTOS, options).scores(ids, candidates, np.ones((2, 2), bool))
    assert values.keys() == {"reward", "cider", "bleu_4", "length"}
    assert values["reward"] == pytest.approx(2 * values["cider"] + 0.5 * values["bleu_4"] - 0.1 * values["length"])
    # Mean words: (3 + 5) / 2 = 4 and (5 + 6) / 2 = 5.5.
    assert values["length"] == pytest.approx(np.array([[2 / 4, 3 / 4], [0.5 / 5.5, 1.0]]))
