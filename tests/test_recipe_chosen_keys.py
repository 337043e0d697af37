"""Keys of another data source, captioner or metric are named as such, with what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hfcap.errors import UserError
from hfcap.recipe.loading import load_recipe, metric_options_from
from tests.test_recipe_loading import GOOD, problems, write


def test_keys_of_another_source_captioner_or_metric_are_named_as_such(tmp_path: Path) -> None:
    (own,) = problems(tmp_path, GOOD, "data.n_train=5")
    assert own.startswith(
        "override 'data.n_train=5': data.n_train: unknown key of source 'folder': it belongs to source 'scenes'; "
        "remove it; 'folder' takes "
    )
    assert "root, layout" in own and "feature_store" not in own  # what all sources take goes without saying
    (other,) = problems(tmp_path, GOOD, "model.encoder=x")
    assert "of captioner 'blip': it belongs to captioner 'vit_gpt2'; remove it; 'blip' takes pretrained, " in other
    (option,) = problems(tmp_path, GOOD, "score.metrics=[spice]", "score.metric_options.spice.images=x")
    assert "score.metric_options.spice.images: unknown key of metric 'spice': it belongs to metric 'clip_sco" in option
    with pytest.raises(
        UserError,
        match=r"^--option 'spice\.images=x': spice\.images: .* metric 'clip_score' or 'fleur' or 'polos'; remove",
    ):
        metric_options_from(["spice.images=x"], ["spice"])
    # A key that nothing takes is no key that looks a little like one of another block.
    assert "lora" not in problems(tmp_path, GOOD, "data.format=jpg")[0]


def test_keys_that_an_overridden_source_or_captioner_leaves_over_go_with_their_block(tmp_path: Path) -> None:
    left, missing = sorted(problems(tmp_path, GOOD, "data.source=hub"), key=len, reverse=True)
    assert "data.root: unknown key of source 'hub': it belongs to source 'coco' or 'folder'; " in left
    (block,) = re.findall(r"replace the whole block, '([^']*)'; 'hub' takes ", left)
    assert block == "data={source: hub, dataset: VALUE}"
    assert missing.endswith("data.dataset: is missing")
    assert load_recipe(write(tmp_path, GOOD), [block]).data.source == "hub"  # what the message says works
    (left,) = problems(tmp_path, GOOD.replace("some/model", "some/model, from_config: null"), "captioner=vit_gpt2")
    assert (
        "it belongs to captioner 'blip' or 'image_text_to_text'; replace the whole block, 'model={KEY: VALUE}'" in left
    )
