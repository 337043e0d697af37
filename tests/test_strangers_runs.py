"""Nothing executable is taken from a run directory: no programs, no model code, and children get no secrets."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfcap.children import environment_without_secrets, run_program
from hfcap.run_directory.paths import RunDirectory
from tests.cli.command_line import Hfcap, assert_refused, write_recipe
from tests.cli.conftest import hfcap as hfcap
from tests.data.sample_images import write_jpeg

SECRETS = {
    "HF_TOKEN": "hf_" + "a" * 34,
    "WANDB_API_KEY": "0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "secretsecretsecret",
    "DATABASE_PASSWORD": "hunter2",
    "HARMLESS_NAME": "hf_" + "b" * 34,
    "ANOTHER": "ghp_" + "c" * 36,
}

# Stands in for Java: notes its environment, and scores each image 0.5.
_JAVA = """#!{python}
import json, os, pathlib, sys
pathlib.Path(__file__).resolve().with_name("was_run.json").write_text(json.dumps(dict(os.environ)))
arguments = sys.argv[1:]
question = json.load(open(arguments[arguments.index("-jar") + 2]))
rows = [{{"image_id": row["image_id"], "scores": {{"All": {{"f": 0.5}}}}}} for row in question]
json.dump(rows, open(arguments[arguments.index("-out") + 1], "w"))
"""


def stand_in(folder: Path) -> tuple[Path, Path]:
    """A program that calls itself Java, and a jar with its models; returns both."""
    folder.mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "lib" / "stanford-corenlp-3.6.0-models.jar").write_bytes(b"stand-in")
    jar, java = folder / "spice-1.0.jar", folder / "java"
    jar.write_bytes(b"stand-in")
    java.write_text(_JAVA.format(python=sys.executable))
    java.chmod(0o755)
    return jar, java


@pytest.fixture(scope="module")
def finished(forking: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, as somebody else may have sent it."""
    folder = tmp_path_factory.mktemp("strangers")
    path = write_recipe(folder, score={"baselines": [], "metrics": ["rouge_l"]})
    run_hfcap(forking, "score", path)
    return folder / "runs" / "tiny"


