"""Metrics as Spaces, and what is refused; the demo's Space is tested with all families (test_families.py)."""

from __future__ import annotations

import re
from pathlib import Path

import evaluate
import pytest
from huggingface_hub import HfApi, snapshot_download

from hfcap import registry
from hfcap.app.space import stage_demo
from hfcap.errors import UserError
from hfcap.hub_server.card_rules import check_card
from hfcap.publishing.push import push_folder
from hfcap.publishing.spaces import stage_metric
from hfcap.publishing.staging import stage
from hfcap.run_directory import RunDirectory
from tests.hub_server import Hub


@pytest.mark.parametrize("name", [*registry.names("metrics"), "caption_suite"])
def test_every_metric_can_be_a_space(name: str, tmp_path: Path) -> None:
    folder = stage_metric(name, tmp_path / name)
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.py",
        "app.py",
        "requirements.txt",
        "README.md",
        "written-by-hfcap.txt",
    }
    assert check_card((folder / "README.md").read_text(), "space") == ([], [])
    assert "\nhfcap==" in (folder / "requirements.txt").read_text()
    compile((folder / "app.py").read_text(), "app.py", "exec")


def test_a_published_metric_computes(hub: Hub, tmp_path: Path) -> None:
    result = push_folder(stage_metric("cider", tmp_path / "cider"), "alice/cider", private=False, kind="space")
    assert result.url == f"{hub.endpoint}/spaces/alice/cider"
    folder = snapshot_download("alice/cider", repo_type="space", local_dir=tmp_path / "downloaded")
    metric = evaluate.load(f"{folder}/cider.py", cache_dir=str(tmp_path / "cache"))
    captions = {"a": "a red ball", "b": "two dogs run"}
    values = metric.compute(
        predictions=list(captions.values()), references=[[text] for text in captions.values()], image_ids=list(captions)
    )
    assert values["cider"] == pytest.approx(10.0 * 3 / 4)  # three of four n-gram lengths exist, and agree
    again = push_folder(stage_metric("cider", tmp_path / "cider"), "alice/cider", private=False, kind="space")
    assert again.uploaded == [] and again.commit == result.commit


def test_what_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for write in (lambda folder: stage_metric("cider", folder), lambda folder: stage_demo(["a/b"], folder, "Demo")):
        with pytest.raises(UserError, match="something else than a staged Space"):
            write(tmp_path / "mine")
    with pytest.raises(UserError, match="did you mean 'cider'"):
        stage_metric("cidre", tmp_path / "new")
    with pytest.raises(UserError, match="'caption_suite'"):
        stage_metric("everything", tmp_path / "new")
    with pytest.raises(UserError, match="no such repository"):
        stage_demo(["alice/none"], tmp_path / "new", "Demo")
    with pytest.raises(UserError, match=r"the model: .*namespace"):
        stage_demo(["./runs/mine"], tmp_path / "new", "Demo")
    with pytest.raises(UserError, match="given twice"):
        stage_demo(["a/b", "a/b"], tmp_path / "new", "Demo")
    assert not (tmp_path / "new").exists()


def test_the_demo_loads_safetensors_only(hub: Hub, run: RunDirectory, tmp_path: Path) -> None:
    folder = stage(run, verifiable=False)
    push_folder(folder, "alice/tiny", private=False)
    app = (stage_demo(["alice/tiny"], tmp_path / "space", "Demo") / "app.py").read_text()
    assert re.search(
        r'model = AutoModelForImageTextToText\.from_pretrained\("alice/tiny", .*use_safetensors=True\)', app
    )
    api = HfApi()
    api.delete_file("model.safetensors", "alice/tiny")
    api.upload_file(path_or_fileobj=b"no", path_in_repo="pytorch_model.bin", repo_id="alice/tiny")
    with pytest.raises(UserError, match="alice/tiny: has no weights as safetensors"):
        stage_demo(["alice/tiny"], tmp_path / "other", "Demo")
