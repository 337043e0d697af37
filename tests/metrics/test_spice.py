"""The border to SPICE's Java program, with a stand-in for it: the real one needs models that are not on PyPI."""

import json
import stat
import sys
from pathlib import Path

import pytest

from hfcap.errors import UserError, WorkError
from hfcap.metrics.spice import Spice, parse_spice, spice_command
from hfcap.metrics.suite import DEFAULT_METRICS, CaptionSuite, build_metric

# Writes its command line beside itself and gives each image a score made of the lengths of what it was asked.
_STAND_IN = """#!{python}
import json, pathlib, sys
arguments = sys.argv[1:]
pathlib.Path(__file__).with_name("arguments.json").write_text(json.dumps(arguments))
question = arguments[arguments.index("-jar") + 2]
answer = arguments[arguments.index("-out") + 1]
rows = [
    {{"image_id": row["image_id"], "scores": {{"All": {{"f": len(row["test"]) / 100 + len(row["refs"])}}}}}}
    for row in json.load(open(question))
]
json.dump(rows, open(answer, "w"))
{ending}
"""


def _folder(tmp_path: Path, ending: str = "") -> tuple[Path, Path]:
    jar = tmp_path / "spice-1.0.jar"
    jar.write_bytes(b"stand-in")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "stanford-corenlp-3.6.0-models.jar").write_bytes(b"stand-in")
    java = tmp_path / "java"
    java.write_text(_STAND_IN.format(python=sys.executable, ending=ending))
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    return jar, java


def test_scores_come_from_the_program(tmp_path: Path) -> None:
    jar, java = _folder(tmp_path)
    cache = tmp_path / "kept"
    options = {"spice": {"jar": jar, "java": str(java), "cache": cache, "memory_gigabytes": 3}}
    candidates, references = {"7": "A dog.", "8": "Two cats!"}, {"7": ["a dog", "one dog"], "8": ["cats"]}
    result = CaptionSuite(["spice"], options=options).compute(candidates, references)
    # The captions arrive tokenised: "a dog" has 5 letters, "two cats" 8.
    assert result.per_image()["spice"].tolist() == pytest.approx([2.05, 1.08])
    assert result.values["spice"] == pytest.approx((2.05 + 1.08) / 2)
    arguments = json.loads((tmp_path / "arguments.json").read_text())
    assert arguments[arguments.index("-cache") + 1] == str(cache)
    assert cache.is_dir()


def test_command_opens_what_java_16_closed() -> None:
    command = spice_command("java", Path("/x/spice-1.0.jar"), (Path("in.json"), Path("out.json")), Path("c"), 8)
    jar = command.index("-jar")
    for package in ("lang", "util", "util.concurrent", "math", "net", "text"):
        assert f"--add-opens=java.base/java.{package}=ALL-UNNAMED" in command[:jar]
    assert "--add-opens=java.sql/java.sql=ALL-UNNAMED" in command[:jar]
    assert "-Xmx8G" in command[:jar]
    assert command[jar + 1 : jar + 3] == ["/x/spice-1.0.jar", "in.json"]
    assert command[jar + 3 :] == ["-cache", "c", "-out", "out.json", "-subset", "-silent"]


def test_failure_shows_the_last_words(tmp_path: Path) -> None:
    jar, java = _folder(tmp_path, ending="sys.stderr.write('OutOfMemoryError\\n'); sys.exit(3)")
    metric = CaptionSuite(["spice"], options={"spice": {"jar": jar, "java": str(java)}})
    with pytest.raises(WorkError, match=r"exit code 3[\s\S]*OutOfMemoryError"):
        metric.compute({"1": "a"}, {"1": ["a"]})


def test_endless_program_is_given_up(tmp_path: Path) -> None:
    jar, java = _folder(tmp_path, ending="import time; time.sleep(60)")
    metric = CaptionSuite(["spice"], options={"spice": {"jar": jar, "java": str(java), "timeout_seconds": 0.5}})
    with pytest.raises(WorkError, match=r"0\.5 seconds"):
        metric.compute({"1": "a"}, {"1": ["a"]})


def _result(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_undefined_scores_count_as_zero(tmp_path: Path) -> None:
    rows = [{"image_id": "1", "scores": {"All": {"f": float("nan")}}}, {"image_id": 2, "scores": {"All": {"f": 0.5}}}]
    assert parse_spice(_result(tmp_path / "r.json", rows), ("2", "1")).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("rows", [{}, [{"image_id": "1"}], [{"image_id": "1", "scores": {"All": {"f": "x"}}}], []])
def test_strange_results_are_refused(tmp_path: Path, rows: object) -> None:
    with pytest.raises(WorkError, match="SPICE"):
        parse_spice(_result(tmp_path / "r.json", rows), ("1",))


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HFCAP_SPICE_JAR", raising=False)
    with pytest.raises(UserError, match="HFCAP_SPICE_JAR"):
        Spice()
    with pytest.raises(UserError, match="not found"):
        build_metric("spice", {"jar": tmp_path / "nothing.jar"})
    jar, java = _folder(tmp_path)
    with pytest.raises(UserError, match="needs Java"):
        build_metric("spice", {"jar": jar, "java": str(tmp_path / "no-java")})
    monkeypatch.setenv("HFCAP_SPICE_JAR", str(jar))
    assert build_metric("spice", {"java": str(java)}).signature()["program"] == "spice-1.0.jar"
    (tmp_path / "lib" / "stanford-corenlp-3.6.0-models.jar").unlink()
    with pytest.raises(UserError, match=r"models\.jar"):
        build_metric("spice", {"java": str(java)})


def test_never_called_unasked() -> None:
    assert "spice" not in DEFAULT_METRICS
