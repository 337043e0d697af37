"""From YAML and overrides to a checked Recipe: all that is wrong at once, with file, line, key and remedy."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from hfcap import registry
from hfcap.errors import UserError
from hfcap.recipe import strict_yaml
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.loading import (
    RecipeError,
    dump_recipe,
    load_recipe,
    recipe_from_mapping,
    recipe_json_schema,
)
from hfcap.recipe.prompt_fields import as_template

GOOD = """\
name: trial
captioner: blip
model: {pretrained: some/model}
data:
  source: folder
  root: images
train:
  max_steps: 10
  learning_rate: 1e-5
  mixed_precision: no
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "trial.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """Load, expect refusal, and return the problems without the folder's name."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    assert isinstance(caught.value, UserError)
    return [line.replace(f"{folder}/", "") for line in caught.value.problems]


def test_a_good_recipe_gets_the_classes_of_its_family_and_source(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert type(recipe) is Recipe
    assert type(recipe.model).__name__ == "BlipOptions"
    assert type(recipe.data).__name__ == "FolderOptions"
    assert recipe.train.learning_rate == 0.00001
    assert recipe.train.mixed_precision == "no"
    assert recipe.lora is None
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
name: bad name
captioner: blip
learning_rate: 1e-5
model: {promt: a, pretrained: 5}
data: {source: folder, rot: x}
lora: {r: "8", target_modules: 5}
train:
  max_steps: 5
  num_train_epochs: 2
  freeze: [visoin]
  learning_rates: {txt: 1.0}
  seed: true
  lr_scheduler_type: cosinus
  learning_rte: 1
generate: {num_beams: 2, num_return_sequences: 3}
score: {metrics: [rouge_k]}
publish: 5
expect: {metrics: {cider: x}}
"""
    assert problems(tmp_path, text) == [
        'trial.yaml:1: name: "bad name" is not allowed (name of the run directory; letters, digits, '
        "'.', '_' and '-')",
        "trial.yaml:3: learning_rate: unknown key; did you mean 'train.learning_rate'?",
        "trial.yaml:4: model.pretrained: must be text or null, not 5",
        "trial.yaml:4: model.promt: unknown key; did you mean 'model.prompt'?",
        "trial.yaml:5: data.root: is missing",
        "trial.yaml:5: data.rot: unknown key; did you mean 'data.root'?",
        'trial.yaml:6: lora.r: must be a whole number, not "8"',
        "trial.yaml:6: lora.target_modules: must be text or a list, not 5",
        "trial.yaml:7: train: give exactly one of num_train_epochs and max_steps (set the other to null)",
        "trial.yaml:10: train.freeze.0: this captioner has no part 'visoin'; did you mean 'vision'?",
        "trial.yaml:11: train.learning_rates.txt: this captioner has no part 'txt'; did you mean 'text'?",
        "trial.yaml:12: train.seed: must be a whole number, not true",
        "trial.yaml:13: train.lr_scheduler_type: must be 'constant', 'constant_with_warmup', 'linear', 'cosine', "
        "'cosine_with_restarts', 'cosine_with_min_lr', 'cosine_warmup_with_min_lr', 'polynomial', 'inverse_sqrt' "
        "or 'warmup_stable_decay', not \"cosinus\"; did you mean 'cosine'?",
        "trial.yaml:14: train.learning_rte: unknown key; did you mean 'train.learning_rate' or 'train.learning_rates'?",
        "trial.yaml:15: generate: num_return_sequences=3 needs num_beams of at least that many, not 2, "
        "or do_sample: true",
        "trial.yaml:16: score.metrics.0: unknown metric 'rouge_k'; did you mean 'rouge_l'?",
        "trial.yaml:17: publish: must be a block of keys, not 5",
        'trial.yaml:18: expect.metrics.cider: must be a number, not "x"',
        "trial.yaml:18: expect.source: is missing",
    ]


def test_a_rule_about_a_key_that_is_already_wrong_is_not_repeated(tmp_path: Path) -> None:
    text = GOOD.replace("max_steps: 10", "max_steps: ten")
    assert problems(tmp_path, text) == ['trial.yaml:8: train.max_steps: must be a whole number or null, not "ten"']


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "captioner: blip",
            "captioner: bilp",
            "trial.yaml:2: captioner: unknown captioner 'bilp'; did you mean 'blip'?",
        ),
        ("captioner: blip", "captioner: 5", "trial.yaml:2: captioner: must be text, not 5"),
        ("captioner: blip\n", "", "trial.yaml: captioner: is missing"),
        (
            "source: folder",
            "source: foldr",
            "trial.yaml:5: data.source: unknown source 'foldr'; did you mean 'folder'?",
        ),
        ("{pretrained: some/model}", "", "trial.yaml:3: model: give exactly one of pretrained and from_config"),
        (
            "learning_rate: 1e-5",
            "learning_rate: .inf",
            'trial.yaml:9: train.learning_rate: must be a number, not ".inf"',
        ),
        ("max_steps: 10", "max_steps: 10.5", "trial.yaml:8: train.max_steps: must be a whole number or null, not 10.5"),
        ("max_steps: 10", "max_steps: -1", "trial.yaml:8: train.max_steps: must be greater than 0, not -1"),
        (
            "max_steps: 10",
            "max_steps: 10\n  adam_beta2: 1.0",
            "trial.yaml:9: train.adam_beta2: must be less than 1, not 1.0",
        ),
        (
            "learning_rate: 1e-5",
            "lr_scheduler_type: constant\n  warmup_steps: 5",
            "trial.yaml:7: train: lr_scheduler_type: constant has no warm-up; write constant_with_warmup, or leave",
        ),
        (
            "learning_rate: 1e-5",
            "lr_scheduler_type: constant\n  warmup_ratio: 0.1",
            "trial.yaml:7: train: lr_scheduler_type: constant has no warm-up; write constant_with_warmup, or leave",
        ),
        (
            "name: trial",
            "generate: {temperature: 0.7, seed: 3}\nname: trial",
            "trial.yaml:1: generate: temperature and seed: no effect without sampling; set do_sample",
        ),
        (
            "name: trial",
            "generate: {top_k: 5, num_beams: 1}\nname: trial",
            "trial.yaml:1: generate: top_k: no effect without sampling; set do_sample: true, or",
        ),
        (
            "name: trial",
            "generate: {min_new_tokens: 9, max_new_tokens: 8}\nname: trial",
            "trial.yaml:1: generate: min_new_tokens=9 must not be more than max_new_tokens=8",
        ),
        ("name: trial", "name: ../trial", 'trial.yaml:1: name: "../trial" is not allowed (name of the run directory; '),
        ("name: trial", "name: a\nname: b", "trial.yaml:2: name: given twice, on line 1 and on line 2; delete one"),
        ("name: trial", "name: [", "trial.yaml: line 3, column 6: not valid YAML"),
        ("name: trial", "name: &a trial", "trial.yaml: line 1, column 7: anchors and aliases"),
    ],
)
def test_single_problems(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    (only,) = problems(tmp_path, GOOD.replace(old, new))
    assert only.startswith(expected)


def test_what_only_samples_need_is_allowed_for_samples_and_at_its_default(tmp_path: Path) -> None:
    drawn = load_recipe(write(tmp_path, GOOD + "generate: {do_sample: true, temperature: 0.7, top_k: 5, seed: 3}\n"))
    assert drawn.generate.temperature == 0.7
    spelled_out = load_recipe(write(tmp_path, GOOD + "generate: {temperature: 1.0, top_k: 50, top_p: 1.0, seed: 0}\n"))
    assert spelled_out.generate == load_recipe(write(tmp_path, GOOD)).generate


def test_repo_id_is_checked_as_the_hub_would(tmp_path: Path) -> None:
    (only,) = problems(tmp_path, GOOD + "publish: {repo_id: a/b/c}\n")
    assert only.startswith("trial.yaml:11: publish.repo_id: ")


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n"])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text) == [
        "trial.yaml: a recipe is a block of keys (name, captioner, model, data, train, ...)"
    ]


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recipe not found"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder, where the recipe is wanted"):
        load_recipe(tmp_path)


def test_overrides_change_create_and_clear(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, GOOD),
        [
            "train.max_steps=null",
            "train.num_train_epochs=2",
            "lora.r=4",
            "train.freeze=[vision]",
            "model.prompt=a = b",
        ],
    )
    assert (recipe.train.max_steps, recipe.train.num_train_epochs) == (None, 2)
    assert recipe.lora is not None
    assert recipe.lora.r == 4
    assert recipe.train.freeze == ["vision"]
    assert recipe.model.prompt == "a = b"


def test_problems_of_overrides_name_the_override(tmp_path: Path) -> None:
    assert problems(
        tmp_path, GOOD, "train.max_stpes=5", "train", "name.x=1", "generate.num_beams=[1", "lora={r: 0}", "train.seed=x"
    ) == [
        "override 'train': write key=value or block.key=value, e.g. train.learning_rate=1e-5",
        "override 'name.x=1': name is a single value; it has no keys of its own",
        "override 'generate.num_beams=[1': the value: line 1, column 3: not valid YAML "
        "(expected ',' or ']', but got '<stream end>')",
        "override 'lora={r: 0}': lora.r: must be greater than 0, not 0",
        "override 'train.seed=x': train.seed: must be a whole number, not \"x\"",
        "override 'train.max_stpes=5': train.max_stpes: unknown key; did you mean "
        "'train.max_steps' or 'train.save_steps'?",
    ]


def test_usual_abbreviations_are_understood_in_the_hint(tmp_path: Path) -> None:
    meant = {"lr": "learning_rate", "epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size"}
    for short, key in meant.items():
        for override in (f"train.{short}=1", f"{short}=1"):
            assert problems(tmp_path, GOOD, override)[0].endswith(f"unknown key; did you mean 'train.{key}'?")


def test_an_override_mends_what_is_wrong_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("max_steps: 10", "max_steps: ten"))
    assert load_recipe(path, ["train.max_steps=3"]).train.max_steps == 3


def test_a_mapping_is_checked_the_same_way_and_left_as_it_was() -> None:
    values: dict[str, Any] = {
        "name": "a",
        "captioner": "blip",
        "model": {"pretrained": "x"},
        "data": {"source": "folder", "root": "r"},
        "train": {"max_steps": 1, "sed": 1},
        "generate": None,
    }
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping(values, "the form")
    assert caught.value.problems == ("the form: train.sed: unknown key; did you mean 'train.seed'?",)
    assert values["generate"] is None
    del values["train"]["sed"]
    assert recipe_from_mapping(values, "the form").train.max_steps == 1


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
RATE = st.floats(min_value=1e-9, max_value=10.0)


Drawn = dict[str, st.SearchStrategy[Any]]


def block(required: Drawn, optional: Drawn | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """A dict with these keys, each value drawn from its strategy."""
    return st.fixed_dictionaries(required, optional=optional or {})


CONFIG = st.dictionaries(TEXT, st.dictionaries(TEXT, st.integers() | TEXT | st.booleans(), max_size=3))
TRAIN = block({"learning_rate": RATE}, {"freeze": st.lists(st.sampled_from(["vision", "text"]), max_size=2)})
DURATION = st.sampled_from([{"max_steps": 7}, {"num_train_epochs": 0.5}])
RECIPES = block(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "captioner": st.just("blip"),
        "model": block(
            {"from_config": CONFIG},
            {"prompt": TEXT.map(as_template), "tokenizer": block({"vocab_size": st.integers(300)})},
        ),
        "data": block(
            {"source": st.just("folder"), "root": TEXT},
            {"max_train_images": st.none() | st.integers(1), "caption_columns": st.lists(TEXT, max_size=3)},
        ),
        "train": st.tuples(TRAIN, DURATION).map(lambda both: {**both[0], **both[1], "mixed_precision": "no"}),
    },
    {
        "lora": st.none() | block({}, {"target_modules": st.just("auto") | st.lists(TEXT, min_size=1)}),
        "publish": block({"tags": st.lists(TEXT)}),
        "expect": block({"metrics": st.dictionaries(TEXT, RATE), "source": TEXT}),
    },
)


@settings(max_examples=100, deadline=None)
@given(RECIPES)
def test_a_dumped_recipe_spells_everything_out_and_loads_equal(tmp_path_factory: Any, values: dict[str, Any]) -> None:
    recipe = recipe_from_mapping(values, "generated")
    text = dump_recipe(recipe)
    path = tmp_path_factory.mktemp("dumped") / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_recipe(path) == recipe
    assert "  save_total_limit: 2\n" in text  # a default that nobody gave
    assert ("lora: null\n" in text) == (values.get("lora") is None)


def matches(schema: dict[str, Any], values: dict[str, Any]) -> bool:
    Draft202012Validator.check_schema(schema)
    return bool(Draft202012Validator(schema).is_valid(values))


def test_the_json_schema_follows_captioner_and_source() -> None:
    schema = recipe_json_schema()
    values: dict[str, Any] = {
        "name": "a",
        "captioner": "clip_prefix",
        "model": {"vision": "v", "language_model": "l", "prefix_length": 4},
        "data": {"source": "folder", "root": "r"},
        "train": {"max_steps": 1},
    }
    assert matches(schema, values)
    assert not matches(schema, values | {"captioner": "blip"})  # BLIP has no prefix
    assert not matches(schema, values | {"captioner": "bilp"})
    assert not matches(schema, values | {"data": {"source": "scenes", "root": "r"}})
    assert not matches(schema, values | {"data": {"source": "folder"}})
    assert not matches(schema, values | {"train": {"max_steps": "1"}})
    assert not matches(schema, values | {"trian": {}})


def test_the_json_schema_accepts_every_dumped_recipe(tmp_path: Path) -> None:
    dumped = strict_yaml.parse(dump_recipe(load_recipe(write(tmp_path, GOOD), ["lora.r=4"]))).value
    assert matches(recipe_json_schema(), dumped)


OPTIONS_OF_METRICS = """\
score:
  metrics: [clip_score, chair, cider]
  document_frequencies: coco-val
  metric_options:
    clip_score: {model: openai/clip-vit-base-patch16, batch_size: 8}
    chair:
      instances: [a.json, b.json]
"""


def test_options_of_metrics(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD + OPTIONS_OF_METRICS), ["score.metric_options.clip_score.batch_size=4"])
    assert recipe.score.document_frequencies == "coco-val"
    assert recipe.score.metric_options == {
        "clip_score": {"model": "openai/clip-vit-base-patch16", "batch_size": 4},
        "chair": {"instances": ["a.json", "b.json"]},
    }
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe


def test_wrong_options_of_metrics_are_all_named(tmp_path: Path) -> None:
    text = GOOD + OPTIONS_OF_METRICS.replace("model:", "modle:").replace("batch_size: 8", "batch_size: 0")
    text = text.replace("[a.json, b.json]", "5") + "    spise: {}\n    spice: {}\n    cider: 5\n"
    first = len(GOOD.splitlines())
    assert problems(tmp_path, text) == [
        f"trial.yaml:{first + 5}: score.metric_options.clip_score.batch_size: must be greater than 0, not 0",
        f"trial.yaml:{first + 5}: score.metric_options.clip_score.modle: unknown key; did you mean 'model'?",
        f"trial.yaml:{first + 7}: score.metric_options.chair.instances: must be text or a list or a block of keys "
        "or null, not 5",
        f"trial.yaml:{first + 8}: score.metric_options.spise: unknown metric 'spise'; did you mean 'spice'?",
        f"trial.yaml:{first + 9}: score.metric_options.spice: this metric is not computed; add spice to "
        "score.metrics, or remove its options",
        f"trial.yaml:{first + 10}: score.metric_options.cider: must be a block of keys, not 5",
    ]


def test_quantised_weights_need_lora(tmp_path: Path) -> None:
    text = GOOD.replace("blip", "image_text_to_text").replace("some/model}", "some/model, quantization: 4bit}")
    (problem,) = problems(tmp_path, text)
    assert problem.startswith("trial.yaml:3: model.quantization: 4bit leaves only LoRA to train; add the block 'lora")
    assert load_recipe(write(tmp_path, text + "lora: {}\n")).lora is not None


def test_schema_knows_the_options_of_metrics() -> None:
    schema = recipe_json_schema()
    options = schema["$defs"]["ScoreOptions"]["properties"]["metric_options"]["properties"]
    assert set(options) == set(registry.names("metrics"))
    assert "images" in schema["$defs"][options["clip_score"]["$ref"].rpartition("/")[2]]["properties"]
