"""Polos with small random models against the authors' computation, written out: converter, features and head."""

from __future__ import annotations

import io
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.shared.images import DecodedImages
from hfcap.metrics.suite import CaptionSuite, build_metric
from scripts.convert_polos import SETTINGS, convert, main, read_checkpoint
from tests.captioners.clip_folder import write_clip
from tests.metrics.test_convert_pac_s import openai_shapes, random_weights

torch = pytest.importorskip("torch")

TEXT_SIZE, CLIP_SIZE, LAYERS, HIDDEN, LONGEST = 16, 12, 3, (10, 7), 60
CANDIDATES = {"1": "a dog", "2": "two cats on a red car", "3": "a man runs", "4": "", "5": "the street", "6": "a dog"}
REFERENCES = {
    "1": ["one dog runs on the street", "a dog"],
    "2": ["two cats", "a red car", "cats sleep"],
    "3": ["the man runs", "a dog"],
    "4": ["a cat", "a man", "the street", "two dogs"],
    "5": ["the street", "a red car on the street"],
    "6": ["two cats sleep", "a man on the street"],
}


@dataclass(frozen=True)
class _Image:
    seed: int

    def read(self) -> bytes:
        pixels = np.random.default_rng(self.seed).integers(0, 256, size=(40, 50, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        return buffer.getvalue()

    def describe(self) -> str:
        return f"image {self.seed}"


IMAGES = DecodedImages({key: _Image(int(key)) for key in CANDIDATES}, bar=False)


def _write_roberta(folder: Path) -> dict[str, Any]:
    """Write a small RoBERTa with its tokenizer; return other random weights for it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    words = [
        "a",
        "man",
        "dog",
        "dogs",
        "cat",
        "cats",
        "red",
        "car",
        "street",
        "on",
        "the",
        "runs",
        "sleep",
        "two",
        "one",
    ]
    marks = ("<s>", "<pad>", "</s>", "<unk>")
    vocabulary = {word: number for number, word in enumerate([*marks, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "bos_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=16,
        hidden_size=TEXT_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=24,
        type_vocab_size=1,
        pad_token_id=1,
        initializer_range=0.6,
    )
    torch.manual_seed(3)
    RobertaModel(config).save_pretrained(folder)
    return {name: value.clone() for name, value in RobertaModel(config).state_dict().items()}


def _checkpoint(roberta: dict[str, Any]) -> dict[str, Any]:
    """Random weights under the names of the authors' Lightning module."""
    draw = torch.Generator().manual_seed(5)
    state = {f"encoder.model.{name}": value for name, value in roberta.items()}
    clip = {**openai_shapes(), "positional_embedding": (LONGEST, 16)}
    state["encoder.model.embeddings.position_ids"] = torch.arange(16)[None]
    state |= {f"clip.{name}": value for name, value in random_weights(clip).items()}
    state |= {f"scalar_mix.scalar_parameters.{n}": torch.randn(1, generator=draw) for n in range(LAYERS + 1)}
    state |= {"scalar_mix.gamma": torch.tensor([1.3]), "scalar_mix.dropout_mask": torch.zeros(LAYERS + 1)}
    sizes = [4 * TEXT_SIZE + 6 * CLIP_SIZE, *HIDDEN, 1]
    for number in (1, 2, 3):
        into, out = sizes[number - 1], sizes[number]
        state[f"ff.0.ff.linear_{number}.weight"] = torch.randn(out, into, generator=draw) / into**0.5
        state[f"ff.0.ff.linear_{number}.bias"] = torch.randn(out, generator=draw) * 0.2
    return state


@dataclass(frozen=True)
class _Made:
    text: str
    clip: str
    checkpoint: Path
    state: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> _Made:
    path = tmp_path_factory.mktemp("polos")
    roberta = _write_roberta(path / "roberta")
    clip = write_clip(path / "clip", seed=1, spread=None, longest=LONGEST)
    state = _checkpoint(roberta)
    torch.save({"state_dict": state, "epoch": 7, "hyper_parameters": {"pool": "cls"}}, path / "polos.ckpt")
    (path / "hparams.yaml").write_text(yaml.safe_dump({**SETTINGS, "dropout": 0.1}))
    convert(path / "polos.ckpt", str(path / "roberta"), clip, path / "converted")
    return _Made(str(path / "roberta"), clip, path / "polos.ckpt", state, path / "converted")


class _Plain:
    """The authors' `forward`, batch by batch, from the checkpoint's own weights; CLIP and RoBERTa by transformers."""

    def __init__(self, made: _Made) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, RobertaModel

        self.state = made.state
        self.roberta: Any = RobertaModel.from_pretrained(made.text).eval()
        prefix = "encoder.model."
        own = {name.removeprefix(prefix): value for name, value in made.state.items() if name.startswith(prefix)}
        self.roberta.load_state_dict(own, strict=False)
        self.words: Any = AutoTokenizer.from_pretrained(made.text)
        self.clip: Any = CLIPModel.from_pretrained(made.folder / "clip").eval()
        self.clip_words: Any = AutoTokenizer.from_pretrained(made.clip)
        self.pixels: Any = AutoImageProcessor.from_pretrained(made.clip)

    def sentences(self, texts: list[str]) -> Any:
        """COMET's mixture with `do_layer_norm`: statistics of all tokens of the batch that are no padding."""
        tokens = self.words(texts, padding=True, return_tensors="pt")
        mask = tokens["attention_mask"].float()[:, :, None]
        with torch.no_grad():
            layers = self.roberta(**tokens, output_hidden_states=True).hidden_states
        weights = torch.cat([self.state[f"scalar_mix.scalar_parameters.{n}"] for n in range(LAYERS + 1)]).softmax(0)
        mixed = 0.0
        for weight, layer in zip(weights, layers, strict=True):
            count = mask.sum() * TEXT_SIZE
            mean = (layer * mask).sum() / count
            variance = (((layer * mask - mean) * mask) ** 2).sum() / count
            mixed = mixed + weight * (layer - mean) / torch.sqrt(variance + 1e-12)
        return (self.state["scalar_mix.gamma"] * mixed)[:, 0]

    def clip_texts(self, texts: list[str]) -> Any:
        rows = []
        for text in texts:
            with torch.no_grad():
                row = self.clip.get_text_features(**self.clip_words("A photo depicts " + text, return_tensors="pt"))
            rows.append(getattr(row, "pooler_output", row)[0])
        return torch.stack(rows)

    def clip_images(self, keys: list[str]) -> Any:
        pixels = self.pixels(images=[IMAGES.decoded(key) for key in keys], return_tensors="pt")
        with torch.no_grad():
            found = self.clip.get_image_features(**pixels)
        return getattr(found, "pooler_output", found)

    def batch(self, keys: list[str]) -> list[float]:
        own, own_clip = (make([CANDIDATES[key] for key in keys]) for make in (self.sentences, self.clip_texts))
        image = self.clip_images(keys)
        scores = []
        for human in zip(*(REFERENCES[key] for key in keys), strict=False):  # the shortest list ends it, as theirs
            ref, ref_clip = self.sentences(list(human)), self.clip_texts(list(human))
            features = (ref, own, abs(own - ref), own * ref, image, own_clip, abs(image - own_clip), image * own_clip)
            x = torch.cat([*features, abs(ref_clip - own_clip), ref_clip * own_clip], dim=1)
            for number in (1, 2, 3):
                x = x @ self.state[f"ff.0.ff.linear_{number}.weight"].T + self.state[f"ff.0.ff.linear_{number}.bias"]
                x = torch.tanh(x) if number < 3 else torch.sigmoid(x)
            scores.append(x[:, 0])
        return [float(value) for value in torch.stack(scores).max(dim=0).values]


def _polos(made: _Made, **options: Any) -> Any:
    return build_metric("polos", {"model": made.folder, "image_source": IMAGES, "device": "cpu", **options})


@pytest.mark.parametrize(("together", "batch_size"), [(1, 1), (1, 64), (2, 3), (4, 64)])
def test_scores_are_the_authors(made: _Made, together: int, batch_size: int) -> None:
    plain, keys = _Plain(made), list(CANDIDATES)
    expected = [score for start in range(0, 6, together) for score in plain.batch(keys[start : start + together])]
    metric = _polos(made, normalised_together=together, batch_size=batch_size)
    found = metric.statistics(CaptionSet(CANDIDATES, ReferenceSet(REFERENCES)))
    assert found.shape == (6, 1) and found.min() > 0 and found.max() < 1
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=3e-6)
    assert len(np.unique(found.round(3))) >= 5


def test_parts_of_the_images_do_not_change_the_scores(made: _Made, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = CaptionSet(CANDIDATES, ReferenceSet(REFERENCES))
    whole = {n: _polos(made, normalised_together=n).statistics(captions) for n in (1, 2)}
    monkeypatch.setattr("hfcap.metrics.polos._IMAGES_AT_A_TIME", 3)
    for together, expected in whole.items():
        again = _polos(made, normalised_together=together).statistics(captions)
        np.testing.assert_allclose(again, expected, rtol=0, atol=1e-6)


def test_the_best_human_caption_counts_and_images_matter(made: _Made) -> None:
    captions = {key: CANDIDATES[key] for key in ("1", "2")}
    one = [{key: [REFERENCES[key][n]] for key in captions} for n in (0, 1)]
    alone = [_polos(made).statistics(CaptionSet(captions, ReferenceSet(human))) for human in one]
    both = {key: REFERENCES[key][:2] for key in captions}
    found = _polos(made).statistics(CaptionSet(captions, ReferenceSet(both)))
    np.testing.assert_allclose(found, np.maximum(*alone), atol=1e-6)
    swapped = DecodedImages({"1": _Image(2), "2": _Image(1)}, bar=False)
    other = _polos(made, image_source=swapped).statistics(CaptionSet(captions, ReferenceSet(both)))
    assert np.abs(other - found).max() > 1e-3


def test_signature_and_long_captions(made: _Made, capsys: pytest.CaptureFixture[str]) -> None:
    suite = CaptionSuite(["polos"], options={"polos": {"model": made.folder, "image_source": IMAGES, "device": "cpu"}})
    result = suite.compute({"1": "a dog " * 30}, {"1": ["a dog"]})
    assert set(result.values) == {"polos"}
    assert "1 of 1 captions are longer than the 60 tokens that its CLIP reads" in " ".join(
        capsys.readouterr().err.split()
    )
    signature = result.signature["metrics"]["polos"]
    assert signature["model"] == "converted" and len(signature["weights"].split(",")) == 3
    assert signature["normalised_together"] == 1
    with pytest.raises(UserError, match="English"):
        CaptionSuite(["polos"], language="de", options={"polos": {"model": made.folder, "image_source": IMAGES}})


def test_wrong_folders_are_one_message(made: _Made, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(UserError, match="looks at the images: give its option images"):
        build_metric("polos", {"model": made.folder})
    with pytest.raises(UserError, match="needs the authors' weights: give its option model"):
        build_metric("polos", {"image_source": IMAGES})
    with pytest.raises(UserError, match=r"^polos\.model: .*nowhere has no polos\.safetensors; give the folder"):
        _polos(made, model=tmp_path / "nowhere")
    folder = tmp_path / "wrong"
    folder.mkdir()
    for part in ("text", "clip"):
        (folder / part).symlink_to(made.folder / part)
    captions = CaptionSet({"1": "a dog"}, ReferenceSet({"1": ["a dog"]}))
    head = load_file(made.folder / "polos.safetensors")
    for changed, said in (
        ({**head, "mix.weights": torch.zeros(5)}, r"mix\.weights is \(5,\), and the RoBERTa and CLIP .* need \(4,\)"),
        ({name: value for name, value in head.items() if name != "linear_2.bias"}, r"linear_2\.\w+ is"),
    ):
        save_file(changed, folder / "polos.safetensors")
        with pytest.raises(UserError, match=said):
            _polos(made, model=folder).statistics(captions)
    (folder / "polos.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"polos\.safetensors: cannot be read"):
        _polos(made, model=folder).statistics(captions)


def test_the_state_of_lightning_is_not_needed(made: _Made, tmp_path: Path) -> None:
    """Its classes are there while the checkpoint is written, and gone when it is read."""
    name = "pytorch_lightning.callbacks.early_stopping"
    found = type("EarlyStopping", (), {"__module__": name})
    stopped = found()
    stopped.patience = 1
    path = tmp_path / "reprod.ckpt"
    with pytest.MonkeyPatch.context() as patched:
        for end in range(1, 4):
            module = types.ModuleType(".".join(name.split(".")[:end]))
            patched.setitem(sys.modules, module.__name__, module)
        patched.setattr(sys.modules[name], "EarlyStopping", found, raising=False)
        torch.save({"state_dict": made.state, "callbacks": {found: {"patience": 1}, "object": stopped}}, path)
    weights = read_checkpoint(path)
    assert weights.keys() == made.state.keys()
    assert all(torch.equal(weights[key], value.float()) for key, value in made.state.items())


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('a pickle was run')",)


def test_other_checkpoints_are_refused(made: _Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reprod.ckpt"
    settings = tmp_path / "hparams.yaml"
    to = tmp_path / "out"

    def refused(said: str) -> None:
        with pytest.raises(UserError, match=said):
            convert(path, made.text, made.clip, to)
        assert not to.exists()

    refused(r"hparams\.yaml")
    settings.write_text(yaml.safe_dump({**SETTINGS, "pool": "avg"}))
    refused(r"hparams\.yaml: pool is 'avg'; .* pool: cls means; choose")
    settings.write_text("a: [")
    refused(r"hparams\.yaml: no YAML")
    settings.write_text(yaml.safe_dump(SETTINGS))
    refused("cannot be read as weights alone")
    torch.save({"state_dict": made.state, "hook": _Evil()}, path)
    refused("cannot be read as weights alone")
    torch.save({"weights": made.state}, path)
    refused("holds no 'state_dict' of tensors")
    torch.save({"state_dict": {**made.state, "ff.1.weight": torch.zeros(1)}}, path)
    refused(r"ff\.1\.weight is no weight of Polos")
    torch.save({"state_dict": {name: value for name, value in made.state.items() if "scalar_mix" not in name}}, path)
    refused("has not all parts of Polos")
    torch.save({"state_dict": {**made.state, "ff.0.ff.linear_4.bias": torch.zeros(1)}}, path)
    refused("its head has another layout")
    torch.save({"state_dict": made.state | {"clip.visual.proj": torch.zeros(16, 3)}}, path)
    refused("not a checkpoint of .*visual_projection")
    monkeypatch.setattr("sys.argv", ["convert_polos.py", str(path), made.text, made.clip, "-o", str(to)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
