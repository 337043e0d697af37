"""What is saved loads again: bit-equal here, and with plain transformers where hfcap cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import generation_defaults, load_captioner
from hfcap.captioners.shared.metadata import SIDECAR
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import (
    ALL_FAMILIES,
    FAMILIES,
    PROMPT,
    build,
    packed,
    pixel_values,
    random_captions,
    write_image,
)
from tests.shared_data import SHARED, requires_shared

pytestmark = pytest.mark.contract

EFFICIENTNET = SHARED / "models" / "efficientnet-lite0"
PIPELINE_FAMILIES = {"blip", "image_text_to_text", "vit_gpt2"}
NEEDS_ARGUMENTS = {"blip"}
"""transformers' BlipForConditionalGeneration.generate does not read generation_config.json; the others do."""

PLAIN_SCRIPT = """
import json, sys
sys.modules["hfcap"] = None  # any import of it fails
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, pipeline

image = Image.open(sys.argv[1]).convert("RGB")
result = {}
for job in json.loads(sys.argv[2]):
    trust = {"trust_remote_code": True} if job["own_code"] else {}
    model = AutoModelForImageTextToText.from_pretrained(job["folder"], **trust).eval()
    processor = AutoProcessor.from_pretrained(job["folder"], **trust)
    if job["name"] != "ensemble":  # whose own code does this
        processor.image_processor = AutoImageProcessor.from_pretrained(job["folder"], backend="pil", **trust)
    sequences = model.generate(**processor(images=image, return_tensors="pt"), **job["decoding"])
    found = {"generate": processor.batch_decode(sequences, skip_special_tokens=True)[0]}
    if job["pipeline"]:
        pipe = pipeline("image-text-to-text", model=job["folder"])
        for name, text in (("pipeline", ""), ("pipeline_prompt", job["prompt"])):
            found[name] = pipe(image, text=text, generate_kwargs=job["decoding"])[0]["generated_text"]
    result[job["name"]] = found
assert not any(name.split(".")[0] == "hfcap" for name, module in sys.modules.items() if module is not None)
print("RESULT" + json.dumps(result))
"""

OPTIONS = GenerateOptions(num_beams=2, max_new_tokens=8)


def _words(text: str) -> str:
    return " ".join(text.split())


def _state(captioner: Captioner) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = captioner.model.state_dict()
    return state


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Captioner, Path]:
    captioner = build(request.param, prompt=PROMPT)
    folder = tmp_path_factory.mktemp("run-of-somebody") / "model"
    captioner.save(folder, OPTIONS)
    return captioner, folder


def test_reloaded_logits_and_weights_are_bit_equal(saved: tuple[Captioner, Path]) -> None:
    captioner, folder = saved
    again = load_captioner(str(folder))
    assert type(again) is type(captioner)
    assert _state(captioner).keys() == _state(again).keys()
    for name, tensor in _state(captioner).items():
        assert torch.equal(tensor, _state(again)[name]), name
    pixels = pixel_values(captioner, 3)
    rows = packed(captioner, random_captions(captioner, [2, 1, 3]))
    with torch.no_grad():
        expected = captioner.logits(captioner.encode(pixels), rows)
        assert torch.equal(again.logits(again.encode(pixels), rows), expected)


def test_reloaded_tokens_prompt_processor_and_decoding_defaults(saved: tuple[Captioner, Path]) -> None:
    captioner, folder = saved
    again = load_captioner(str(folder))
    assert again.prompt == PROMPT
    assert again.start_token_ids() == captioner.start_token_ids()
    assert (again.end_token_id, again.pad_token_id) == (captioner.end_token_id, captioner.pad_token_id)
    texts = ["A dog, two  cats", "ein Café <end> 🐈"]
    assert again.caption_token_ids(texts, 99) == captioner.caption_token_ids(texts, 99)
    assert torch.equal(pixel_values(again, 2), pixel_values(captioner, 2))
    assert GenerateOptions(**generation_defaults(folder)) == OPTIONS
    assert not again.model.training
    assert [model.id for model in again.base_models] == [str(folder)]


def _without_dtypes(value: Any) -> Any:
    """Leave out the number types, which transformers writes only into configs that it has read."""
    if isinstance(value, dict):
        return {key: _without_dtypes(inner) for key, inner in value.items() if key != "dtype"}
    return value


def test_saving_again_changes_nothing(saved: tuple[Captioner, Path], tmp_path: Path) -> None:
    """Otherwise a published copy of a published model would drift."""
    _, folder = saved
    load_captioner(str(folder)).save(tmp_path / "again", OPTIONS)
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {path.name for path in (tmp_path / "again").iterdir() if path.is_file()}
    for name in files - {"model.safetensors"}:
        before, after = (folder / name).read_text(), (tmp_path / "again" / name).read_text()
        if name.endswith(".json"):
            before, after = _without_dtypes(json.loads(before)), _without_dtypes(json.loads(after))
        assert after == before, name
    first, second = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_no_path_of_this_machine_in_any_file(saved: tuple[Captioner, Path], tmp_path: Path) -> None:
    _, folder = saved
    load_captioner(str(folder)).save(tmp_path / "again", OPTIONS)
    for place in (folder, tmp_path / "again"):
        for path in place.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                for secret in (str(folder), str(tmp_path), "run-of-somebody", str(Path.home())):
                    assert secret.encode() not in content, f"{path.name} tells {secret}"