def run_hfcap(python: str, *arguments: Any) -> None:
    done = run_program([python, "-m", "hfcap", *map(str, arguments)], timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunDirectory:
    shutil.copytree(finished, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def edit(run: RunDirectory, **blocks: Any) -> None:
    values = yaml.safe_load(run.recipe.read_text())
    for name, block in blocks.items():
        values[name] = {**values[name], **block}
    run.recipe.write_text(yaml.safe_dump(values))


# ---- programs ------------------------------------------------------------------------------------------------------


def test_a_run_chooses_no_programs(
    run: RunDirectory, tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once `hfcap score RUN` ran what the recipe called Java, with HF_TOKEN in its environment."""
    jar, java = stand_in(tmp_path / "evil")
    monkeypatch.delenv("HFCAP_SPICE_JAR", raising=False)
    edit(run, score={"metrics": ["spice"], "metric_options": {"spice": {"java": str(java), "jar": str(jar)}}})
    commands: list[tuple[str, ...]] = [("score",), ("card",), ("run",), ("score", "--force"), ("publish", "--dry-run")]
    for command in commands:
        outcome = hfcap(command[0], run.path, *command[1:])
        assert not (tmp_path / "evil" / "was_run.json").exists(), command
        if command[0] != "publish":
            assert outcome.code == 2 and "HFCAP_SPICE_JAR" in outcome.err, outcome.err


def test_who_calls_the_command_may_choose_them(
    run: RunDirectory, tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil_jar, evil_java = stand_in(tmp_path / "evil")
    jar, java = stand_in(tmp_path / "mine")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{java.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HFCAP_SPICE_JAR", str(jar))
    options = {"java": str(evil_java), "jar": str(evil_jar), "memory_gigabytes": 1}
    edit(run, score={"metrics": ["spice"], "metric_options": {"spice": options}})
    outcome = hfcap("score", run.path)
    assert outcome.code == 0, outcome.err
    assert "score.metric_options.spice.java is not used" in outcome.err
    environment = json.loads((tmp_path / "mine" / "was_run.json").read_text())
    assert not (tmp_path / "evil" / "was_run.json").exists()
    # Children of this process know none of its secrets, by whatever name.
    assert not SECRETS.keys() & environment.keys() and "PATH" in environment
    assert json.loads(run.scores("test").read_text())["metrics"]["spice"] == 0.5
    # The programs do not belong to what a score depends on: nothing is scored again without them.
    scored = run.scores("test").stat().st_mtime_ns
    (tmp_path / "mine" / "was_run.json").unlink()
    assert hfcap("score", run.path, "--accept-changes").code == 0
    assert run.scores("test").stat().st_mtime_ns == scored and not (tmp_path / "mine" / "was_run.json").exists()
    override = f"score.metric_options.spice.java={evil_java}"
    assert hfcap("run", run.path, override, "score.n_resamples=7").code == 0
    assert (tmp_path / "evil" / "was_run.json").exists()


def test_an_honest_relative_java_is_found(tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program works beside its jar; a relative path is relative to where the command was given."""
    stand_in(tmp_path / "tools")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "predictions.json").write_text('[{"image_id": 1, "caption": "a dog"}]')
    (tmp_path / "references.json").write_text('{"1": ["a dog"]}')
    outcome = hfcap(
        *("score", "predictions.json", "references.json", "--metrics", "spice", "-o", "scores.json"),
        *("--option", "spice.java=tools/java", "--option", "spice.jar=tools/spice-1.0.jar"),
        *("--option", "spice.cache=kept", "--n-resamples", 0),
    )
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "tools" / "was_run.json").is_file() and (tmp_path / "kept").is_dir()
    recipe = write_recipe(
        tmp_path,
        score={
            "metrics": ["spice"],
            "baselines": [],
            "metric_options": {"spice": {"java": "tools/java", "jar": "tools/spice-1.0.jar"}},
        },
    )
    (tmp_path / "tools" / "was_run.json").unlink()
    assert hfcap("score", recipe).code == 0  # a recipe file is the word of whoever names it
    assert (tmp_path / "tools" / "was_run.json").is_file()


def test_children_get_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KEPT", "value")
    kept = environment_without_secrets()
    assert not SECRETS.keys() & kept.keys() and kept["KEPT"] == "value" and kept["PATH"] == os.environ["PATH"]
    done = run_program([sys.executable, "-c", "import os, json; print(json.dumps(dict(os.environ)))"])
    assert not SECRETS.keys() & json.loads(done.stdout).keys()


def test_programs_are_started_in_one_place() -> None:
    """Whoever starts one elsewhere has to think of the secrets again."""
    package = Path(__file__).parents[1] / "hfcap"
    words = ("subprocess.run(", "Popen(", "os.system(", "os.exec", "os.spawn", "subprocess.check_output(")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(word in path.read_text() for word in words)
    }
    assert found == {"children.py"}


# ---- code of the model ---------------------------------------------------------------------------------------------


