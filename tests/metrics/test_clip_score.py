"""CLIPScore with a tiny random CLIP against a loop written from the paper's formulas."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionMetric, CaptionSet, ReferenceSet
from hfcap.metrics.clip_score import ClipScore
from hfcap.metrics.shared.images import DecodedImages, Images, image_files, plain_decode
from hfcap.metrics.suite import build_metric
from tests.captioners.clip_folder import LONGEST, write_clip

torch = pytest.importorskip("torch")


@dataclass(frozen=True)
class _Image:
    name: str
    content: bytes

    def read(self) -> bytes:
        return self.content

    def describe(self) -> str:
        return self.name


def _image(seed: int) -> _Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(40, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return _Image(f"image {seed}", buffer.getvalue())


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    # One negative similarity among positive ones, so that both sides of the maximum are tried.
    return write_clip(tmp_path_factory.mktemp("clip"), seed=3, spread=None)


_CANDIDATES = {"1": "a dog", "2": "two cats sleep", "3": "a very long caption that does not fit in so few positions"}
_REFERENCES = {"1": ["one dog"], "2": ["a red car", "two cats sleep"], "3": ["x", "a street", "two cats sleep"]}
_IMAGES = {key: _image(int(key)) for key in _CANDIDATES}


def _captions() -> CaptionSet:
    return CaptionSet(_CANDIDATES, ReferenceSet(_REFERENCES))


def _clip_score(folder: str, image_source: Images | None = None, **options: Any) -> CaptionMetric:
    options = {"model": folder, "image_source": image_source or DecodedImages(_IMAGES), "device": "cpu", **options}
    return build_metric("clip_score", options)


def _by_hand(folder: str) -> list[list[float]]:
    """One caption at a time, from the projection matrices and the hidden states."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model: Any = CLIPModel.from_pretrained(folder).eval()
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder)
    image_processor: Any = CLIPImageProcessorPil.from_pretrained(folder)

    def unit(vector: Any) -> Any:
        return vector / vector.norm()

    def text(caption: str) -> Any:
        ids = tokenizer("A photo depicts " + caption)["input_ids"]
        end = ids[-1]
        if len(ids) > LONGEST:
            ids = [*ids[: LONGEST - 1], end]
        states = model.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        return unit(model.text_projection(states[len(ids) - 1]))

    def image(image: _Image) -> Any:
        pixels = image_processor(Image.open(io.BytesIO(image.read())), return_tensors="pt")["pixel_values"]
        states = model.vision_model(pixel_values=pixels).last_hidden_state[0, 0]
        return unit(model.visual_projection(model.vision_model.post_layernorm(states)))

    rows = []
    with torch.no_grad():
        for key, caption in _CANDIDATES.items():
            score = 2.5 * max(float(image(_IMAGES[key]) @ text(caption)), 0.0)
            best = max(max(float(text(line) @ text(caption)) for line in _REFERENCES[key]), 0.0)
            rows.append([score, 2 * score * best / (score + best) if score + best else 0.0])
    return rows


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_equals_the_formula(clip_folder: str, batch_size: int) -> None:
    metric = _clip_score(clip_folder, batch_size=batch_size)
    statistics = metric.statistics(_captions())
    expected = _by_hand(clip_folder)
    scores = np.asarray(expected)[:, 0]
    assert scores.min() == 0 and scores.max() - np.median(scores) > 0.1, "the captions do not tell scores apart"
    np.testing.assert_allclose(statistics, expected, atol=1e-5)
    np.testing.assert_allclose(metric.values(_captions(), statistics), np.mean(expected, axis=0), atol=1e-5)


def test_a_caption_that_is_a_reference_has_the_best_reference(clip_folder: str) -> None:
    score, with_references = _clip_score(clip_folder).statistics(_captions())[1]
    assert with_references == pytest.approx(2 * score / (score + 1), abs=1e-6)


def test_decoder_is_handed_in(clip_folder: str) -> None:
    seen = []

    def decode(image: Any) -> Image.Image:
        seen.append(image.describe())
        return plain_decode(image)

    _clip_score(clip_folder, DecodedImages(_IMAGES, decode)).statistics(_captions())
    assert seen == ["image 1", "image 2", "image 3"]


