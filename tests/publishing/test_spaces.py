"""Metrics as Spaces, and what is refused; the demo's Space is tested with all families (test_families.py)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import pytest
from huggingface_hub import HfApi, snapshot_download
from packaging.requirements import Requirement

import hfcap
from hfcap import registry
from hfcap.app.space import stage_demo
from hfcap.errors import UserError
from hfcap.publishing.own_wheel import WHEEL_NAME
from hfcap.publishing.push import push_folder
from hfcap.publishing.spaces import stage_metric
from hfcap.publishing.staging import stage_files
from hfcap.run_directory.paths import RunDirectory
from scripts.hub_server.card_rules import check_card
from tests.hub_server import Hub


@pytest.mark.parametrize("name", [*registry.names("metrics"), "caption_suite"])
def test_every_metric_can_be_a_space(name: str, tmp_path: Path) -> None:
    folder = stage_metric(name, tmp_path / name, f"alice/{name}")
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.py",
        "app.py",
        "requirements.txt",
        "README.md",
        WHEEL_NAME,
        "written-by-hfcap.txt",
    }
    assert check_card((folder / "README.md").read_text(), "space") == ([], [])
    needed = {Requirement(line).name for line in (folder / "requirements.txt").read_text().splitlines()}
    assert {"evaluate", "numpy", "regex"} <= needed and "hfcap" not in needed
    assert ("pycocoevalcap" in needed) == (name == "meteor")
    compile((folder / "app.py").read_text(), "app.py", "exec")


def test_a_published_metric_computes(hub: Hub, tmp_path: Path) -> None:
    result = push_folder(stage_metric("cider", tmp_path / "cider", "alice/cider"), "alice/cider", False, kind="space")
    assert result.url == f"{hub.endpoint}/spaces/alice/cider"
    folder = snapshot_download("alice/cider", repo_type="space", local_dir=tmp_path / "downloaded")
    metric = evaluate.load(f"{folder}/cider.py", cache_dir=str(tmp_path / "cache"))
    captions = {"a": "a red ball", "b": "two dogs run"}
    values = metric.compute(
        predictions=list(captions.values()), references=[[text] for text in captions.values()], image_ids=list(captions)
    )
    assert values["cider"] == pytest.approx(10.0 * 3 / 4)  # three of four n-gram lengths exist, and agree
    again = push_folder(stage_metric("cider", tmp_path / "cider", "alice/cider"), "alice/cider", False, kind="space")
    assert again.uploaded == [] and again.commit == result.commit


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=200, check=False, **options
    )


def test_a_stranger_installs_what_the_metric_s_space_says(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_folder(stage_metric("cider", tmp_path / "cider", "alice/cider"), "alice/cider", False, kind="space")
    folder = Path(snapshot_download("alice/cider", repo_type="space", local_dir=tmp_path / "downloaded"))
    shown = re.search(r"^pip install (\S+)$", (folder / "README.md").read_text(), re.MULTILINE)
    assert shown is not None
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "hfcap", None)
        # Not evaluate's own words, which are to install hfcap from the package index.
        with pytest.raises(ImportError, match=f"^cider needs hfcap: pip install {re.escape(shown[1])}$"):
            evaluate.load(str(folder / "cider.py"), cache_dir=str(tmp_path / "cache"))
    site = tmp_path / "site"
    # pip checks the hash of every file.
    done = python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), shown[1])
    assert done.returncode == 0, done.stderr
    listing = "import sys; sys.path.insert(0, sys.argv.pop()); import hfcap.cli as cli; print(cli.__file__); cli.main()"
    said = python("-I", "-c", listing, "list", "recipes", str(site), cwd=tmp_path)
    assert said.stdout.splitlines()[:1] == [f"{site}/hfcap/cli/__init__.py"], said.stderr
    assert "quickstart" in said.stdout.splitlines()  # the recipes, a link in a checkout, came along
    assert (site / f"hfcap-{hfcap.__version__}.dist-info" / "licenses" / "LICENSE").is_file()


def test_a_metric_s_space_needs_to_know_the_dependencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hfcap, "__version__", "99.0")
    with pytest.raises(UserError, match=r"hfcap 99\.0 is installed as .*pip install -e \."):
        stage_metric("cider", tmp_path / "new", "a/cider")


def test_the_page_of_a_metric_s_space_needs_no_installed_hfcap(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    folder = stage_metric("cider", tmp_path / "cider", "alice/cider")
    code = """
import sys
import gradio
import app, hfcap
assert not hfcap.__file__.startswith(sys.argv[1]), hfcap.__file__
print(app.score("a red ball\\ntwo dogs run", "a red ball\\ntwo dogs run | some dogs")["cider"] > 0)
for captions, references in (("", ""), ("a", "a\\nb"), ("a", "|")):
    try:
        app.score(captions, references)
    except gradio.Error as error:
        print(error)
"""
    said = python("-c", code, str(Path(hfcap.__file__).parent), cwd=folder)
    assert said.returncode == 0, said.stderr
    first, *refused = said.stdout.splitlines()
    assert first == "True" and len(refused) == 3
    assert ["as many lines" in line for line in refused] == [True, True, False]


def test_what_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for write in (
        lambda folder: stage_metric("cider", folder, "a/cider"),
        lambda folder: stage_demo(["a/b"], folder, "Demo"),
    ):
        with pytest.raises(UserError, match="something else than a staged Space"):
            write(tmp_path / "mine")
    with pytest.raises(UserError, match="did you mean 'cider'"):
        stage_metric("cidre", tmp_path / "new", "a/cidre")
    with pytest.raises(UserError, match="'caption_suite'"):
        stage_metric("everything", tmp_path / "new", "a/everything")
    with pytest.raises(UserError, match="no such repository"):
        stage_demo(["alice/none"], tmp_path / "new", "Demo")
    with pytest.raises(UserError, match=r"the model: .*namespace"):
        stage_demo(["./runs/mine"], tmp_path / "new", "Demo")
    with pytest.raises(UserError, match="given twice"):
        stage_demo(["a/b", "a/b"], tmp_path / "new", "Demo")
    assert not (tmp_path / "new").exists()


def test_the_demo_loads_safetensors_only(hub: Hub, run: RunDirectory, tmp_path: Path) -> None:
    folder = stage_files(run, verifiable=False)
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
