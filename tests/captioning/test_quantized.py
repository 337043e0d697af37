"""Captioning with weights in 8 or 4 bits: the captions of the rounded weights, whichever way generates them."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from hfcap import load_captioner
from hfcap.captioners.adaptation.quantization import quantize_for_captioning
from hfcap.captioners.base import Captioner
from hfcap.captioners.shared.linear_layers import layers_below
from hfcap.cli import app
from hfcap.data.source import load_split
from hfcap.data.sources.scenes import ScenesOptions
from hfcap.decoding import DecodingJob, job_fingerprint
from hfcap.errors import OptionError, UserError
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build, pixel_values

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ["blip", "clip_prefix", "image_text_to_text", "vit_gpt2"]


def plain(weight: Any) -> torch.Tensor:
    """Weight (out, in) of a layer of any kind, in float32."""
    return weight.dequantize().detach() if hasattr(weight, "qdata") else weight.detach()


def half_a_step(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """How far the nearest value may be on grids that are symmetric around 0, one for every `group` values of a row."""
    rows = weight.reshape(-1, group)
    step = rows.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 0.5)
    return (step.expand_as(rows) / 2).reshape(weight.shape)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8), ("int4", 4)])
def test_linear_layers_are_rounded_and_captions_are_those_of_the_rounded_weights(
    family: str, quantization: Any, bits: int
) -> None:
    pytest.importorskip("torchao")
    captioner, reference = build(family), build(family)
    names = layers_below(captioner.model, [captioner.model])
    before = {name: weights_of(reference, name) for name in names}
    quantize_for_captioning(captioner, quantization)
    quantised = [name for name in names if hasattr(weight_of(captioner, name), "qdata")]
    assert quantised == [name for name in names if bits == 8 or before[name].shape[1] % 32 == 0] != []
    for name in quantised:
        weight = plain(weight_of(captioner, name))
        allowed = half_a_step(before[name], bits, before[name].shape[1] if bits == 8 else 32)
        assert bool(((weight - before[name]).abs() <= allowed * 1.1 + 1e-7).all()), name
        assert not torch.equal(weight, before[name])
        put_weight(reference, name, weight)
    states = captioner.encode(pixel_values(captioner, 3))
    torch.testing.assert_close(states, reference.encode(pixel_values(captioner, 3)), rtol=1e-3, atol=1e-4)
    for beams in (1, 3):
        options = GenerateOptions(num_beams=beams, max_new_tokens=8)
        found, expected = (one.caption_states(states, options) for one in (captioner, reference))
        assert [[one.text for one in row] for row in found] == [[one.text for one in row] for row in expected]


def weight_of(captioner: Captioner, name: str) -> Any:
    return captioner.model.get_submodule(name).weight


def weights_of(captioner: Captioner, name: str) -> torch.Tensor:
    layer = captioner.model.get_submodule(name)
    weight: torch.Tensor = layer.weight.detach() if isinstance(layer, nn.Linear) else layer.weight.detach().T
    return weight.clone()


@torch.no_grad()
def put_weight(captioner: Captioner, name: str, weight: torch.Tensor) -> None:
    layer = captioner.model.get_submodule(name)
    layer.weight.copy_(weight if isinstance(layer, nn.Linear) else weight.T)


def test_words_keep_their_weights() -> None:
    """Heads are often the word embeddings as well; rounding them costs most and would take them apart."""
    pytest.importorskip("torchao")
    captioner = build("vit_gpt2")
    quantize_for_captioning(captioner, "int8")
    decoder = captioner.model.decoder
    assert decoder.lm_head.weight is decoder.transformer.wte.weight
    assert not hasattr(decoder.lm_head.weight, "qdata")


def test_what_was_begun_with_other_weights_does_not_go_on(model: tuple[Captioner, str]) -> None:
    pytest.importorskip("torchao")
    prints = set()
    for quantization in (None, "int8", "int4"):
        captioner = build("blip")
        if quantization is not None:
            quantize_for_captioning(captioner, quantization)
        job = DecodingJob([], None, GenerateOptions(num_beams=1), 4, 0, "")  # type: ignore[arg-type]
        prints.add(job_fingerprint(captioner, job, []))
    assert len(prints) == 3


def scenes(folder: Path, count: int) -> Path:
    """A COCO file of generated scenes, images next to it."""
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for number, record in enumerate(load_split(ScenesOptions(n_train=1, n_validation=1, n_test=count), "test")):
        (folder / "images" / f"{number}.png").write_bytes(record.image.read())
        images.append({"id": number, "file_name": f"{number}.png"})
        annotations += [{"id": 9 * number + i, "image_id": number, "caption": c} for i, c in enumerate(record.captions)]
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_the_commands_of_the_memory_page_measure_the_loss(
    model: tuple[Captioner, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchao")
    text = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
    (block,) = [one for one in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "--quantization" in one]
    scenes(tmp_path, 6)
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/mine").symlink_to(model[1])
    for line in block.splitlines():
        done = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"full.jsonl", "int8.jsonl", "int4.jsonl"}
    rows = [json.loads(line) for line in Path("int4.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert len(block.splitlines()) == 4


def test_a_missing_package_is_one_sentence(model: tuple[Captioner, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(
        UserError, match=r"quantization: int8 needs the package 'torchao': pip install 'torchao.*leave it"
    ):
        load_captioner(model[1], quantization="int8")


def test_wrong_quantisations_are_named(model: tuple[Captioner, str]) -> None:
    with pytest.raises(OptionError, match=r"^quantization: choose int8 or int4, not 'fp8'$"):
        load_captioner(model[1], quantization="fp8")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"Retrieval has no linear layers of its own"):
        quantize_for_captioning(build("retrieval"), "int8")
    captioner = build("blip")
    captioner.model.is_quantized = True
    with pytest.raises(OptionError, match=r"stored in few bits already; leave it out"):
        quantize_for_captioning(captioner, "int8")
    narrow = build("blip")
    for name in layers_below(narrow.model, [narrow.model]):
        layer = narrow.model.get_submodule(name)
        layer.weight = nn.Parameter(layer.weight[:, :31])
    with pytest.raises(OptionError, match=r"no linear layer of BLIP suits int4"):
        quantize_for_captioning(narrow, "int4")


def test_a_runs_own_split_is_captioned_as_its_recipe_says() -> None:
    done = CliRunner().invoke(app, ["caption", "runs/mine", "--quantization", "int8"])
    assert isinstance(done.exception, UserError)
    assert "--quantization" in str(done.exception) and "give images or a dataset as INPUT" in str(done.exception)