def test_folder_of_images(clip_folder: str, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for key, name in (("1", "1.png"), ("2", "below/COCO_val2014_000000000002.png"), ("3", "3.png")):
        (tmp_path / name).write_bytes(_IMAGES[key].content)
    metric = build_metric("clip_score", {"model": clip_folder, "images": tmp_path, "device": "cpu"})
    expected = _clip_score(clip_folder).statistics(_captions())
    np.testing.assert_array_equal(metric.statistics(_captions()), expected)


def test_images_by_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/17.jpg", "holiday.png", "notes.txt", "000000000099.jpg", "a/twice.png", "twice.png"):
        (tmp_path / name).touch()
    found = image_files(tmp_path, ["17", "5", "99"], {"5": "holiday.png"})
    assert found == {
        "17": tmp_path / "a" / "17.jpg",
        "5": tmp_path / "holiday.png",
        "99": tmp_path / "000000000099.jpg",
    }
    # The end of a name alone proves nothing: "photo_17.jpg" need not be image 17.
    with pytest.raises(UserError, match=r"no image for 1 of 2 images, for example image 'y' \(gone\.jpg\)"):
        image_files(tmp_path, ["17", "y"], {"y": "gone.jpg"})
    with pytest.raises(UserError, match="several files for image 'twice'"):
        image_files(tmp_path, ["twice"])
    with pytest.raises(UserError, match="folder not found"):
        image_files(tmp_path / "none", ["17"])


def test_what_is_wrong_is_named(clip_folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images"):
        ClipScore()
    with pytest.raises(UserError, match="'3'"):
        _clip_score(clip_folder, DecodedImages({k: _IMAGES[k] for k in ("1", "2")})).statistics(_captions())
    broken = DecodedImages(_IMAGES | {"2": _Image("broken.png", b"no image")})
    with pytest.raises(UserError, match=r"broken\.png"):
        _clip_score(clip_folder, broken).statistics(_captions())
    with pytest.raises(UserError, match="cannot be loaded"):
        _clip_score(str(tmp_path)).statistics(_captions())


def test_signature_tells_models_apart_and_hides_where_they_lie(clip_folder: str, tmp_path: Path) -> None:
    signature = _clip_score(clip_folder).signature()
    assert signature["model"] == Path(clip_folder).name and len(signature["weights"]) == 16
    shutil.copytree(clip_folder, tmp_path / signature["model"])
    assert _clip_score(str(tmp_path / signature["model"])).signature() == signature
    weights = tmp_path / signature["model"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert _clip_score(str(tmp_path / signature["model"])).signature() != signature
    assert _clip_score("openai/clip-vit-base-patch32").signature()["model"] == "openai/clip-vit-base-patch32"


def test_captions_that_are_cut_are_counted(clip_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The long caption of image 3; with the prompt, the tiny CLIP reads eight letters of a caption at most."""
    from transformers import CLIPTokenizer

    _clip_score(clip_folder).statistics(_captions())
    said = " ".join(capsys.readouterr().err.split())
    tokenizer: Any = CLIPTokenizer.from_pretrained(clip_folder)

    def is_long(caption: str) -> bool:
        return len(tokenizer("A photo depicts " + caption)["input_ids"]) > LONGEST

    own = sum(map(is_long, _CANDIDATES.values()))
    human = sum(is_long(line) for group in _REFERENCES.values() for line in group)
    assert 0 < own < 3 and 0 < human < 6
    assert f"{own} of 3 captions and {human} of 6 human captions are longer than the {LONGEST} tokens" in said
    short = CaptionSet({"1": "a"}, ReferenceSet({"1": ["b"]}))
    _clip_score(clip_folder).statistics(short)
    assert "longer than" not in capsys.readouterr().err


def test_the_scale_of_pac_s(clip_folder: str) -> None:
    """PAC-S = 2 * max(cos, 0), and its harmonic mean with the best reference (Sarto et al. 2023)."""
    metric = _clip_score(clip_folder, scale=2.0)
    assert metric.signature()["scale"] == 2.0
    expected = []
    for score, with_references in _by_hand(clip_folder):
        best = score * with_references / (2 * score - with_references) if score else 0.0
        pac = 2.0 * score / 2.5
        expected.append([pac, 2 * pac * best / (pac + best) if pac + best else 0.0])
    np.testing.assert_allclose(metric.statistics(_captions()), expected, atol=1e-5)
