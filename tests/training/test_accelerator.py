"""The Accelerator of a run: what is refused or said, and that what is written down is what was computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from hfcap.captioners.image_text_to_text import ImageTextToText, ImageTextToTextOptions
from hfcap.card.prose import training
from hfcap.card.run_facts import read_card_input
from hfcap.errors import UserError, WorkError
from hfcap.files import read_json
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.loading import dump_recipe
from hfcap.run.stages import make_accelerator
from hfcap.run_directory.paths import RunDirectory
from hfcap.training.accelerator import (
    PrecisionError,
    float32_products,
    new_accelerator,
    require_number_types,
    require_tf32,
    used_precision,
)
from hfcap.training.objectives.cross_entropy import CrossEntropy
from tests.captioners.helpers import build
from tests.training.harness import forget_accelerator, tiny_recipe, train


@pytest.fixture(autouse=True)
def fresh_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    forget_accelerator()
    yield
    forget_accelerator()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def refusal(tmp_path: Path, **train_options: Any) -> str:
    recipe = tiny_recipe("blip", tmp_path, **train_options)
    with pytest.raises(UserError) as found:
        make_accelerator(recipe, RunDirectory(tmp_path))
    message = str(found.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("gain", "precision", "said"), [(0.02, "bf16", True), (0.02, "no", False), (2.5, "bf16", False)]
)
def test_bf16_is_said_to_be_slow_where_it_is(
    tmp_path: Path,
    on_cpu: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gain: float,
    precision: str,
    said: bool,
) -> None:
    monkeypatch.setattr("hfcap.environment.bfloat16_gain", lambda: gain)
    make_accelerator(tiny_recipe("blip", tmp_path, mixed_precision=precision), RunDirectory(tmp_path))
    text = " ".join(capsys.readouterr().err.split())
    expected = "train.mixed_precision: this processor computes products in bfloat16 50 times as slowly as in float32"
    assert (expected in text) is said and ("bfloat16" in text) is said


def test_fp16_on_a_cpu_is_refused(tmp_path: Path, on_cpu: None) -> None:
    """Accelerate would train in float32, and the card would say fp16."""
    message = refusal(tmp_path, mixed_precision="fp16")
    assert message == (
        "train.mixed_precision: fp16 needs a GPU, and training runs on the CPU; set it to no or bf16 here"
    )
    # Nothing is left behind: with what was advised it goes on.
    assert new_accelerator("bf16").mixed_precision == "bf16"


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config"),
    ],
)
def test_weights_in_pieces_are_refused(
    variable: str, words: str, tmp_path: Path, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "true")
    message = refusal(tmp_path)
    assert message.startswith(f"the accelerate configuration asks for {words}; hfcap trains in one process, data-")


def test_a_compiler_of_accelerate_is_refused(tmp_path: Path, on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    assert "train.torch_compile: true" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ImportError("X is not installed"), "needs a package that is not installed: X is not installed"),
        (ValueError("bf16 mixed precision requires a supported device."), "refuses .*bf16 mixed precision requires"),
    ],
)
def test_what_accelerate_itself_refuses_is_one_sentence(
    failure: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr("hfcap.training.accelerator.Accelerator", refuse)
    with pytest.raises(UserError, match=words):
        new_accelerator("bf16")


def test_processes_that_do_not_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's words where torchrun starts processes again and one still has the address of a dead one."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with [pair.cc:152] timed out connecting: Connection refused")

    monkeypatch.setattr("hfcap.training.accelerator.Accelerator", refuse)
    with pytest.raises(WorkError, match=r"do not find each other \(Gloo connectFullMesh.*give the same command again"):
        new_accelerator("no")


def test_a_precision_that_is_not_computed_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the device: what counts is what autocast does."""
    monkeypatch.setattr(Accelerator, "autocast", lambda self: nullcontext())
    with pytest.raises(
        PrecisionError, match=r"train\.mixed_precision: bf16 is not what accelerate computes in .*float32"
    ):
        new_accelerator("bf16")


