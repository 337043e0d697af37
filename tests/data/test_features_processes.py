"""The feature store with real processes: one that is killed, and two that share the work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hfcap.captioners.base import Captioner
from hfcap.data.images import FileImage
from hfcap.data.loading import PixelInputs
from hfcap.schema import CaptionedImage
from hfcap.store.features import FeatureStore, captioner_encoder
from tests.captioners.helpers import build, write_image
from tests.data import fill_store

REPOSITORY = Path(__file__).parents[2]
N_IMAGES = 9


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return build("vit_gpt2")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(N_IMAGES):
        write_image(folder / f"{number}.png", seed=number)
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY)}


def expected_states(captioner: Captioner, images: Path) -> torch.Tensor:
    paths = sorted(images.glob("*.png"))
    records = [CaptionedImage(path.stem, path.name, ("x",), FileImage(path)) for path in paths]
    captioner.model.eval()
    with torch.no_grad():
        return captioner.encode(PixelInputs(records, captioner.image_processor).pixel_values(range(len(records))))


def test_a_killed_process_leaves_whole_shards_and_the_next_goes_on(
    captioner: Captioner, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, fill_store.__file__, str(images), str(tmp_path), "0.3"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*/shard-*"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    n_whole = len(list(tmp_path.glob("*/shard-*")))
    assert 2 <= n_whole < 5
    encoded: list[int] = []
    encode = captioner.encode

    def counting(pixel_values: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixel_values))
        return encode(pixel_values)

    with monkeypatch.context() as patch:
        patch.setattr(captioner, "encode", counting)
        store = FeatureStore(captioner_encoder(captioner), tmp_path)
        found = store.inputs(fill_store.records_in(images), 2, 0).stacked()
    assert sum(encoded) - 1 == N_IMAGES - 2 * n_whole  # one to tell the size
    torch.testing.assert_close(found, expected_states(captioner, images), rtol=1e-3, atol=1e-3)


def test_two_processes_share_the_work(forking: str, captioner: Captioner, images: Path, tmp_path: Path) -> None:
    command = [forking, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command += [fill_store.__file__, str(images), str(tmp_path), "0"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [(tmp_path / f"encoded-{rank}.txt").read_text() for rank in range(2)] == ["5", "4"]
    assert done.stderr.count("Feature store: encoding 9 images once") == 1
    store = FeatureStore(captioner_encoder(captioner), tmp_path)
    assert store.rows.info().n_images == N_IMAGES
    found = store.inputs(fill_store.records_in(images)).stacked()
    torch.testing.assert_close(found, expected_states(captioner, images), rtol=1e-3, atol=1e-3)
