"""Exported captioners: their files, run without hfcap, caption as hfcap does; or there are no files."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hfcap.captioners.loading import load_captioner
from hfcap.cli import app
from hfcap.errors import UserError, WorkError
from hfcap.export import writing
from hfcap.export.writing import PACKAGES, export_captioner
from hfcap.files import write_text
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build, family_class, write_image

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = GenerateOptions(num_beams=3, max_new_tokens=7)


def with_layers(block: dict[str, Any], count: int) -> dict[str, Any]:
    """A `model` block whose parts have that many layers each: the time of an export goes with them."""
    found = {key: with_layers(inner, count) if isinstance(inner, dict) else inner for key, inner in block.items()}
    return found | {key: count for key in ("num_hidden_layers", "n_layer") if key in block}


def saved(family: str, folder: Path, prompt: str = "", layers: int = 1) -> Path:
    captioner = build(family, **with_layers(family_class(family).tiny(), layers))
    captioner.prompt = prompt
    captioner.save(folder, OPTIONS)
    return folder


def plain_captions(model: Path, paths: list[Path]) -> list[str]:
    """By the model's own generate, one image at a time."""
    captioner = load_captioner(str(model))
    found = []
    for path in paths:
        values = captioner.image_processor(images=Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            start = torch.tensor([captioner.start_token_ids()])
            config = captioner.generation_config(GenerateOptions(num_beams=1, max_new_tokens=7))
            output = captioner.plain_generate(captioner.encode(values), start, config)
        words = getattr(output, "sequences", output)[:, start.shape[1] :]
        found.append(" ".join(captioner.tokenizer.decode(words[0], skip_special_tokens=True).split()))
    return found


def run_without_hfcap(folders: list[Path], paths: list[Path]) -> list[list[str]]:
    """Caption with each folder's program, in one process for all: the interpreter with its libraries takes longest.

    -I: neither the working folder nor PYTHONPATH is looked at; hfcap, installed or not, is not found.
    """
    given = [json.dumps([str(path) for path in some]) for some in (folders, paths)]
    command = [sys.executable, "-I", "-c", _WITHOUT_HFCAP, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    captions: list[list[str]] = []
    for line in done.stdout.splitlines():
        if line == _NEXT:
            captions.append([])
        elif "\t" in line:
            captions[-1].append(line.split("\t")[1])
    return captions


_NEXT = "---- the next folder"
_WITHOUT_HFCAP = f"""
import json, runpy, sys
sys.modules["hfcap"] = None
folders, paths = map(json.loads, sys.argv[1:])
for folder in folders:
    print({_NEXT!r}, flush=True)
    sys.argv = [folder + "/caption.py", *paths]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def drawn(folder: Path) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(10)]
    for number, path in enumerate(paths):
        write_image(path, seed=number)
    return paths


CASES: dict[str, tuple[str, Any, str, int]] = {
    "blip to onnx": ("blip", "onnx", "a cat", 2),
    "vit_gpt2 to openvino": ("vit_gpt2", "openvino", "a cat", 2),
    "blip to openvino": ("blip", "openvino", "", 1),
    "cnn_transformer to onnx": ("cnn_transformer", "onnx", "", 1),
}
"""Family, format, prompt and layers: a cache of several goes through each format."""


class Exports:
    """Each case exported when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def possible(self) -> list[str]:
        """The cases whose packages are installed."""
        return [case for case, (_, to, *_) in CASES.items() if all(map(importlib.util.find_spec, PACKAGES[to]))]

    def of(self, case: str) -> tuple[Path, Path]:
        """The captioner's folder, and that of the files."""
        family, to, prompt, layers = CASES[case]
        model, output = self.folder / case / "model", self.folder / case / "exported"
        if not output.exists():
            assert export_captioner(str(saved(family, model, prompt, layers)), output, to) == 9
        return model, output


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("case", CASES)
def test_the_folder_says_what_was_checked(case: str, exports: Exports) -> None:
    to = CASES[case][1]
    for package in PACKAGES[to]:
        pytest.importorskip(package)
    _, output = exports.of(case)
    notes = json.loads((output / "hfcap_export.json").read_text(encoding="utf-8"))
    assert notes["check"]["same_as_hfcap"] and notes["check"]["images"] == 9
    assert notes["max_new_tokens"] == 7 and set(PACKAGES[to]) < set(notes["versions"])
    assert str(exports.folder) not in (output / "hfcap_export.json").read_text(encoding="utf-8")
    assert f"exported to {to}" in (output / "README.md").read_text(encoding="utf-8")


def test_files_caption_as_the_model_itself(
    exports: Exports, tmp_path: Path, forking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here by the interpreter, from which hfcap is kept away; what checks an export while it is made may be a fork."""
    if not exports.possible():
        pytest.skip("neither onnxruntime nor openvino is installed")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", forking)
        folders = {case: exports.of(case) for case in exports.possible()}
    paths = drawn(tmp_path / "drawn")
    found = run_without_hfcap([output for _, output in folders.values()], paths)
    for (case, (model, _)), captions in zip(folders.items(), found, strict=True):
        assert captions == plain_captions(model, paths), case
        assert len(set(captions)) > 1, case


def fake_files(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Stand in for transformers' exporters, whose files a program of ours pretends to run."""
    monkeypatch.setattr("hfcap.export.components.write_components", lambda *arguments: "cache")
    monkeypatch.setattr(writing, "_require_format", lambda to: None)
    monkeypatch.setattr(writing, "PACKAGES", {"onnx": ()})
    monkeypatch.setattr(
        writing, "write_text", lambda path, text: write_text(path, program if path.suffix == ".py" else text)
    )


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            "import sys\nfor path in sys.argv[1:]: print(path + '\\tanother')",
            "9 of 9 images get another caption",
        ),
        ("import os; os.abort()", r"do not run \(exit code -6: "),
        ("raise ValueError('no such operator')", "ValueError: no such operator"),
    ],
)
def test_files_that_caption_otherwise_are_not_left(
    program: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    fake_files(monkeypatch, program)
    model = saved("vit_gpt2", tmp_path / "model")
    with pytest.raises(WorkError, match=said):
        export_captioner(str(model), tmp_path / "exported", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_fault_of_the_exporter_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_files(monkeypatch, "")

    def fails(*arguments: Any) -> str:
        return str(torch.ones(2) @ torch.ones(3))

    monkeypatch.setattr("hfcap.export.components.write_components", fails)
    with pytest.raises(RuntimeError):  # a fault of this test's own
        fails()
    model = saved("vit_gpt2", tmp_path / "model")
    monkeypatch.setattr("hfcap.errors._raised_by_library", lambda error: True)
    with pytest.raises(UserError, match=r"model: transformers' exporter to onnx fails \(.*\); give another --to"):
        export_captioner(str(model), tmp_path / "exported", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_wrong_input_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, output = saved("vit_gpt2", tmp_path / "model"), tmp_path / "exported"

    def refused(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["export", *arguments])
        assert isinstance(done.exception, UserError), done.output
        assert not output.exists()
        return str(done.exception)

    assert refused(str(model), "--to", "gguf", "-o", str(output)).startswith("--to gguf: llama.cpp has no architecture")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = refused(str(model), "--to", "onnx", "-o", str(output))
    assert re.match(r"--to onnx: packages are missing; pip install 'onnx\S*' 'onnxscript\S*' 'onnxruntime\S*'$", said)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    nothing = str(tmp_path / "nothing")
    assert "nothing" in refused(nothing, "--to", "onnx", "-o", str(output))
    assert nothing in refused(str(model), "--to", "onnx", "-o", str(output), "--images", nothing)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    assert "cut.png" in refused(str(model), "--to", "onnx", "-o", str(output), "--images", str(tmp_path / "cut.png"))
    assert "is not empty" in refused(str(model), "--to", "onnx", "-o", str(model))
    other = saved("clip_prefix", tmp_path / "other")
    said = refused(str(other), "--to", "onnx", "-o", str(output))
    assert "is not exported: only captioners are whose decoder reads the image through cross-attention" in said
    with pytest.raises(UserError, match=r"^--to tflite: no such format; give onnx or openvino$"):
        export_captioner(str(model), output, "tflite")  # type: ignore[arg-type]


@pytest.mark.usefixtures("forks")
def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES["onnx"]:
        pytest.importorskip(package)
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    model = saved("vit_gpt2", tmp_path / "runs/mine", layers=2)
    for seed, name in enumerate(("photos/a.png", "photos/b.png", "cat.jpg", "dog.jpg")):
        write_image(tmp_path / name, seed)
    monkeypatch.chdir(tmp_path)
    done = []
    for line in lines:
        name, *arguments = shlex.split(line)
        if name == "hfcap" and "onnx" in arguments:
            result = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert result.exit_code == 0, result.output
        elif name == "python":
            program = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
            rows = [row.split("\t") for row in program.stdout.splitlines() if "\t" in row]
            paths = ["cat.jpg", "dog.jpg"]
            assert rows == [list(row) for row in zip(paths, plain_captions(model, list(map(Path, paths))), strict=True)]
        else:
            assert (name, arguments[:1]) in [("hfcap", ["export"]), ("pip", ["install"])]
            continue
        done.append(name)
    assert done == ["hfcap", "python"]
    assert json.loads(Path("export/hfcap_export.json").read_text(encoding="utf-8"))["check"]["images"] == 2
