"""Augmentation in a run: training sees it, validation and the feature store never do, a resumed run repeats it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hfcap import registry
from hfcap.data.augmentation import AugmentedDataset
from hfcap.data.loading import CaptionDataset, PixelInputs
from hfcap.data.source import load_split
from hfcap.errors import StoppedError, UserError
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.loading import RecipeError, recipe_from_mapping
from hfcap.run.stages import make_accelerator
from hfcap.run_directory.paths import RunDirectory
from hfcap.store.row_store import StoredRows
from hfcap.training.assemble import hidden_token, training_run
from hfcap.training.build import build_captioner, make_trainable
from hfcap.training.loop import TrainingRun
from hfcap.training.objectives.synonyms import synonym_table, wordnet_synonyms
from tests.training.harness import (
    FAMILIES,
    assert_same_tensors,
    forget_accelerator,
    recipe_values,
    send_signal_at,
    train,
)

IMAGES = {"crop_scale": 0.7, "rotation": 5.0, "brightness": 0.2, "horizontal_flip": 0.5}


def augmented(folder: Path, augment: dict[str, Any], captioner: str = "vit_gpt2", **options: Any) -> Recipe:
    return recipe_from_mapping({**recipe_values(captioner, folder, **options), "augment": augment}, "test")


def prepared(recipe: Recipe) -> TrainingRun:
    forget_accelerator()
    splits = {name: load_split(recipe.data, name) for name in ("train", "validation")}
    run = RunDirectory(Path(recipe.output_dir) / recipe.name)
    trainable = make_trainable(build_captioner(recipe, splits["train"]), recipe)
    return training_run(recipe, run, trainable, splits, make_accelerator(recipe, run))


def test_resume_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**IMAGES, "word_dropout": 0.2}
    whole = train(augmented(tmp_path / "whole", options))
    cut = augmented(tmp_path / "cut", options)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        send_signal_at(3, patch)
        train(cut)
    resumed = train(cut)
    for name in ("model", "optimizer"):
        paths = [result.checkpoint(4) / f"{name}.safetensors" for result in (whole, resumed)]
        assert_same_tensors(load_file(paths[0]), load_file(paths[1]))
    plain = train(recipe_from_mapping(recipe_values("vit_gpt2", tmp_path / "plain"), "test"))
    assert plain.losses != whole.losses


def test_validation_sees_images_and_captions_as_they_are(tmp_path: Path) -> None:
    training = prepared(augmented(tmp_path, {**IMAGES, "word_dropout": 0.5}))
    assert isinstance(training.dataset, AugmentedDataset)
    validation = training.validator.dataset
    assert type(validation) is CaptionDataset
    assert type(validation.inputs) is type(training.validator.decoding.inputs) is PixelInputs
    item = validation[(1, 0)]
    assert item.shown is None and (item.image == validation[(0, 0)].image).all()


def test_a_frozen_encoder_is_stored_only_where_images_stay_the_same(tmp_path: Path) -> None:
    changing = prepared(augmented(tmp_path / "a", IMAGES, freeze=["vision"]))
    assert type(changing.dataset.inputs) is type(changing.validator.dataset.inputs) is PixelInputs
    words_only = prepared(augmented(tmp_path / "b", {"word_dropout": 0.1}, freeze=["vision"]))
    assert isinstance(words_only.dataset, AugmentedDataset)
    assert isinstance(words_only.dataset.inputs, StoredRows)


@pytest.mark.parametrize("captioner", FAMILIES)
def test_hidden_words_are_neither_start_nor_end(captioner: str, tmp_path: Path) -> None:
    family = registry.load("captioners", captioner).REGISTERED
    built = family.build(family.options_class(**family.tiny()), ["a picture of a dog"])
    hidden = hidden_token(built)
    assert hidden not in built.start_token_ids() and hidden != built.end_token_id
    assert 0 <= hidden < len(built.tokenizer)


def test_wordnet_synonyms_share_most_of_their_senses() -> None:
    synsets = {
        "bike": ["1", "2", "3"],
        "bicycle": ["1", "2"],
        "motorcycle": ["3"],
        "sofa": ["4"],
        "couch": ["4"],
        "ride": ["1", "2"],
        "cycle": ["1", "2", "3"],
        "cycles": ["1", "2", "3"],
        "cycling": ["1", "2", "3"],
        "tent": ["5"],
        "shelter": ["5", "6"],
    }
    counts = {"bike": 9, "bicycle": 5, "motorcycle": 9, "sofa": 4, "couch": 9, "cycle": 7, "cycles": 7, "dog": 50}
    counts |= {"cycling": 9, "tent": 9, "shelter": 9}
    # "sofa" is too rare to be taken, "motorcycle" shares one sense of three, "cycles" is a form of "cycle", "cycling"
    # ends in -ing, "tent" and "shelter" share one sense of two, which is not more than half.
    assert wordnet_synonyms(synsets, counts) == {
        "bike": ["bicycle", "cycle", "cycles"],
        "bicycle": ["bike", "cycle", "cycles"],
        "cycle": ["bicycle", "bike"],
        "cycles": ["bicycle", "bike"],
    }


def test_wordnet_comes_with_the_meteor_package() -> None:
    pytest.importorskip("pycocoevalcap")
    captions = [f"a {colour} {thing} with a dog" for colour in ("grey", "gray") for thing in ("bike", "bicycle")] * 5
    table = synonym_table("wordnet", captions)
    assert table["grey"] == ["gray"] and table["bike"] == ["bicycle"]
    assert "dog" not in table and "a" not in table


def test_synonyms_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.json"
    path.write_text(json.dumps({"Sofa": ["couch", "settee"]}))
    assert synonym_table(str(path), []) == {"sofa": ["couch", "settee"]}
    for wrong in ([1], {"sofa": "couch"}, {"sofa": [""]}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"augment\.synonyms: .*must map words"):
            synonym_table(str(path), [])
    path.write_text("{")
    with pytest.raises(UserError, match=r"\bsynonyms \(augment\.synonyms\)"):
        synonym_table(str(path), [])
    with pytest.raises(UserError, match=r"augment\.synonyms: .*no such file"):
        synonym_table("wordnett", [])


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"horizontal_flip": 0.5}, "augment.flip_captions: skip"),
        ({"word_dropout": 0.1}, "augment.word_dropout"),
        ({"synonym_replacement": 0.1}, "augment.synonym_replacement"),
    ],
)
def test_self_critical_training_takes_only_what_leaves_references_true(
    augment: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = recipe_values("vit_gpt2", tmp_path, metric_for_best_model="cider")
    values |= {"model": {"pretrained": "earlier"}, "scst": {}, "augment": augment}
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping(values, "test")
    assert message in str(caught.value)
    recipe_from_mapping({**values, "augment": {"horizontal_flip": 0.5, "flip_captions": "skip"}}, "test")


def test_captioners_without_training_have_nothing_to_augment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.load("captioners", "vit_gpt2").REGISTERED, "trains_by_gradients", False)
    values = {**recipe_values("vit_gpt2", tmp_path), "augment": {}, "scst": {}}
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping(values, "test")
    assert "augment: null" in str(caught.value) and "scst: null" in str(caught.value)
