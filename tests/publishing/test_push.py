"""Publishing to the loopback Hub with the real client: every family, what is refused, what is left alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from hfcap.errors import UserError
from hfcap.publishing.push import _refuse_foreign_code, check_may_publish, publish, push_folder
from hfcap.publishing.staging import stage_files
from hfcap.publishing.verify import verify, verify_folder
from hfcap.run_directory.paths import RunDirectory
from tests.hub_server import Hub
from tests.publishing.run_builder import adapter_run, build_run


def test_a_staged_adapter_captions_like_the_run_on_its_base_from_the_hub(run: RunDirectory, hub: Hub) -> None:
    """As before a push; test_families.py proves adapters after it, test_requirements.py the whole of `publish`."""
    base = publish(run, "alice/base", verified=False)
    adapter_run(run, {"id": "alice/base", "revision": base.commit, "role": "captioner", "local": False})
    folder = stage_files(run, repo_id="alice/tiny")
    files = {path.name for path in folder.iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    report = verify_folder(folder, "alice/tiny")
    report.require()
    assert [comparison.agrees for comparison in report.comparisons] == [True, True]


def test_a_second_publication_of_the_same_run_makes_no_commit(run: RunDirectory, hub: Hub) -> None:
    publish(run, "alice/tiny", verified=False)
    before = hub.store.repository("alice/tiny").history("main")
    result = publish(run, "alice/tiny", verified=False)
    assert hub.store.repository("alice/tiny").history("main") == before
    assert result.uploaded == [] and result.commit == before[0]["id"]


def test_a_dry_run_needs_neither_network_nor_token(
    run: RunDirectory, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = publish(run, "alice/tiny", dry_run=True)
    assert hub.requests == []
    assert result.dry_run and result.uploaded == [] and result.commit is None
    sizes = {file.path: file.size for file in result.files}
    assert sizes["model.safetensors"] == (run.model / "model.safetensors").stat().st_size
    assert "model.safetensors" in str(result) and "alice/tiny" in str(result)


def test_private_stays_private(run: RunDirectory, hub: Hub) -> None:
    publish(run, "alice/tiny", private=True, verified=False)
    assert hub.store.repository("alice/tiny").settings()["private"] is True
    publish(run, "alice/open", private=False, verified=False)
    with pytest.raises(UserError, match="public"):
        publish(run, "alice/open", private=True, verified=False)


def test_a_private_repository_is_not_verified_for_others(
    run: RunDirectory, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(run, "alice/tiny", private=True, verified=False)
    monkeypatch.setenv("HF_TOKEN", hub.mallory)
    with pytest.raises(UserError, match="no such repository"):
        verify("alice/tiny")


def test_a_pull_request_leaves_the_branch_alone(run: RunDirectory, hub: Hub) -> None:
    publish(run, "alice/tiny", verified=False)
    main = hub.store.repository("alice/tiny").resolve("main")
    change_scores(run, 1.5)
    result = publish(run, "alice/tiny", create_pr=True, verified=False)
    assert result.revision == "refs/pr/1" and str(result.url).endswith("/discussions/1")
    assert hub.store.repository("alice/tiny").resolve("main") == main
    again = publish(run, "alice/tiny", create_pr=True, verified=False)
    assert again.revision == "refs/pr/1", "the same content opens no second pull request"


def test_another_branch(run: RunDirectory, hub: Hub) -> None:
    publish(run, "alice/tiny", verified=False)
    with pytest.raises(UserError, match="no such revision"):
        publish(run, "alice/tiny", revision="v2", verified=False)
    repository = hub.store.repository("alice/tiny")
    main = repository.resolve("main")
    repository.set_ref("refs/heads/v2", main)
    change_scores(run, 1.5)
    assert publish(run, "alice/tiny", revision="v2", verified=False).commit == repository.resolve("v2") != main
    assert repository.resolve("main") == main


def test_worse_scores_do_not_replace_better_ones(run: RunDirectory, hub: Hub) -> None:
    change_scores(run, 1.2)
    publish(run, "alice/tiny", verified=False)
    change_scores(run, 0.9)
    with pytest.raises(UserError, match=r"120\.0.*90\.0.*--force"):
        publish(run, "alice/tiny", verified=False)
    publish(run, "alice/tiny", force=True, verified=False)
    published = json.loads(hub.store.repository("alice/tiny").content("main", "scores/test.json"))
    assert published["metrics"]["cider"] == 0.9


@pytest.mark.parametrize("content", [b"[1, 2]", b'{"metrics": 5}', b"no JSON"])
def test_a_score_file_that_is_none_of_ours_stops_nothing(run: RunDirectory, hub: Hub, content: bytes) -> None:
    from huggingface_hub import HfApi

    HfApi().create_repo("alice/tiny")
    HfApi().upload_file(path_or_fileobj=content, path_in_repo="scores/test.json", repo_id="alice/tiny")
    assert "scores/test.json" in publish(run, "alice/tiny", verified=False).uploaded


def test_stale_weights_go_and_other_peoples_files_stay(run: RunDirectory, hub: Hub) -> None:
    from huggingface_hub import HfApi

    publish(run, "alice/tiny", verified=False)
    api = HfApi()
    for path in ("model-00001-of-00002.safetensors", "notes.md"):
        api.upload_file(path_or_fileobj=b"old", path_in_repo=path, repo_id="alice/tiny")
    result = publish(run, "alice/tiny", verified=False)
    assert result.deleted == ["model-00001-of-00002.safetensors"]
    assert "notes.md" in hub.store.repository("alice/tiny").tree("main")


def test_sections_written_on_the_hub_survive(run: RunDirectory, hub: Hub) -> None:
    from huggingface_hub import HfApi

    publish(run, "alice/tiny", verified=False)
    card = hub.store.repository("alice/tiny").content("main", "README.md").decode()
    edited = card + "\n## Thanks\n\nTo the club.\n"
    HfApi().upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id="alice/tiny")
    change_scores(run, 1.9)
    publish(run, "alice/tiny", verified=False)
    new = hub.store.repository("alice/tiny").content("main", "README.md").decode()
    assert "## Thanks\n\nTo the club." in new and "**190.0**" in new


def test_who_may_publish(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_may_publish("alice/x") == "alice"
    assert check_may_publish("club/x") == "alice"
    for repo_id, message in (
        ("museum/x", "may not write"),
        ("mallory/x", "may not write"),
        ("x", "lacks the namespace"),
    ):
        with pytest.raises(UserError, match=message):
            check_may_publish(repo_id)
    monkeypatch.setenv("HF_TOKEN", hub.rita)
    with pytest.raises(UserError, match="may only read"):
        check_may_publish("alice/x")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    with pytest.raises(UserError, match="does not accept the token"):
        check_may_publish("alice/x")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="not signed in"):
        check_may_publish("alice/x")
    assert hub.calls("create_repo") == 0


def test_a_wrong_repository_name_is_found_before_anything_is_staged(run: RunDirectory, hub: Hub) -> None:
    with pytest.raises(UserError, match="--repo-id"):
        publish(run, "alice/../tiny")
    assert not run.publish.exists() and hub.requests == []


def test_verification_runs_a_repositorys_own_code_only_if_trusted(hub: Hub, tmp_path: Path) -> None:
    push_folder(stage_files(build_run(tmp_path / "run", "clip_prefix")), "alice/tiny", private=False)
    with pytest.raises(UserError, match="--trust-remote-code"):
        verify("alice/tiny")


def test_a_strangers_run_runs_no_code_of_its_own_unless_trusted(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build_run(tmp_path / "run", "clip_prefix", model={"trust_remote_code": True})
    monkeypatch.chdir(tmp_path)
    verified = []

    def verification(*_: object) -> None:
        verified.append(True)
        raise InterruptedError

    monkeypatch.setattr("hfcap.publishing.push.verify_folder", verification)

    def reaches_verification(trust_remote_code: bool = False) -> bool:
        with pytest.raises((InterruptedError, UserError)) as outcome:
            publish(run, "alice/tiny", trust_remote_code=trust_remote_code)
        refused = isinstance(outcome.value, UserError)
        assert not refused or "give --trust-remote-code" in str(outcome.value)
        return not refused

    assert reaches_verification()  # hfcap's own modelling code
    code = run.model / "modeling_clip_prefix.py"
    original = code.read_text()
    code.write_text(f"open('owned', 'w')\n{original}")
    assert not reaches_verification()
    assert reaches_verification(trust_remote_code=True)
    code.write_text(original)
    config = json.loads((run.model / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = f"mallory/code--{config['auto_map']['AutoConfig']}"
    (run.model / "config.json").write_text(json.dumps(config))
    assert not reaches_verification()
    assert len(verified) == 2 and not (tmp_path / "owned").exists() and hub.calls("create_repo") == 0


def test_code_of_an_adapters_base_counts_as_somebody_elses(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "mallory/base"}')
    _refuse_foreign_code(folder, "blip")
    (folder / "hfcap.json").write_text('{"brings_code": "true"}')
    with pytest.raises(UserError, match="the code of the adapter's base model"):
        _refuse_foreign_code(folder, "blip")


def change_scores(run: RunDirectory, cider: float) -> None:
    scores = json.loads(run.scores("test").read_text())
    scores["metrics"]["cider"] = cider
    run.scores("test").write_text(json.dumps(scores))


def test_a_hostile_run_publishes_harmlessly(hub: Hub, tmp_path: Path) -> None:
    captions = [
        "<script>alert(1)</script> <img src=x onerror=alert(1)>",
        "---\nlicense: mit\n--- # heading",
        "{{ 7 * 7 }} {% include '/etc/passwd' %} ${HOME}",
        "[click](javascript:alert(1)) | cell | ![x](http://evil.example/x.png)",
        "!!python/object/apply:os.system ['id']",
        "name\u2028with \x1b[31m line\r\nbreaks",
    ]
    run = build_run(tmp_path / "run", captions=captions, publish={"dataset_name": "a\n---\nlicense: mit"})
    rows = [json.loads(line) for line in run.predictions("test").read_text().splitlines()]
    hostile = [{**row, "file_name": f"../../{number}\n---\n<b>.jpg"} for number, row in enumerate(rows)]
    run.predictions("test").write_text("".join(json.dumps(row) + "\n" for row in hostile))
    run.recipe.write_text(run.recipe.read_text().replace("/srv/nobody/images", "../../../etc"))
    publish(run, "alice/tiny", verified=False)
    repository = hub.store.repository("alice/tiny")
    assert all(re.fullmatch(r"[\w./-]+", path) and ".." not in path for path in repository.tree("main"))
    card = repository.content("main", "README.md").decode()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"
    assert "<script" not in card and "<img" not in card and "{{ 7" not in card and "[click](" not in card
    assert "../" not in repository.content("main", "recipe.yaml").decode()
    assert "../" not in repository.content("main", "predictions/test.jsonl").decode()
