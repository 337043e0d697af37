"""Images that are small files and large work: memory and processor time are bounded."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hfcap.data import images
from hfcap.data.images import BytesImage, UnreadableImageError, decode_image

# Decodes the image in a file by eight threads, and prints the peak memory of the process in MB.
_EIGHT_THREADS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from hfcap.data.images import FileImage, decode_image
image = FileImage(Path(sys.argv[1]))
with ThreadPoolExecutor(8) as pool:
    sizes = set(pool.map(lambda _: decode_image(image, draft_size=32).size, range(8)))
print(sizes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["LA", "RGB"])
def test_large_images_do_not_fill_the_memory_together(mode: str, tmp_path: Path) -> None:
    """Eight of 8,900 pixels square took 7.2 GB; one alone needs what it decodes to, and its result."""
    side = 8900
    path = tmp_path / "large.png"
    path.write_bytes(encoded(Image.new(mode, (side, side)), compress_level=1))
    assert path.stat().st_size < 2_000_000
    done = subprocess.run(
        [sys.executable, "-c", _EIGHT_THREADS, str(path)], capture_output=True, text=True, timeout=250, check=True
    )
    sizes, peak = done.stdout.rsplit(maxsplit=1)
    assert sizes == f"{{({side}, {side})}}"
    one = side * side * 4 / 2**20  # Pillow keeps four bytes a pixel in any of these modes
    # What is read, the result, and results before it that busy threads have not let go yet; the interpreter, strips.
    assert int(peak) < 5 * one + 200


def test_conversion_by_strips_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    palette = Image.fromarray(generator.integers(0, 255, (50, 37, 3), dtype=np.uint8)).quantize(16)
    contents = {
        "RGBA": encoded(Image.fromarray(generator.integers(0, 255, (50, 37, 4), dtype=np.uint8))),
        "LA": encoded(Image.fromarray(generator.integers(0, 255, (50, 37, 2), dtype=np.uint8))),
        "I;16": encoded(Image.fromarray(generator.integers(0, 65535, (50, 37), dtype=np.uint16))),
        "P": encoded(palette, transparency=3),
        "P bytes": encoded(palette, transparency=bytes(range(0, 160, 10))),
        "L": encoded(Image.fromarray(generator.integers(0, 255, (50, 37), dtype=np.uint8)), transparency=7),
        "RGB": encoded(Image.fromarray(generator.integers(0, 2, (50, 37, 3), dtype=np.uint8)), transparency=(1, 1, 1)),
    }
    whole = {name: np.asarray(decode_image(BytesImage(content, name))) for name, content in contents.items()}
    monkeypatch.setattr(images, "_STRIP_PIXELS", 37 * 7)
    for name, content in contents.items():
        found = np.asarray(decode_image(BytesImage(content, name)))
        assert found.shape == (50, 37, 3) and (found == whole[name]).all(), name


def with_scans(n_scans: int, side: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    content = encoded(Image.new("RGB", (side, side), "red"), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    scan = content[last : content.rindex(b"\xff\xd9")]
    return content[:last] + scan * (n_scans - content[:last].count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded() -> None:
    """538 kB with 2,000 scans took 144 seconds."""
    bomb = with_scans(2000, 4000)
    assert len(bomb) < 1_000_000 * 80
    started = time.process_time()
    for draft_size in (None, 32):
        with pytest.raises(UnreadableImageError, match=r"bomb: a JPEG of 2,000 scans"):
            decode_image(BytesImage(bomb, "bomb"), draft_size)
    assert time.process_time() - started < 30  # not a measurement: decoding takes minutes


def test_usual_jpegs_are_decoded() -> None:
    for n_scans, side in ((10, 3000), (100, 200)):
        content = with_scans(n_scans, side)
        assert content.count(b"\xff\xda") == n_scans
        assert decode_image(BytesImage(content, "usual")).size == (side, side)


def test_a_forked_worker_decodes_large_images_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGE_IMAGE_PIXELS", 10)
    content = encoded(Image.new("RGB", (8, 8)))
    assert decode_image(BytesImage(content, "small")).size == (8, 8)
    child = os.fork()
    if child == 0:
        os._exit(0 if decode_image(BytesImage(content, "small")).size == (8, 8) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    with pytest.raises(UnreadableImageError, match="cannot be decoded"):
        decode_image(BytesImage(content[: len(content) * 2 // 3], "cut"))
