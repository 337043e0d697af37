"""What users get wrong about base models: one UserError that names key or file, and the remedy."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hfcap.captioners.clip_prefix import ClipPrefixOptions
from hfcap.captioners.loading import load_captioner, save_merged
from hfcap.errors import UserError, WorkError
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.backbones import DECODERS, ENCODERS, write_encoder, write_language_model
from tests.captioners.helpers import ALL_FAMILIES, CORPUS, FAMILIES, build, family_class

PARTS = [
    ("clip_prefix", "vision"),
    ("clip_prefix", "language_model"),
    ("vit_gpt2", "encoder"),
    ("vit_gpt2", "decoder"),
    ("cnn_transformer", "vision"),
    ("cnn_transformer", "decoder"),
]


def _build_pretrained(family: str, location: Path | str) -> Any:
    cls = family_class(family)
    return cls.build(cls.options_class(pretrained=str(location)), CORPUS)


def _build_with_part(family: str, part: str, location: Path | str) -> Any:
    changes: dict[str, Any] = {part: str(location), f"{part}_config": None}
    return build(family, **changes)


@pytest.fixture(scope="module", params=ALL_FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("saved") / "model"
    build(request.param).save(folder, GenerateOptions())
    return request.param, folder


@pytest.fixture
def copy(saved: tuple[str, Path], tmp_path: Path) -> tuple[str, Path]:
    shutil.copytree(saved[1], tmp_path / "copy")
    return saved[0], tmp_path / "copy"


def _part_with_weights(folder: Path) -> Path:
    """The folder itself; of a captioner made of several, the first one's."""
    return next(iter(sorted(folder.glob("member_*"))), folder)


def test_folder_without_weights(copy: tuple[str, Path]) -> None:
    family, folder = copy
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.pretrained.*safetensors") as caught:
        _build_pretrained(family, folder)
    assert str(folder) in str(caught.value)
    with pytest.raises(UserError, match="safetensors"):
        load_captioner(str(folder))


def test_folder_without_config(copy: tuple[str, Path]) -> None:
    family, folder = copy
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"model\.pretrained.*config\.json"):
        _build_pretrained(family, folder)
    (folder / "hfcap.json").unlink()
    with pytest.raises(UserError, match=r"holds neither a model \(config\.json\) nor an adapter"):
        load_captioner(str(folder))


def test_folder_without_tokenizer_or_image_processor(copy: tuple[str, Path]) -> None:
    family, folder = copy
    part = _part_with_weights(folder)
    (part / "processor_config.json").unlink()
    with pytest.raises(UserError, match=r"model\.pretrained: no image processor in"):
        _build_pretrained(family, folder)
    for path in part.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"model\.pretrained: no tokenizer in"):
        _build_pretrained(family, folder)


@pytest.mark.parametrize("damage", ["cut off", "not safetensors", "empty"])
def test_damaged_weights(copy: tuple[str, Path], damage: str) -> None:
    family, folder = copy
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes({"cut off": content[:-100], "not safetensors": b"\x80\x04" * 400, "empty": b""}[damage])
    with pytest.raises(UserError, match=r"model\.pretrained: cannot load"):
        _build_pretrained(family, folder)


def _first_with(*parts: str, names: list[str]) -> str:
    return next(name for part in parts for name in names if part in name)


def test_weights_that_lack_some(copy: tuple[str, Path]) -> None:
    from safetensors.torch import load_file, save_file

    family, folder = copy
    part = _part_with_weights(folder)
    tensors = load_file(part / "model.safetensors")
    missing = _first_with("mlp", "embeddings", names=sorted(tensors))
    del tensors[missing]
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"lacks 1 weights.*{re.escape(missing)}.*incomplete"):
        _build_pretrained(family, folder)


def test_weights_of_another_shape(copy: tuple[str, Path]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    family, folder = copy
    part = _part_with_weights(folder)
    tensors = load_file(part / "model.safetensors")
    name = _first_with("mlp", "dense", names=[name for name in sorted(tensors) if tensors[name].ndim == 2])
    tensors[name] = torch.zeros(3, 5)
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.pretrained: cannot load"):
        _build_pretrained(family, folder)


def test_pickled_weights_are_never_read(copy: tuple[str, Path]) -> None:
    import torch
    from safetensors.torch import load_file

    family, folder = copy
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="reads only safetensors"):
        _build_pretrained(family, folder)


