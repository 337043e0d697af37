"""Decoding images that nobody vouches for: limits, colour and orientation (formats: `schema.IMAGE_FORMATS`)."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np
from PIL import Image, UnidentifiedImageError

from hfcap.data.heic import heic_formats, needs_pillow_heif
from hfcap.errors import UserError
from hfcap.schema import IMAGE_FORMATS, ImageBytes
from hfcap.text import file_name_problem

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".jpe", ".avif"}
)
"""File name endings, in lower case, by which a folder's images are found."""

MAX_IMAGE_BYTES = 128 * 1024 * 1024
MAX_IMAGE_PIXELS = 80_000_000
"""Larger images are taken for decompression bombs; below the size at which Pillow itself begins to warn."""

LARGE_IMAGE_PIXELS = 16_000_000
"""Of larger images a process decodes one at a time."""

MAX_SCANNED_PIXELS = 1_600_000_000
"""Pixels of a JPEG times its scans: twenty of them at the largest size, some ten seconds."""
_USUAL_SCANS = 20

_STRIP_PIXELS = 4_000_000


class _LargeImages:
    """Decodes large images one at a time, in one thread: what each thread has freed stays with it otherwise."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin again, as a worker process has to: threads of its parent are not there."""
        self._thread = ThreadPoolExecutor(1, "large-images")

    def decode(self, opened: Image.Image) -> Image.Image:
        """Return the decoded image when it is its turn."""
        return self._thread.submit(_decoded, opened).result()


_large_images = _LargeImages()
os.register_at_fork(after_in_child=_large_images.start)

_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's decoders and EXIF parser raise on damaged bytes, besides OSError and ValueError.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
)


class UnreadableImageError(UserError):
    """An image is missing or cannot be decoded; the message names it and the reason."""


@runtime_checkable
class CheckableImage(ImageBytes, Protocol):
    """Encoded bytes that may be damaged; images without this method (rendered ones) are not checked."""

    def check_key(self) -> str:
        """Return a text that changes when the encoded bytes may have changed.

        Raises:
            UnreadableImageError: the image is missing.
        """
        ...


