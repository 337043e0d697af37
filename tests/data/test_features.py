"""Feature store: what it gives is what the encoder says, it encodes once, and it notices what went wrong."""

from __future__ import annotations

import errno
import pickle
import shutil
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hfcap.captioners.base import Captioner
from hfcap.data.images import FileImage
from hfcap.data.loading import PixelInputs
from hfcap.errors import WorkError
from hfcap.schema import CaptionedImage
from hfcap.store import row_store
from hfcap.store.features import FeatureStore, StoredStates, captioner_encoder, embedding_encoder
from hfcap.store.row_store import Place, RowStore
from tests.captioners.backbones import ENCODERS, LANGUAGE_MODELS
from tests.captioners.helpers import build, write_image


@dataclass
class Process:
    """Stands for an Accelerator: which process this is, and what it does at a barrier."""

    process_index: int = 0
    num_processes: int = 1
    at_barrier: Callable[[], None] = lambda: None

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def wait_for_everyone(self) -> None:
        self.at_barrier()


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return build("vit_gpt2")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[CaptionedImage]:
    folder = tmp_path_factory.mktemp("images")
    paths = [write_image(folder / f"{number}.png", seed=number) for number in range(7)]
    return [CaptionedImage(path.stem, path.name, ("x",), FileImage(path)) for path in paths]


def _direct(captioner: Captioner, records: Sequence[CaptionedImage]) -> torch.Tensor:
    """What the encoder says of the pixels that training gets (tests/data/test_pixels.py: those of the processor)."""
    captioner.model.eval()
    with torch.no_grad():
        return captioner.encode(PixelInputs(records, captioner.image_processor).pixel_values(range(len(records))))


def _stacked(states: StoredStates) -> torch.Tensor:
    return torch.stack([states[number] for number in range(len(states))]).float()


def _store(captioner: Captioner, folder: Path, process: Process | None = None) -> FeatureStore:
    process = process or Process()
    return FeatureStore(captioner_encoder(captioner), folder, process)


def encoder_key(captioner: Captioner) -> str:
    return captioner_encoder(captioner).key


