"""Two real processes, with whole weights and with weights in pieces (FSDP2), train what one process trains."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]  # in torch's documentation, not in its list
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers.utils.quantization_config import QuantizationMethod

from hfcap.captioners.loading import load_captioner
from hfcap.data.source import load_split
from hfcap.errors import UserError
from hfcap.files import read_json, read_json_lines
from hfcap.recipe.blocks import GenerateOptions
from hfcap.run_directory.paths import RunDirectory
from hfcap.training import sharding
from hfcap.training.accelerator import new_accelerator
from hfcap.training.build import build_captioner
from hfcap.training.sharding import layer_classes, require_shardable, require_shardable_weights
from hfcap.training.train import train_stage
from tests.captioners.helpers import build, pixel_values
from tests.captioners.itt_models import itt
from tests.training import sharded_processes, two_processes
from tests.training.harness import Result, assert_same_path, forget_accelerator, launch, ragged, tiny_recipe
from tests.training.sharded_processes import (
    BEGUN_BY_ONE,
    BEGUN_BY_TWO,
    CASES,
    ONE_OF_EACH,
    OWN_SHAPES,
    PARALLEL,
    PIECES,
    ROUNDED,
    half_done,
)

pytestmark = pytest.mark.timeout(600)

COUNTED = ("images_seen", "captions_seen", "step", "epoch", "window")
COMPARED = (
    *("validation_loss", "validation_cider", "grad_norm"),
    *("reward", "advantage", "divergence", "reward_accuracy", "reward_margin", "reward_chosen"),
)
"""What rows of the log say that does not depend on time."""


@pytest.fixture(scope="module")
def folders(forking: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where two processes trained with whole weights and in pieces, and one process."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    for folder in (one, two / PIECES):
        sharded_processes.write_models(folder)
    forget_accelerator()
    two_processes.train_cases(one, 4, CASES)
    two_processes.do_all_stages(one)
    sharded_processes.train_own_shapes(one, 4)
    for case in map("-".join, ONE_OF_EACH):
        half_done(one / case, two / PIECES / BEGUN_BY_ONE.format(case))
    launch(forking, sharded_processes.__file__, two)
    return {"one": one, PARALLEL: two / PARALLEL, PIECES: two / PIECES}


def result(folder: Path, name: str) -> Result:
    return Result(RunDirectory(folder / name))


def assert_same_training(two: Result, one: Result) -> None:
    assert two.summary["processes"] == 2 and one.summary["processes"] == 1
    for name in ("model", "average"):
        assert_same_path(two, one, step=4, earlier=2, name=name)
    assert two.losses == pytest.approx(one.losses, rel=1e-5)


@pytest.mark.parametrize(
    ("engine", "captioner", "method"),
    [(PARALLEL, *case) for case in two_processes.CASES] + [(PIECES, *case) for case in CASES],
)
def test_same_weights_as_one_process(engine: str, captioner: str, method: str, folders: dict[str, Path]) -> None:
    two, one = (result(folders[name], f"{captioner}-{method}") for name in (engine, "one"))
    assert_same_training(two, one)
    ours, theirs = (
        [(key, row[key]) for row in run.rows for key in COMPARED if row.get(key) is not None] for run in (two, one)
    )
    assert [key for key, _ in ours] == [key for key, _ in theirs] and len(ours) >= 8
    for (key, our), (_, their) in zip(ours, theirs, strict=True):
        assert our == pytest.approx(their, rel=1e-4, abs=1e-6), key
    assert {key: two.state(4)[key] for key in COUNTED} == {key: one.state(4)[key] for key in COUNTED}
    assert {path.name for path in two.checkpoint(4).iterdir()} >= {"random-0.safetensors", "random-1.safetensors"}
    assert len([row for row in two.rows if "loss" in row]) == 4  # only one process writes
    assert two.summary["parameters"] == one.summary["parameters"]
    assert {path.name for path in two.run.model.iterdir()} == {path.name for path in one.run.model.iterdir()}
    ours_saved, theirs_saved = two.model_weights(), one.model_weights()
    assert ours_saved.keys() == theirs_saved.keys()
    for name, weight in theirs_saved.items():
        torch.testing.assert_close(ours_saved[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("captioner", "method"), ONE_OF_EACH)
def test_same_captions_as_one_process(captioner: str, method: str, folders: dict[str, Path]) -> None:
    captions = []
    for engine in (PIECES, "one"):
        loaded = load_captioner(str(folders[engine] / f"{captioner}-{method}" / "model"))
        with torch.no_grad():
            states = loaded.encode(pixel_values(loaded, 3))
        found = loaded.caption_states(states, GenerateOptions(num_beams=2, max_new_tokens=8))
        captions.append([(of_image[0].text, of_image[0].score) for of_image in found])
    ours, theirs = captions
    assert [text for text, _ in ours] == [text for text, _ in theirs] and any(text for text, _ in ours)
    assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], rel=1e-3)


@pytest.mark.parametrize("engine", [PARALLEL, PIECES])
def test_predictions_and_scores_are_written_once_and_complete(engine: str, folders: dict[str, Path]) -> None:
    two, one = (RunDirectory(folders[name] / "tiny") for name in (engine, "one"))
    for name in ("test", "test.blank_images", "test.most_frequent_caption"):
        ours = [row for _, row in read_json_lines(two.predictions(name), "predictions")]
        theirs = [row for _, row in read_json_lines(one.predictions(name), "predictions")]
        assert [row["image_id"] for row in ours] == [row["image_id"] for row in theirs]
        assert len(ours) == 5
        assert read_json(two.scores(name), "scores")["n_images"] == 5
    assert list(two.predictions("x").parent.glob("*.part-*")) == []
    assert sorted(path.name for path in two.path.iterdir()) == sorted(path.name for path in one.path.iterdir())
    assert sorted(path.name for path in two.publish.iterdir()) == sorted(path.name for path in one.publish.iterdir())


def test_a_stop_during_the_last_checkpoint_stops_both(folders: dict[str, Path]) -> None:
    """One process heard of it, after the last update on which they could have agreed."""
    folder = folders[PARALLEL]
    for rank in (0, 1):
        assert (folder / f"stopped-{rank}").read_text().startswith("stopped at step 2 of 2; the same command")
    assert not RunDirectory(folder / "stopped").model.exists()


def test_images_of_all_shapes(folders: dict[str, Path]) -> None:
    """Each process computes its images in groups of one shape, more or fewer of them than the other."""
    two, one = (result(folders[name], OWN_SHAPES) for name in (PIECES, "one"))
    assert_same_training(two, one)
    assert len(set(one.losses)) == 4
    assert load_captioner(str(two.run.model)).own_shapes


def test_frozen_parts_stay_as_they_are(folders: dict[str, Path], tmp_path: Path) -> None:
    two = result(folders[PIECES], "vit_gpt2-frozen")
    assert two.summary["encoder_frozen"] and not any(name.startswith("encoder.") for name in two.weights(4))
    recipe = two_processes.case_recipe("vit_gpt2", "frozen", tmp_path, 2)
    begun = build_captioner(recipe, ragged(load_split(recipe.data, "train")))
    saved = load_captioner(str(two.run.model)).model.state_dict()
    for name, weight in begun.model.state_dict().items():
        if name.startswith("encoder."):
            torch.testing.assert_close(saved[name], weight, rtol=0, atol=0, msg=name)


def test_each_process_holds_a_half(folders: dict[str, Path]) -> None:
    """Also of the captioner that preferences and divergences compare with, and of weights in four bits."""
    held = [json.loads((folders[PIECES] / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(held[0]) == len(held[1]) == len(CASES) + 1 + 4 * len(ONE_OF_EACH) + 1
    for mine, other in zip(*held, strict=True):
        assert mine + other == pytest.approx(1)
        assert mine == pytest.approx(0.5, abs=0.02)  # the last row of an odd number is in one of them


@pytest.mark.parametrize(("engine", "method"), [(PARALLEL, "scst"), *((PIECES, method) for _, method in ONE_OF_EACH)])
def test_a_stopped_training_goes_on_bit_for_bit(engine: str, method: str, folders: dict[str, Path]) -> None:
    whole, continued = (result(folders[engine], f"adam-{method}{end}") for end in ("", "-continued"))
    assert whole.rows[0]["step"] == 1 and whole.losses == continued.losses
    for file in ("model", "average", "optimizer", "random-0", "random-1"):
        ours, theirs = continued.weights(4, file), whole.weights(4, file)
        assert ours.keys() == theirs.keys() and ours
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("case", map("-".join, ONE_OF_EACH))
def test_two_continue_what_one_began(case: str, folders: dict[str, Path]) -> None:
    """Checkpoints hold whole weights, so neither the number of processes nor FSDP is bound to them."""
    assert_same_training(result(folders[PIECES], BEGUN_BY_ONE.format(case)), result(folders["one"], case))


@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_one_continues_what_two_began(case: tuple[str, str], folders: dict[str, Path]) -> None:
    name = "-".join(case)
    half_done(folders[PIECES] / name, folders["one"] / BEGUN_BY_TWO.format(name))
    forget_accelerator()
    two_processes.train_cases(folders["one"], 4, [case], BEGUN_BY_TWO)
    continued, whole = (result(folders["one"], run) for run in (BEGUN_BY_TWO.format(name), name))
    assert_same_path(continued, whole, step=4, earlier=2)
    assert continued.losses == pytest.approx(whole.losses, rel=1e-5)


@pytest.mark.parametrize("case", map("-".join, ONE_OF_EACH))
def test_bfloat16_products_on_float32_pieces(case: str, folders: dict[str, Path]) -> None:
    exact, rounded = (result(folders[PIECES], name) for name in (case, ROUNDED.format(case)))
    assert rounded.losses[0] == pytest.approx(exact.losses[0], rel=2**-6)
    assert {weight.dtype for weight in rounded.weights(1).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("key", "train", "model"),
    [
        ("train.torch_compile", {"torch_compile": True}, {}),
        ("train.mixed_precision", {"mixed_precision": "fp16"}, {}),
        ("train.optim", {"optim": "adafactor"}, {}),
        ("model.quantization", {}, {"quantization": "8bit"}),
    ],
)
def test_what_needs_whole_weights_is_refused(
    key: str, train: dict[str, Any], model: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tiny_recipe("image_text_to_text", tmp_path, "lora")
    recipe.model = recipe.model.model_copy(update={"quantization": "4bit"})
    require_shardable(recipe)
    changes = {"train": recipe.train.model_copy(update=train), "model": recipe.model.model_copy(update=model)}
    with pytest.raises(UserError, match=f"^{key}: not with weights in pieces .FSDP in the accelerate configuration"):
        require_shardable(recipe.model_copy(update=changes))


def test_it_is_refused_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcap.training.train.build_captioner", lambda *_: pytest.fail("loaded"))
    accelerator = SimpleNamespace(is_fsdp2=True, device=torch.device("cpu"))
    with pytest.raises(UserError, match=r"^train\.optim: not with weights in pieces .* choose one of adamw_torch, "):
        train_stage(tiny_recipe("blip", tmp_path, optim="adafactor"), RunDirectory(tmp_path), {}, accelerator)


def test_of_weights_in_few_bits_only_those_of_bitsandbytes_can_be_cut() -> None:
    captioner = build("vit_gpt2")
    require_shardable_weights(captioner)
    captioner.model.quantization_method, captioner.model.is_loaded_in_4bit = QuantizationMethod.BITS_AND_BYTES, True
    require_shardable_weights(captioner)
    with pytest.raises(UserError, match=r"^model.pretrained: not with DeepSpeed .* \(bitsandbytes\)"):
        require_shardable_weights(captioner, whole_weights=True)
    captioner.model.quantization_method, captioner.model.is_loaded_in_4bit = QuantizationMethod.GPTQ, False
    with pytest.raises(UserError, match=r"^model.pretrained: not with weights in pieces .* \(gptq\)"):
        require_shardable_weights(captioner)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "FSDP of version 1, which torch replaces; set fsdp_version: 2"),
        ({"FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading: false"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: false"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "train.gradient_checkpointing: true"),
        ({"FSDP_VERSION": "2"}, "with several GPUs alone, and here it has 1 x cpu"),
    ],
)
def test_configurations_of_fsdp_that_hfcap_does_not_train_with(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_accelerator()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        new_accelerator("no")
    forget_accelerator()


def test_layers_that_hold_tied_weights_stay_whole() -> None:
    """torch refuses to cut a weight in two ways."""
    assert layer_classes(build("vit_gpt2").model) == ["GPT2Block", "ViTEmbeddings", "ViTLayer"]
    assert "BlipTextEmbeddings" not in layer_classes(build("blip").model)
    assert layer_classes(itt("llava").model)


@pytest.mark.parametrize(("together", "messages"), [(1, []), (9, [3, 1, 2]), (2**20, [5, 2])])
def test_small_tensors_travel_together_up_to_a_size(
    together: int, messages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of at least that size, and those that are not cut, go alone; each message holds one number type."""
    sent: list[int] = []
    monkeypatch.setattr(sharding, "_TOGETHER", together)
    send = sharding._sent_together

    def noted(pieces: Mapping[str, DTensor]) -> Iterator[tuple[str, torch.Tensor]]:
        sent.append(len(pieces))
        return send(pieces)

    monkeypatch.setattr(sharding, "_sent_together", noted)
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = {str(n): torch.arange(float(n)).reshape(-1, 2) for n in (2, 4, 6, 8, 10)}
        whole |= {f"half {n}": torch.arange(n).to(torch.bfloat16) for n in (1, 3)}
        cut = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in whole.items()}
        whole["plain"] = torch.ones(3)
        found = dict(sharding.whole_tensors({**cut, "plain": whole["plain"]}))
    finally:
        torch.distributed.destroy_process_group()
    assert sent == messages and found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert type(found[name]) is torch.Tensor and found[name].dtype is tensor.dtype
        assert torch.equal(found[name], tensor), name