def test_another_family_s_model(saved: tuple[str, Path]) -> None:
    own, folder = saved
    for family in set(FAMILIES) - {own}:
        with pytest.raises(UserError, match=r"model\.pretrained.*holds a model of type .*captioner"):
            _build_pretrained(family, folder)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_hub_id_that_nobody_has_here(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WorkError, match=r"model\.pretrained.*nobody/no-such-captioner.*HF_HUB_OFFLINE"):
        _build_pretrained(family, "nobody/no-such-captioner")


def test_hub_id_in_use_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((UserError, WorkError), match="nobody/no-such-captioner"):
        load_captioner("nobody/no-such-captioner")


@pytest.mark.parametrize("location", ["./gone", "/gone/model", "a/b/c", "~/gone"])
def test_local_folder_that_is_not_there(location: str) -> None:
    with pytest.raises(UserError, match=r"no such folder.*run directory"):
        load_captioner(location)


def test_neither_folder_nor_id() -> None:
    with pytest.raises(UserError, match="neither a folder nor a Hub id"):
        load_captioner("what is this?")


def test_run_that_has_no_model_yet(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no model yet.*hfcap run"):
        load_captioner(str(tmp_path))


def test_model_type_without_family(copy: tuple[str, Path]) -> None:
    _, folder = copy
    (folder / "hfcap.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "gpt2"}))
    with pytest.raises(UserError, match=r"no captioner family for model_type 'gpt2'.*blip"):
        load_captioner(str(folder))


@pytest.mark.parametrize(("family", "part"), PARTS)
def test_unknown_and_missing_model_type(family: str, part: str) -> None:
    changes: dict[str, Any] = {f"{part}_config": {"model_type": "nonsense"}}
    with pytest.raises(UserError, match=rf"model\.{part}_config.*nonsense"):
        build(family, **changes)
    changes = {f"{part}_config": {"hidden_size": 32}}
    with pytest.raises(UserError, match=rf"model\.{part}_config: model_type is missing"):
        build(family, **changes)


@pytest.mark.parametrize(("family", "part"), PARTS)
def test_part_without_weights_or_config_or_at_all(family: str, part: str, tmp_path: Path) -> None:
    write = write_encoder if part in ("vision", "encoder") else write_language_model
    folder = write(tmp_path / "part", (ENCODERS["vit"] if write is write_encoder else DECODERS["gpt2"]))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"model\.{part}: cannot load .*safetensors"):
        _build_with_part(family, part, folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=rf"model\.{part}"):
        _build_with_part(family, part, folder)
    with pytest.raises(UserError, match=rf"model\.{part}"):
        _build_with_part(family, part, tmp_path / "not-there")


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_exactly_one_origin(family: str) -> None:
    options = family_class(family).options_class
    with pytest.raises(ValidationError, match=r"exactly one|give one of|not both"):
        options()
    with pytest.raises(ValidationError, match=r"exactly one|not both"):
        options(**family_class(family).tiny(), pretrained="somebody/model")


@pytest.mark.parametrize(("family", "part"), PARTS)
def test_two_origins_of_a_part(family: str, part: str) -> None:
    with pytest.raises(ValidationError, match="give one of"):
        family_class(family).options_class(**family_class(family).tiny(), **{part: "somebody/model"})


@pytest.mark.parametrize(
    ("mapper", "vision_feature", "remedy"),
    [("linear", "pooled", "set vision_feature: patches"), ("mlp", "patches", "set vision_feature: pooled")],
)
def test_mapper_and_feature_that_do_not_fit(mapper: str, vision_feature: str, remedy: str) -> None:
    values = {**family_class("clip_prefix").tiny(), "mapper": mapper, "vision_feature": vision_feature}
    with pytest.raises(ValidationError, match=remedy):
        ClipPrefixOptions(**values)


def test_nothing_to_merge(saved: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a LoRA adapter"):
        save_merged(str(saved[1]), tmp_path / "merged")
