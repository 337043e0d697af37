"""An ensemble goes up with its members in folders of their own (test_families.py loads it as a stranger)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfcap.captioners.ensemble import Ensemble
from hfcap.errors import UserError
from hfcap.publishing.staging import stage_files, staged_files
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.loading import dump_recipe, recipe_from_mapping
from hfcap.run_directory.paths import RunDirectory
from tests.captioners.helpers import build
from tests.publishing.run_builder import recipe_values, write_records


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path / "tiny-ensemble")
    captioner = build("ensemble")
    assert isinstance(captioner, Ensemble)
    found.path.mkdir()
    recipe = recipe_from_mapping(recipe_values("ensemble"), "test")
    found.recipe.write_text(dump_recipe(recipe))
    captioner.save(found.model, GenerateOptions(num_beams=2, max_new_tokens=8))
    write_records(found, ["a red ball"] * 3)
    summary = json.loads(found.summary.read_text())
    found.summary.write_text(json.dumps({**summary, "method": "fitted", **captioner.fitted_facts()}))
    return found


def test_members_go_up_as_whole_models_and_the_card_lists_them(run: RunDirectory) -> None:
    stage_files(run, verifiable=False)
    names = {file.path for file in staged_files(run.publish)}
    for member in ("member_0", "member_1"):
        assert {f"{member}/config.json", f"{member}/model.safetensors", f"{member}/modeling_clip_prefix.py"} <= names
    card = (run.publish / "README.md").read_text()
    assert "| Member | Captioner | Weight | Revision | Licence |" in card and "`clip_prefix`" in card


def test_members_that_cannot_be_published_stop_the_staging_and_are_named(run: RunDirectory) -> None:
    note = run.model / "hfcap.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "unpublishable": "member 1 (x)"}))
    with pytest.raises(UserError, match=r"cannot be published: member 1 \(x\)"):
        stage_files(run, verifiable=False)


def test_only_listed_files_of_members_are_staged(run: RunDirectory) -> None:
    for name in ("optimizer.pt", "notes.txt", "pytorch_model.bin"):
        (run.model / "member_0" / name).write_bytes(b"no")
    (run.model / "elsewhere").mkdir()
    (run.model / "elsewhere" / "model.safetensors").write_bytes(b"no")
    names = {file.path for file in staged_files(stage_files(run, verifiable=False))}
    assert not {name for name in names if name.endswith((".pt", ".txt", ".bin")) or "elsewhere" in name}