def is_checkable(image: ImageBytes) -> TypeGuard[CheckableImage]:
    """Whether an image has a `check_key`; `isinstance` looks all parts of the protocol up, for each image again."""
    return hasattr(image, "check_key")


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image in a file."""

    path: Path

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            UnreadableImageError: missing, not a regular file, empty, or larger than MAX_IMAGE_BYTES.
        """
        try:
            # O_NONBLOCK: opening a named pipe must not wait for somebody to write into it.
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            with os.fdopen(descriptor, "rb") as handle:
                self._require_image_file(os.fstat(handle.fileno()))
                return handle.read(MAX_IMAGE_BYTES)
        except OSError as error:
            raise self._unreadable(error) from None

    def describe(self) -> str:
        """Return what messages call the file: its path."""
        return str(self.path)

    def check_key(self) -> str:
        """Return path, size and time of the last change.

        Raises:
            UnreadableImageError: missing, not a regular file, empty, or larger than MAX_IMAGE_BYTES.
        """
        try:
            status = self.path.stat()
        except OSError as error:
            raise self._unreadable(error) from None
        self._require_image_file(status)
        return f"{self.path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"

    def _require_image_file(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImageError(f"{self.describe()}: not a file")
        if status.st_size == 0:
            raise UnreadableImageError(f"{self.describe()}: the file is empty")
        if status.st_size > MAX_IMAGE_BYTES:
            raise UnreadableImageError(
                f"{self.describe()}: {status.st_size:,} bytes, more than the limit {MAX_IMAGE_BYTES:,}"
            )

    def _unreadable(self, error: OSError) -> UnreadableImageError:
        if isinstance(error, FileNotFoundError):
            meant = "file" if self.path.suffix.lower() in IMAGE_SUFFIXES else "file or folder"
            return UnreadableImageError(f"{self.describe()}: no such {meant}")
        return UnreadableImageError(f"{self.describe()}: cannot be read ({error.strerror or error})")


@dataclass(frozen=True, slots=True)
class BytesImage:
    """An encoded image that was read already; `name` is where from."""

    content: bytes
    name: str

    def read(self) -> bytes:
        """Return the encoded image."""
        return self.content

    def describe(self) -> str:
        """Return where the image came from."""
        return self.name


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """An image that somebody opened or made with Pillow; `name` tells it from others."""

    image: Image.Image
    name: str

    def read(self) -> bytes:
        """Return the image as `decode_image` gives it, encoded without loss.

        Raises:
            UnreadableImageError: damaged or too large.
        """
        content = io.BytesIO()
        decode_image(self).save(content, format="PNG")
        return content.getvalue()

    def describe(self) -> str:
        """Return the name."""
        return self.name


_LOADING = threading.Lock()
"""Pillow reads a file when its pixels are first asked for, and two threads may ask for the same image."""


def decode_image(image: ImageBytes, draft_size: int | None = None) -> Image.Image:
    """Decode one image to 8-bit RGB as a person would see it.

    EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled to 8, of an animation the first
    frame is taken.

    Args:
        draft_size: shorter side in pixels that the caller needs at least. JPEGs are then decoded at the smallest of
            the scales 1, 1/2, 1/4, 1/8 that still gives it (several times faster); other formats ignore it.

    Raises:
        UnreadableImageError: missing, damaged, truncated, of a format not in IMAGE_FORMATS, or too large.
    """
    name = image.describe()
    if isinstance(image, OpenedImage):
        with _naming_the_image(name):
            return _decoded_copy(image.image)
    encoded = image.read()
    if len(encoded) > MAX_IMAGE_BYTES:
        raise UnreadableImageError(f"{name}: {len(encoded):,} bytes, more than the limit {MAX_IMAGE_BYTES:,}")
    if needs_pillow_heif(encoded):
        raise UnreadableImageError(f"{name}: a HEIC image; pip install pillow-heif, or convert it to JPEG")
    with _naming_the_image(name), Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS + heic_formats()) as opened:
        _require_size(opened)
        width, height = opened.size
        n_scans = 1
        if opened.format == "JPEG":
            n_scans = _scans(encoded, width * height, name)
            if draft_size is not None:
                shrink = next((by for by in (8, 4, 2) if -(-min(width, height) // by) >= draft_size), 1)
                opened.draft(None, (width // shrink, height // shrink))
        # Several scans are all kept, at whatever scale they are decoded.
        kept = width * height // 2 if n_scans > 1 else 0
        large = max(opened.width * opened.height, kept) > LARGE_IMAGE_PIXELS
        return _large_images.decode(opened) if large else _decoded(opened)


def _decoded_copy(image: Image.Image) -> Image.Image:
    _require_size(image)
    with _LOADING:
        image.load()
    seen = _upright(_as_rgb(image), _orientation(image))
    return seen.copy() if seen is image else seen


def _require_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError


@contextmanager
def _naming_the_image(name: str) -> Iterator[None]:
    """Turn everything that Pillow raises on damaged bytes into UnreadableImageError."""
    try:
        yield
    except UnidentifiedImageError:
        allowed = ", ".join(IMAGE_FORMATS)
        raise UnreadableImageError(f"{name}: damaged, or not an image in one of the formats {allowed}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImageError(
            f"{name}: more than {MAX_IMAGE_PIXELS:,} pixels (decompression bomb?); save the image smaller"
        ) from None
    except _DECODER_ERRORS as error:
        raise UnreadableImageError(f"{name}: cannot be decoded ({error or type(error).__name__})") from None


def _decoded(opened: Image.Image) -> Image.Image:
    opened.load()
    return _upright(_as_rgb(opened), _orientation(opened))


def _scans(encoded: bytes, n_pixels: int, name: str) -> int:
    """Return how many scans a JPEG has, those of thumbnails in it included; each passes over all pixels.

    Raises:
        UnreadableImageError: so many that it would take minutes.
    """
    n_scans = encoded.count(b"\xff\xda")
    if n_scans * n_pixels > MAX_SCANNED_PIXELS and n_scans > _USUAL_SCANS:
        raise UnreadableImageError(
            f"{name}: a JPEG of {n_scans:,} scans, which would take minutes to decode; save the image again"
        )
    return n_scans


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow's own conversion clips 16-bit grey at 255 instead of scaling it.
        return _by_strips(image, partial(_grey_of_16_bits, n_bits=_bits_used(image)))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels, whose range the file does not tell; save the image with 8 bits per channel")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _by_strips(image, _on_white)
    # Pillow would copy an image that is RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert to RGB strip by strip: what a conversion needs besides its result is then small."""
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        strip.info = image.info
        whole.paste(convert(strip), (0, top))
    return whole


def _bits_used(image: Image.Image) -> int:
    """Return how many of 16 bits an image uses: cameras and scanners store 12 bits, or 8, in 16."""
    rows = max(1, _STRIP_PIXELS // image.width)
    tops = range(0, image.height, rows)
    brightest = max(int(np.asarray(image.crop((0, top, image.width, top + rows))).max()) for top in tops)
    return next(n_bits for n_bits in (8, 12, 16) if brightest < 1 << n_bits or n_bits == 16)


def _grey_of_16_bits(image: Image.Image, n_bits: int) -> Image.Image:
    grey = (np.asarray(image).astype(np.uint32).clip(0, 65535) >> (n_bits - 8)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    with_alpha = image.convert("RGBA")
    white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, with_alpha).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS:
        return 1  # damaged EXIF is no reason to lose an image whose pixels are fine
    return orientation if isinstance(orientation, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transposition = _TRANSPOSITIONS.get(orientation)
    return image if transposition is None else image.transpose(transposition)


def resolve_inside(root: Path, file_name: str) -> Path:
    """Join a file name from somebody's metadata to `root`, and make sure that it stays there.

    Symbolic links inside `root` are followed as long as they end inside it; `root` itself may be a link. The file need
    not exist.

    Raises:
        UserError: the name is empty or absolute, contains "..", a backslash, a drive letter, NUL or a lone surrogate,
            or leads out of `root` through a link.
    """
    problem = file_name_problem(file_name)
    if problem:
        raise UserError(f"file name {file_name!r} {problem}; correct the metadata")
    folder = _real_folder(os.path.abspath(root))  # noqa: PTH100 as below
    path = os.path.join(folder, PurePosixPath(file_name))  # noqa: PTH118 pathlib is several times slower here
    if _passes_link(folder, PurePosixPath(file_name)):
        path = os.path.realpath(path)
    if not path.startswith(folder.rstrip(os.sep) + os.sep):
        raise UserError(
            f"file name {file_name!r} leads out of the folder {root}; copy the files there instead of linking them"
        )
    return Path(path)


@lru_cache(maxsize=64)
def _real_folder(root: str) -> str:
    return os.path.realpath(root)


def _passes_link(folder: str, inside: PurePosixPath) -> bool:
    # Without links below the folder a name without ".." cannot leave it: one look per part instead of one per ancestor.
    for part in inside.parts:
        folder = f"{folder}{os.sep}{part}"
        if os.path.islink(folder):  # noqa: PTH114 as above
            return True
    return False