def test_what_the_recipe_overrides_is_said(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert new_accelerator("no").mixed_precision == "no"
    said = " ".join(capsys.readouterr().err.split())
    assert said == "train.mixed_precision: no counts; the accelerate configuration says bf16"


@pytest.mark.parametrize(("precision", "product"), [("no", "float32"), ("bf16", "bfloat16")])
def test_what_is_written_down_is_what_products_are(precision: str, product: str, on_cpu: None) -> None:
    accelerator = new_accelerator(precision)
    captioner = build("blip")
    with accelerator.autocast():
        computed = captioner.model.text_decoder.cls.predictions.transform.dense(torch.zeros(1, 32))
    assert computed.dtype == getattr(torch, product)
    found = used_precision(captioner, accelerator)
    assert found == {"autocast": None if precision == "no" else product, "weights": ["float32"], "tf32": []}


def test_environment_and_card_say_what_was_computed_in(tmp_path: Path, on_cpu: None) -> None:
    recipe = tiny_recipe("blip", tmp_path, mixed_precision="bf16", max_steps=1)
    run = train(recipe).run
    run.recipe.write_text(dump_recipe(recipe))
    facts = read_json(run.environment, "environment")["precision"]
    assert facts == {"autocast": "bfloat16", "weights": ["float32"], "tf32": []}
    known = read_card_input(run)
    assert "It was computed in bfloat16 (mixed precision) with float32 weights." in str(training(known)["run"])
    known.environment["precision"] = {"autocast": None, "weights": ["bfloat16", "float32"], "tf32": ["convolutions"]}
    said = str(training(known)["run"])
    assert "It was computed in bfloat16 and float32, convolutions in TF32." in said
    four_bits = {"weights": ["float32", "nf4"], "four_bit_layers": "bfloat16", "tf32": ["convolutions"]}
    known.environment["precision"] = {"autocast": None, **four_bits}
    said = str(training(known)["run"])
    assert "It was computed in float32, layers with 4-bit weights in bfloat16, convolutions in TF32." in said
    known.environment["precision"] = {"autocast": "bfloat16", **four_bits, "tf32": []}
    assert "in bfloat16 (mixed precision) with float32 and nf4 weights." in str(training(known)["run"])
    del known.environment["precision"]  # of earlier versions of hfcap
    assert "computed in" not in str(training(known)["run"])


def test_float16_weights_are_not_trained_through_on_a_cpu(tmp_path: Path) -> None:
    build("image_text_to_text").save(tmp_path, GenerateOptions())
    options = {"pretrained": str(tmp_path)}
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for dtype in ("float32", "bfloat16"):
        captioner = ImageTextToText.build(ImageTextToTextOptions(**options, dtype=dtype), ())
        require_number_types(captioner, cpu)
    captioner = ImageTextToText.build(ImageTextToTextOptions(**options, dtype="float16"), ())
    with pytest.raises(UserError, match=r"model\.dtype: the weights are float16, which needs a GPU"):
        require_number_types(captioner, cpu)
    require_number_types(captioner, gpu)
    other = build("blip")
    other.model.half()
    with pytest.raises(UserError, match="model: the weights are float16"):
        require_number_types(other, cpu)


def test_training_asks_before_it_computes(tmp_path: Path, on_cpu: None) -> None:
    build("image_text_to_text").save(tmp_path / "base", GenerateOptions())
    model = {"pretrained": str(tmp_path / "base"), "dtype": "float16"}
    recipe = tiny_recipe("image_text_to_text", tmp_path, "lora")
    options = ImageTextToTextOptions.model_validate(model)
    with pytest.raises(UserError, match=r"model\.dtype: the weights are float16"):
        train(recipe.model_copy(update={"model": options}))


def switches() -> tuple[str, str, str]:
    """What torch itself says of matrix products, convolutions and recurrent layers on CUDA GPUs."""
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision


def test_tf32_where_there_is_none(tmp_path: Path, on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as found:
        train(tiny_recipe("blip", tmp_path, tf32=True))
    assert str(found.value) == (
        "train.tf32: true needs a CUDA GPU of NVIDIA's Ampere generation or a later one, and training runs on cpu; "
        "set it to null"
    )
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(UserError, match="training runs on Tesla T4; set it to null"):
        require_tf32(True, torch.device("cuda"))
    require_tf32(False, torch.device("cuda"))
    require_tf32(None, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    require_tf32(True, torch.device("cuda"))
    with pytest.raises(UserError, match="training runs on mps"):
        require_tf32(True, torch.device("mps"))


@pytest.mark.parametrize(
    ("tf32", "inside", "facts"),
    [
        (True, ("tf32", "tf32", "tf32"), ["matrix products", "convolutions"]),
        (False, ("ieee", "ieee", "ieee"), []),
        (None, None, ["convolutions"]),
    ],
)
def test_tf32_while_weights_are_trained(
    tf32: bool | None,
    inside: tuple[str, ...] | None,
    facts: list[str],
    tmp_path: Path,
    on_cpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A CPU stands in for the GPU: torch keeps the switches there as well."""
    before = switches()
    monkeypatch.setattr("hfcap.training.accelerator._has_tf32", lambda device: True)
    seen = set()
    forward = CrossEntropy.forward

    def noted(self: CrossEntropy, batch: Any) -> torch.Tensor:
        seen.add(switches())
        return forward(self, batch)

    monkeypatch.setattr(CrossEntropy, "forward", noted)
    result = train(tiny_recipe("vit_gpt2", tmp_path, tf32=tf32, max_steps=1))
    assert seen == {before if inside is None else inside}
    assert read_json(result.run.environment, "environment")["precision"]["tf32"] == facts
    assert switches() == before


def test_tf32_ends_with_the_block(on_cpu: None) -> None:
    before = switches()
    with pytest.raises(ZeroDivisionError), float32_products(True):
        assert switches() == ("tf32", "tf32", "tf32")
        raise ZeroDivisionError
    assert switches() == before
    torch.get_float32_matmul_precision()  # raises where torch's older and newer switches disagree
