"""What goes into publish/: an allow-list, no paths of this machine, no secrets, all or nothing."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

from hfcap.errors import UserError
from hfcap.publishing.secrets import redact, scan
from hfcap.publishing.staging import stage_files, staged_files
from hfcap.recipe.loading import load_recipe
from hfcap.run_directory.paths import RunDirectory
from tests.publishing.run_builder import adapter_run, build_run, write_json


def quick_stage(run: RunDirectory) -> Path:
    return stage_files(run, verifiable=False)


def test_exactly_the_listed_files(run: RunDirectory) -> None:
    for unwanted in (
        "optimizer.pt",
        "training_args.bin",
        "pytorch_model.bin",
        "trainer_state.json",
        "notes.txt",
        ".env",
    ):
        (run.model / unwanted).write_bytes(b"no")
    (run.model / "checkpoint-5").mkdir()
    (run.model / "checkpoint-5" / "model.safetensors").write_bytes(b"no")
    assert {file.path for file in staged_files(stage_files(run))} == {
        "README.md", "recipe.yaml", "training_curve.png", "config.json", "generation_config.json", "hfcap.json",
        "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
        "scores/test.json", "scores/test.blank_images.json", "scores/test.most_frequent_caption.json",
        "predictions/test.jsonl", "verification/ball.png", "verification/houses.png", "verification/captions.json",
        "verification/files.json",
    }  # fmt: skip


def test_custom_architectures_bring_their_code(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", "clip_prefix")
    assert "modeling_clip_prefix.py" in {file.path for file in staged_files(quick_stage(run))}
    assert "trust_remote_code=True" in (run.publish / "README.md").read_text()


def test_only_code_that_loading_needs_goes_along(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", "clip_prefix")
    (run.model / "my_training_script.py").write_text("print('not for others')")
    (run.model / "ti\nny.py").write_text("")
    staged = {file.path for file in staged_files(quick_stage(run))}
    assert {path for path in staged if path.endswith(".py")} == {"modeling_clip_prefix.py", "modeling_image_encoder.py"}
    (run.model / "modeling_image_encoder.py").unlink()
    with pytest.raises(UserError, match=r"modeling_image_encoder\.py: modelling code"):
        quick_stage(run)


def test_weights_that_are_no_safetensors_are_refused(run: RunDirectory) -> None:
    weights = run.model / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (
        pickle.dumps({"a": 1}),
        content[:-10],
        content + b"x",
        b"",
        b"\xff" * 100,
        b"\x02" + b"\0" * 7 + b"[]",
    ):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match=r"no complete safetensors|is not the file that captioned"):
            quick_stage(run)
    assert not run.publish.exists()


def test_no_path_of_this_machine_in_any_file(run: RunDirectory) -> None:
    config = json.loads((run.model / "config.json").read_text())
    write_json(
        run.model / "config.json",
        {**config, "_name_or_path": str(run.path), "vision_config": {"_name_or_path": "../x/y"}},
    )
    folder = quick_stage(run)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for private in ("/srv/nobody", str(run.path), str(Path.home()) + "/", str(Path.cwd())):
            assert private.encode() not in content, (path, private)
    published = load_recipe(folder / "recipe.yaml")
    assert published.data.model_dump()["root"] == "path/to/images"
    assert published.train == load_recipe(run.recipe).train
    assert json.loads((folder / "scores" / "test.json").read_text())["signature"]["file"] == "path/to/df.json"


def test_an_adapter_names_its_base_on_the_hub_and_its_revision(run: RunDirectory) -> None:
    adapter_run(run, {"id": "alice/base", "revision": "abc123", "role": "captioner", "local": False})
    folder = quick_stage(run)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("alice/base", "abc123")
    assert "adapter_model.safetensors" in {file.path for file in staged_files(folder)}
    card = (folder / "README.md").read_text()
    assert 'from_pretrained("alice/base", revision="abc123")' in card and "PeftModel.from_pretrained(base" in card
    assert "base_model_relation: adapter" in card and "base_model: alice/base" in card


def test_an_adapter_of_a_local_base_needs_the_hub_id(run: RunDirectory, tmp_path: Path) -> None:
    local = {"id": "/srv/nobody/blip", "revision": None, "role": "captioner", "local": True}
    adapter_run(run, local)
    with pytest.raises(UserError, match=r"publish\.base_model"):
        quick_stage(run)
    text = run.recipe.read_text()
    assert "base_model: null" in text
    run.recipe.write_text(text.replace("base_model: null", "base_model: Salesforce/blip-image-captioning-base"))
    config = (quick_stage(run) / "adapter_config.json").read_text()
    assert "Salesforce/blip-image-captioning-base" in config and "nobody" not in config


def test_an_adapter_of_a_base_that_only_the_run_has_must_be_merged(run: RunDirectory, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    shutil.copytree(run.model, merged)
    adapter_run(run, {"id": "google/vit", "revision": None, "role": "vision", "local": False})
    shutil.copytree(merged, run.base_model)
    with pytest.raises(UserError, match="hfcap merge"):
        quick_stage(run)
    folder = stage_files(run, model=merged, verifiable=False)
    assert (folder / "model.safetensors").is_file() and not (folder / "adapter_config.json").exists()


def test_large_weights_are_cut_into_shards_that_load(run: RunDirectory, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    run.recipe.write_text(run.recipe.read_text().replace("max_shard_size: 5GB", "max_shard_size: 100KB"))
    folder = quick_stage(run)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) >= 3
    assert not (folder / "model.safetensors").exists()
    whole, cut = (AutoModelForImageTextToText.from_pretrained(path).state_dict() for path in (run.model, folder))
    assert set(whole) == set(cut) and all(bool((whole[name] == cut[name]).all()) for name in whole)


@pytest.mark.parametrize(
    ("file", "secret"),
    [
        ("predictions/test.jsonl", "hf_" + "aB3" * 12),
        ("README.md", "AKIA" + "ABCDEFGH12345678"),
        ("model/config.json", "sk-" + "a1" * 20),
        ("recipe.yaml", "https://me:secret@example.org/x"),
    ],
)
def test_a_secret_in_any_file_stops_the_publication(run: RunDirectory, file: str, secret: str) -> None:
    quick_stage(run)
    before = staged_files(run.publish)
    if file == "predictions/test.jsonl":
        rows = run.predictions("test").read_text().splitlines()
        run.predictions("test").write_text(
            "\n".join([json.dumps({**json.loads(rows[0]), "caption": secret}), *rows[1:]])
        )
    elif file == "model/config.json":
        config = json.loads((run.model / "config.json").read_text())
        write_json(run.model / "config.json", {**config, "note": secret})
    elif file == "recipe.yaml":
        run.recipe.write_text(run.recipe.read_text().replace("/srv/nobody/images", secret))
    else:
        run.card.write_text(f"---\nmine: {secret}\n---\n")
    with pytest.raises(UserError, match="should stay private") as caught:
        quick_stage(run)
    assert secret not in str(caught.value)
    assert staged_files(run.publish) == before, "the earlier staging folder stays as it was"


def test_the_environments_own_secrets_are_found_and_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2)
    (tmp_path / "notes.md").write_text("one\nkey 0123456789abcdef0123456789abcdef")
    (tmp_path / "tokenizer.json").write_text('{"/home/x": 1, "hf_": 2}')
    [finding] = [found for found in scan(tmp_path) if "secret" in found.kind]
    assert (finding.file, finding.line) == ("notes.md", 2)
    assert [found.file for found in scan(tmp_path)] == ["notes.md"]
    assert redact("key 0123456789abcdef0123456789abcdef") == "key [secret]"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"a": "\\/home\\/me\\/x"}'),
        ("a.json", '{"a": "\\u0068f_' + "aB3" * 12 + '"}'),
        ("a.py", "token='myhf_" + "aB3" * 12 + "'"),
        ("a.md", "see file:///data/me/model"),
        ("a.md", "PATH=/usr/bin:/home/me/bin"),
        ("a.yaml", "root: C:/Users/me/images"),
        ("a.md", "https://bucket.example/x.jpg?X-Amz-Signature=" + "0af3" * 10),
        ("a.py", "headers = {'Authorization': 'Bearer abcdefghijklmnop'}"),
        ("a.json", '{"api_key": "' + "x1" * 12 + '"}'),
        ("a.md", "glpat-" + "a1B2" * 6),
        ("a.md", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"),
        ("a.md", "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("sub/a.txt", "ghp_" + "a1B2" * 9),
    ],
)
def test_hostile_hiding_places_are_found(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert [(found.file, found.line) for found in scan(tmp_path)] == [(name, 1)]


@pytest.mark.parametrize(
    "content",
    [
        "a man at home/work, 50/50, and/or a dog",
        "https://huggingface.co/data/sets and https://example.org/home/page?id=12",
        "the secret: a password is written on the wall",
        "shf_ or hf_hub_download(repo_id)",
        '{"special_tokens": ["<s>", "</s>"], "path": "path/to/images"}',
    ],
)
def test_ordinary_text_is_no_finding(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(content)
    assert scan(tmp_path) == []


def test_this_machines_secrets_are_found_in_images_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "quite-a-secret-value")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\0tEXt quite-a-secret-value")
    assert [found.file for found in scan(tmp_path)] == ["a.png"]


def test_free_text_in_weights_is_scanned(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"from": "/home/somebody/model"})
    assert [found.kind for found in scan(tmp_path)] == ["a path of this machine"]


def test_wrong_model_folders(run: RunDirectory, tmp_path: Path) -> None:
    weights = run.model / "model.safetensors"
    outside = tmp_path / "outside.safetensors"
    shutil.move(weights, outside)
    weights.symlink_to(outside)
    with pytest.raises(UserError, match="outside the model folder"):
        quick_stage(run)
    weights.unlink()
    (run.model / "pytorch_model.bin").write_bytes(b"no")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        quick_stage(run)
    shutil.rmtree(run.model)
    with pytest.raises(UserError, match="hfcap train"):
        quick_stage(run)
    assert not run.publish.exists()