def _forbid_encoding(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        raise AssertionError("encoded again")

    monkeypatch.setattr(captioner, "encode", encode)


def test_states_are_the_encoder_s(captioner: Captioner, records: list[CaptionedImage], tmp_path: Path) -> None:
    states = _store(captioner, tmp_path).inputs(records, batch_size=3, num_workers=0)
    assert len(states) == len(records) and states[0].dtype == torch.float16
    torch.testing.assert_close(_stacked(states), _direct(captioner, records), rtol=1e-3, atol=1e-3)


def test_mixed_precision_does_not_reach_the_encoder(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path
) -> None:
    class MixedPrecision(Process):
        def autocast(self) -> Any:
            return torch.autocast("cpu", torch.bfloat16)

    states = _store(captioner, tmp_path, MixedPrecision()).inputs(records, 3, 0)
    assert torch.equal(_stacked(states), _direct(captioner, records).half().float())


def test_order_and_choice_of_records_do_not_matter(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path
) -> None:
    _store(captioner, tmp_path).inputs(records, 3, 0)
    chosen = [records[5], records[0], records[2]]
    states = _store(captioner, tmp_path).inputs(chosen, 3, 0)
    torch.testing.assert_close(_stacked(states), _direct(captioner, chosen), rtol=1e-3, atol=1e-3)


def test_second_use_encodes_nothing(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _stacked(_store(captioner, tmp_path).inputs(records, 3, 0))
    _forbid_encoding(captioner, monkeypatch)
    assert torch.equal(_stacked(_store(captioner, tmp_path).inputs(records, 2, 0)), first)


def test_continues_behind_a_kill(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_store, "IMAGES_PER_SHARD", 2)
    store = _store(captioner, tmp_path)
    expected = _stacked(store.inputs(records, 2, 0))
    shards = sorted(store.folder.glob("shard-*"))
    assert len(shards) == 4
    shards[0].unlink()
    shards[2].unlink()
    # What a kill leaves of a shard that was being written.
    (store.folder / ".shard-x.safetensors.abc").write_bytes(b"half")
    encoded: list[int] = []
    encode = captioner.encode

    def counting(pixel_values: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixel_values))
        return encode(pixel_values)

    monkeypatch.setattr(captioner, "encode", counting)
    assert torch.equal(_stacked(_store(captioner, tmp_path).inputs(records, 2, 0)), expected)
    assert 2 < sum(encoded) <= 5  # at most two shards of two, and one image to tell the size


def test_interrupted_encoding_keeps_whole_shards(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_store, "IMAGES_PER_SHARD", 2)
    encode, calls = captioner.encode, [0]

    def failing(pixel_values: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 4:  # one to tell the size, two shards, then the plug is pulled
            raise KeyboardInterrupt
        return encode(pixel_values)

    with monkeypatch.context() as patch:
        patch.setattr(captioner, "encode", failing)
        store = _store(captioner, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            store.inputs(records, 2, 0)
    assert len(list(store.folder.glob("shard-*"))) == 2
    states = _store(captioner, tmp_path).inputs(records, 2, 0)
    torch.testing.assert_close(_stacked(states), _direct(captioner, records), rtol=1e-3, atol=1e-3)


def test_another_run_may_add_images_while_processes_share_the_work(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing looks otherwise to the second process than to the first, which listed the store before."""
    listing = RowStore.places

    def listed_before(store: RowStore) -> dict[str, Place]:
        found = listing(store)
        monkeypatch.setattr(RowStore, "places", listing)
        _store(captioner, tmp_path).inputs(records[:3], 3, 0)  # the other run
        return found

    monkeypatch.setattr(RowStore, "places", listed_before)

    def second() -> None:
        _store(captioner, tmp_path, Process(1, 2)).inputs(records, 3, 0)

    states = _store(captioner, tmp_path, Process(0, 2, at_barrier=second)).inputs(records, 3, 0)
    torch.testing.assert_close(_stacked(states), _direct(captioner, records), rtol=1e-3, atol=1e-3)


def test_a_store_that_may_only_be_read_is_used(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _stacked(_store(captioner, tmp_path).inputs(records, 3, 0))

    def touch(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "touch", touch)
    assert torch.equal(_stacked(_store(captioner, tmp_path).inputs(records, 3, 0)), first)


def test_same_image_is_stored_once(captioner: Captioner, records: list[CaptionedImage], tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    shutil.copyfile(Path(records[0].image.describe()), copy)
    twin = CaptionedImage("twin", "copy.png", ("y",), FileImage(copy))
    states = _store(captioner, tmp_path / "store").inputs([records[0], twin, records[1], twin], 3, 0)
    assert len(states) == 4
    assert torch.equal(states[0], states[1]) and torch.equal(states[1], states[3])
    assert len({(place.path, place.row) for place in states.places}) == 2


def test_files_that_look_alike_to_the_encoder_both_stay(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same pixels in different bytes give equal states: one shard must not replace the other."""
    monkeypatch.setattr(row_store, "IMAGES_PER_SHARD", 1)
    path = Path(records[0].image.describe())
    other = tmp_path / "other.png"
    Image.open(path).save(other, "PNG", compress_level=0)
    assert other.read_bytes() != path.read_bytes()
    both = [records[0], CaptionedImage("other", "other.png", ("y",), FileImage(other))]
    states = _store(captioner, tmp_path / "store").inputs(both, 1, 0)
    assert torch.equal(states[0], states[1])


def test_key_changes_with_weights_processor_and_output() -> None:
    captioner = build("clip_prefix")
    key = encoder_key(captioner)
    assert key == encoder_key(build("clip_prefix"))
    assert key != encoder_key(build("clip_prefix", vision_feature="patches", mapper="linear"))

    captioner.image_processor.image_mean = [0.4, 0.5, 0.5]
    assert key != encoder_key(captioner)
    captioner.image_processor.image_mean = [0.5, 0.5, 0.5]
    assert key == encoder_key(captioner)
    with torch.no_grad():
        next(captioner.model.mapper.parameters()).add_(1)
    assert key == encoder_key(captioner), "what stands behind the encoder does not matter"
    with torch.no_grad():
        next(captioner.model.vision_model.parameters()).view(-1)[3].add_(1e-3)
    assert key != encoder_key(captioner)


def test_encoding_leaves_encoder_and_random_state_alone(records: list[CaptionedImage], tmp_path: Path) -> None:
    """Batch norm of an encoder in training mode would learn from it; then the store would not fit its key."""
    captioner = build("clip_prefix", vision_config=ENCODERS["resnet"], language_model_config=LANGUAGE_MODELS["gpt2"])
    expected = _direct(captioner, records)
    captioner.model.train()
    key, random_state = encoder_key(captioner), torch.get_rng_state()
    states = _store(captioner, tmp_path).inputs(records, 3, 0)
    assert encoder_key(captioner) == key
    assert torch.equal(torch.get_rng_state(), random_state)
    assert captioner.model.training
    torch.testing.assert_close(_stacked(states), expected, rtol=2e-3, atol=2e-3)


def test_values_beyond_float16_are_kept_as_bfloat16(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = captioner.encode
    monkeypatch.setattr(captioner, "encode", lambda pixels: encode(pixels) * 1e6)
    states = _store(captioner, tmp_path).inputs(records[:2], 2, 0)
    assert states[0].dtype == torch.bfloat16
    torch.testing.assert_close(_stacked(states), _direct(captioner, records[:2]), rtol=1e-2, atol=1e3)


@pytest.mark.parametrize("damage", ["cut off", "not safetensors", "no metadata"])
def test_damaged_shard_is_named(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path, damage: str
) -> None:
    from safetensors.torch import save

    store = _store(captioner, tmp_path)
    store.inputs(records, 3, 0)
    [shard] = store.folder.glob("shard-*")
    content = shard.read_bytes()
    damaged = {
        "cut off": content[:-10],
        "not safetensors": b"\0" * 50,
        "no metadata": save({"states": torch.zeros(1, 2, 3)}),
    }
    shard.write_bytes(damaged[damage])
    with pytest.raises(WorkError, match=r"damaged shard.*delete the file") as caught:
        _store(captioner, tmp_path).inputs(records, 3, 0)
    assert str(shard) in str(caught.value)


def test_changed_bytes_inside_a_shard_are_noticed(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path
) -> None:
    store = _store(captioner, tmp_path)
    store.inputs(records, 3, 0)
    [shard] = store.folder.glob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(bytes(content))
    states = _store(captioner, tmp_path).inputs(records, 3, 0)
    with pytest.raises(WorkError, match="damaged shard"):
        _stacked(states)


def test_no_room_is_said_before_anything_is_written(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10**9, 10**9, 100))
    store = _store(captioner, tmp_path)
    with pytest.raises(
        WorkError, match=r"needs .* kB but only .* free.*feature_store_folder.*HFCAP_CACHE.*feature_store: off"
    ):
        store.inputs(records, 3, 0)
    assert not list(store.folder.glob("shard-*"))


def test_stored_states_travel_to_workers(captioner: Captioner, records: list[CaptionedImage], tmp_path: Path) -> None:
    states = _store(captioner, tmp_path).inputs(records, 3, 0)
    expected = _stacked(states)
    assert torch.equal(_stacked(pickle.loads(pickle.dumps(states))), expected)


def test_folder_of_the_recipe_or_of_the_cache(captioner: Captioner, tmp_path: Path) -> None:
    key = encoder_key(captioner)
    assert _store(captioner, tmp_path).folder == tmp_path / key
    assert FeatureStore(captioner_encoder(captioner), None).folder.name == key


def test_embeddings_of_a_dual_encoder(records: list[CaptionedImage], tmp_path: Path) -> None:
    """Without recipe and Accelerator: float32 vectors, equal to transformers' own, computed once."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config={**small, "vocab_size": 20}, vision_config=vision, projection_dim=6)
    ).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    store = FeatureStore(embedding_encoder("tiny-clip", model, processor), tmp_path)
    found = store.inputs(records, batch_size=3).stacked()
    images: list[Any] = [Image.open(record.image.describe()) for record in records]
    pixels = processor(images, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_image_features(**pixels).pooler_output
    assert found.shape == (7, 6) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    model.get_image_features = None
    again = FeatureStore(embedding_encoder("tiny-clip", model, processor), tmp_path)
    assert torch.equal(again.inputs(records).stacked(), found)
    assert again.rows.info().encoder == "tiny-clip" and again.rows.info().n_images == 7


def test_without_a_place_to_write_rows_are_kept_for_the_moment(
    captioner: Captioner, records: list[CaptionedImage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores and searches: what one process computes for itself."""
    (tmp_path / "file").write_text("")
    encoder = captioner_encoder(captioner)
    states = FeatureStore(encoder, tmp_path / "file" / "store").inputs(records)
    again = FeatureStore(encoder, tmp_path / "kept").inputs(records)
    assert torch.equal(_stacked(states), _stacked(again))
    assert "cannot be written" in capsys.readouterr().err
    folder = states.places[0].path.parent
    copied = pickle.loads(pickle.dumps(states))
    del copied
    assert folder.is_dir()  # a worker's copy does not take the folder along
    del states
    assert not folder.exists()