@pytest.fixture
def coded(run: RunDirectory, tmp_path: Path) -> Path:
    """Let the run's recipe, and its model, bring code; returns the file that the code writes when it runs."""
    marker, encoder = tmp_path / "was_run", tmp_path / "encoder"
    encoder.mkdir()
    code = f"from pathlib import Path\nPath({str(marker)!r}).write_text('yes')\nraise ValueError('code ran')\n"
    automatic = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    for folder in (encoder, run.model):
        (folder / "evil.py").write_text(code)
    (encoder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": automatic}))
    config = json.loads((run.model / "config.json").read_text())
    changed = {**config, "model_type": "evil", "auto_map": {**automatic, "AutoModelForImageTextToText": "evil.Model"}}
    (run.model / "config.json").write_text(json.dumps(changed))
    values = yaml.safe_load(run.recipe.read_text())
    values["model"]["trust_remote_code"] = True
    values["model"]["encoder"], values["model"]["encoder_config"] = str(encoder), None
    run.recipe.write_text(yaml.safe_dump(values))
    return marker


def test_no_command_runs_the_code_of_a_runs_model(run: RunDirectory, coded: Path, tmp_path: Path, hfcap: Hfcap) -> None:
    """Once `hfcap doctor RUN --steps 0` did."""
    write_jpeg(tmp_path / "one.jpg", "red")
    gated: list[tuple[str, ...]] = [
        ("run",),
        ("train", "--force"),
        ("caption",),
        ("score",),
        ("card",),
        ("doctor", "--steps", "0"),
        ("publish", "--dry-run"),
    ]
    for command in gated:
        for target in (run.path, run.recipe):
            refused = hfcap(command[0], target, *command[1:])
            assert_refused(refused, "model.trust_remote_code of its recipe", "--trust-remote-code")
            assert not coded.exists(), command
    others: list[tuple[Any, ...]] = [
        ("caption", run.path, tmp_path / "one.jpg"),
        ("explain", run.path, tmp_path / "one.jpg", "-o", tmp_path / "maps.png"),
        ("merge", run.path, "-o", tmp_path / "merged"),
        ("compare", run.path),
        ("search", "red", run.path),
        ("card", run.path, "--check"),
    ]
    for arguments in others:
        hfcap(*arguments)
        assert not coded.exists(), arguments


@pytest.mark.parametrize("command", ["run", "train", "doctor"])
def test_the_option_reaches_the_base_model_of_a_recipe(
    command: str, run: RunDirectory, coded: Path, tmp_path: Path, hfcap: Hfcap
) -> None:
    values = yaml.safe_load(run.recipe.read_text())
    values["model"]["trust_remote_code"] = False
    recipe = tmp_path / "own.yaml"
    recipe.write_text(yaml.safe_dump({**values, "name": "another", "output_dir": str(tmp_path)}))
    refused = hfcap(command, recipe)
    assert refused.code == 2 and "if you trust it, give --trust-remote-code" in refused.err and not coded.exists()
    hfcap(command, recipe, "--trust-remote-code")
    assert coded.exists()


def test_code_for_generation_is_not_run(run: RunDirectory, tmp_path: Path, hfcap: Hfcap) -> None:
    """transformers takes `custom_generate/generate.py` next to a model for its `generate`."""
    marker = tmp_path / "was_run"
    (run.model / "custom_generate").mkdir()
    code = f"from pathlib import Path\nPath({str(marker)!r}).write_text('yes')\ndef generate(**_): ...\n"
    (run.model / "custom_generate" / "generate.py").write_text(code)
    write_jpeg(tmp_path / "one.jpg", "red")
    for arguments in (("caption", run.path, tmp_path / "one.jpg"), ("caption", run.path, "--force")):
        outcome = hfcap(*arguments)
        assert "Traceback" not in outcome.err and not marker.exists(), outcome


def test_an_adapter_imports_nothing(tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT imports a module that `adapter_config.json` names for Megatron's layers."""
    run_hfcap(sys.executable, "train", write_recipe(tmp_path, method="lora", family="blip"))
    folder = tmp_path / "runs" / "tiny" / "model"
    marker, modules = tmp_path / "was_run", tmp_path / "modules"
    modules.mkdir()
    (modules / "evil_core.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).write_text('yes')\n")
    monkeypatch.syspath_prepend(str(modules))
    config = json.loads((folder / "adapter_config.json").read_text())
    changed = {**config, "megatron_config": {"a": 1}, "megatron_core": "evil_core"}
    (folder / "adapter_config.json").write_text(json.dumps(changed))
    write_jpeg(tmp_path / "one.jpg", "red")
    assert_refused(hfcap("caption", tmp_path / "runs" / "tiny", tmp_path / "one.jpg"), "adapter does not fit")
    assert not marker.exists()


@pytest.mark.parametrize("name", [".lock", "log.jsonl", "predictions/test.jsonl.part-0123456789abcdef-0"])
def test_files_that_are_written_where_they_lie_are_no_links(
    name: str, run: RunDirectory, tmp_path: Path, hfcap: Hfcap
) -> None:
    target = tmp_path / "precious"
    target.write_text("mine\n")
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(target)
    assert_refused(hfcap("score", run.path, "--force"), f"{run.path / name}: is a link; put the file itself there")
    assert target.read_text() == "mine\n"


def test_with_the_option_it_runs(run: RunDirectory, coded: Path, hfcap: Hfcap) -> None:
    """The test above could not fail otherwise."""
    outcome = hfcap("doctor", run.path, "--steps", "0", "--trust-remote-code")
    assert coded.exists() and outcome.code == 2, outcome.err