def test_nothing_pickled_is_written(saved: tuple[Captioner, Path]) -> None:
    _, folder = saved
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".txt", ".py", ".jinja"}


def _jobs(tmp_path: Path, captioners: dict[str, Captioner]) -> list[dict[str, Any]]:
    jobs = []
    for name, captioner in captioners.items():
        captioner.save(tmp_path / name, OPTIONS)
        config = json.loads((tmp_path / name / "config.json").read_text())
        jobs.append(
            {
                "name": name,
                "folder": str(tmp_path / name),
                "own_code": "auto_map" in config,
                "pipeline": name in PIPELINE_FAMILIES,
                "prompt": PROMPT,
                "decoding": {"num_beams": 2, "max_new_tokens": 8} if name in NEEDS_ARGUMENTS else {},
            }
        )
    return jobs


def _expected(captioner: Captioner, image: Path, prompt: str = "") -> str:
    from PIL import Image

    values = captioner.image_processor(images=Image.open(image).convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return captioner.caption_states(captioner.encode(values), OPTIONS, prompt)[0][0].text


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Captioner], dict[str, Any], Path]:
    """Captions of one image by every family, made in a process that cannot import hfcap."""
    folder = tmp_path_factory.mktemp("published")
    captioners = {name: build(name) for name in ALL_FAMILIES}
    if EFFICIENTNET.is_dir():
        captioners["efficientnet"] = build(
            "clip_prefix",
            vision_config=None,
            vision=str(EFFICIENTNET),
            trust_remote_code=True,
            vision_feature="patches",
            mapper="linear",
        )
        for name in ("cnn_transformer", "show_attend_tell"):
            captioners[f"efficientnet {name}"] = build(
                name, vision_config=None, vision=str(EFFICIENTNET), trust_remote_code=True
            )
    image = write_image(folder / "image.png", seed=9)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
    }
    # In its own folder: the checkout must not be importable by accident, and relative paths must not be needed.
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_SCRIPT, str(image), json.dumps(_jobs(folder, captioners))],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return captioners, json.loads(done.stdout.split("RESULT")[1]), image


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_plain_transformers_captions_alike_without_hfcap(name: str, elsewhere: Any) -> None:
    captioners, found, image = elsewhere
    expected = _expected(captioners[name], image)
    assert expected
    assert _words(found[name]["generate"]) == expected


@pytest.mark.parametrize("name", sorted(PIPELINE_FAMILIES))
def test_pipeline_captions_alike_without_hfcap(name: str, elsewhere: Any) -> None:
    captioners, found, image = elsewhere
    assert _words(found[name]["pipeline"]) == _expected(captioners[name], image)
    continued = _expected(captioners[name], image, PROMPT)
    # Random words may begin without a space, which the captions alone do not show.
    whole = f"{PROMPT} {continued}"
    assert _words(found[name]["pipeline_prompt"]).replace(" ", "") == whole.replace(" ", "")


@requires_shared
def test_backbone_with_own_code_captions_alike_without_hfcap(elsewhere: Any) -> None:
    captioners, found, image = elsewhere
    names = [name for name in captioners if name.startswith("efficientnet")]
    assert len(names) == 3
    for name in names:
        assert _words(found[name]["generate"]) == _expected(captioners[name], image), name


def test_sidecar_of_another_shape_is_refused(saved: tuple[Captioner, Path], tmp_path: Path) -> None:
    captioner, _ = saved
    captioner.save(tmp_path, OPTIONS)
    (tmp_path / SIDECAR).write_text('["blip"]', encoding="utf-8")
    with pytest.raises(UserError, match=SIDECAR):
        load_captioner(str(tmp_path))


def test_model_that_hfcap_did_not_write_is_recognised(saved: tuple[Captioner, Path], tmp_path: Path) -> None:
    captioner, _ = saved
    captioner.save(tmp_path, OPTIONS)
    (tmp_path / SIDECAR).unlink()
    again = load_captioner(str(tmp_path))
    assert type(again) is type(captioner)
    assert again.prompt == ""


@pytest.mark.parametrize("family", ["clip_prefix", "cnn_transformer", "image_transformer", "show_attend_tell"])
def test_replaced_word_embeddings_are_those_of_the_text_model(family: str) -> None:
    captioner = build(family)
    words = captioner.model.get_input_embeddings()
    other = nn.Embedding(words.num_embeddings, words.embedding_dim)
    with torch.no_grad():
        before = captioner.model(pixel_values=pixel_values(captioner, 1)).logits
        captioner.model.set_input_embeddings(other)
        after = captioner.model(pixel_values=pixel_values(captioner, 1)).logits
    assert captioner.model.get_input_embeddings() is other
    assert float((after - before).abs().max()) > 1e-3
