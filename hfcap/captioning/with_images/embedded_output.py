"""Captions inside their image files, as the description that photo programs show (XMP and IPTC)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from hfcap.captioning.with_images.sidecar_output import ImageOutput, path_of
from hfcap.data.image_files import some
from hfcap.data.web.image_stream import ImageStream, listed_images
from hfcap.errors import MissingPackageError, UserError
from hfcap.files import check_can_write, write_bytes
from hfcap.progress import error_console
from hfcap.schema import CaptionedImage, Prediction
from hfcap.text import counted, has_controls, printable

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"))
"""Files that exiv2 writes metadata into; not GIF, BMP, AVIF and HEIC."""

_XMP, _XMP_LANGUAGE = "Xmp.dc.description", 'lang="x-default"'
_IPTC, _IPTC_CHARACTERS, _UTF_8 = "Iptc.Application2.Caption", "Iptc.Envelope.CharacterSet", "\x1b%G"
_MOST_IPTC_BYTES = 2000


@dataclass(frozen=True)
class EmbeddedOutput(ImageOutput):
    """Where captions go that are written into their images; pixels and all other metadata stay as they are.

    Attributes:
        existing: what happens to images that have a description.
    """

    existing: Literal["skip", "overwrite"] = "skip"

    def wanted(self, images: ImageStream) -> ImageStream:
        """Return the images that are captioned: those that can hold a description, and with `skip` have none.

        Images that cannot are named on standard error.

        Raises:
            UserError: these are no files, none of them can hold a description, or nothing may be written there.
        """
        if find_spec("pyexiv2") is None:
            raise MissingPackageError("pyexiv2", "--embed")
        records = images.listed or []
        paths = [path for record in records if (path := path_of(record)) is not None]
        if images.listed is None or len(paths) < len(records):
            raise UserError("--embed: writes into image files; give files or folders, or -o FILE for the others")
        for folder in dict.fromkeys(path.parent for path in paths):
            check_can_write(folder, folder=True)
        able = {path for path in paths if path.suffix.lower() in _SUFFIXES}
        if unable := [path.name for path in paths if path not in able]:
            said = f"left out: {counted(len(unable), 'image')} in formats that hold no description ({some(unable)})"
            if not able:
                raise UserError(f"--embed: {said}; convert them to JPEG, or use --sidecar")
            error_console.print(printable(f"{said}; use --sidecar for these"), style="yellow", markup=False)
        return listed_images([record for record in records if self._is_wanted(record, able)])

    def _is_wanted(self, record: CaptionedImage, able: set[Path]) -> bool:
        path = path_of(record)
        assert path is not None
        return path in able and (self.existing == "overwrite" or not description_of(path))

    def journal(self, images: ImageStream) -> Path | None:
        """Return None: with `skip`, the images themselves tell what is done; `overwrite` begins again."""
        return None

    def _write_one(self, image: Path, prediction: Prediction) -> bool:
        text = storable(prediction.caption)
        if description_of(image) != text:
            write_bytes(image, with_description(image.read_bytes(), text, image))
            return True
        return prediction.review is not None


def storable(text: str) -> str:
    """Return a text with spaces in the place of control characters, which XML cannot hold."""
    return "".join(" " if has_controls(one) else one for one in text)


def description_of(path: Path) -> str:
    """Return the description inside an image file; empty where there is none, or the file is damaged."""
    try:
        with _opened(path.read_bytes()) as image:
            xmp, iptc = image.read_xmp().get(_XMP, ""), image.read_iptc().get(_IPTC, "")
    except (RuntimeError, UnicodeDecodeError):  # what is wrong with the image is said when it is decoded
        return ""
    texts = list(xmp.values()) if isinstance(xmp, dict) else [xmp]
    return next((str(text) for text in [*texts, iptc] if str(text).strip()), "")


def with_description(content: bytes, text: str, path: Path) -> bytes:
    """Return an encoded image with a description, in XMP and where the format has it IPTC.

    Args:
        path: for the message.

    Raises:
        UserError: its metadata is damaged.
    """
    short = text.encode()[:_MOST_IPTC_BYTES].decode(errors="ignore")
    try:
        with _opened(content) as image:
            image.modify_xmp({_XMP: {_XMP_LANGUAGE: text}})
            if path.suffix.lower() != ".webp":
                image.modify_iptc({_IPTC_CHARACTERS: _UTF_8, _IPTC: short})
            return bytes(image.get_bytes())
    except RuntimeError as error:
        raise UserError(f"{path}: no description can be written ({error}); save the image again") from None


def _opened(content: bytes) -> Any:
    from pyexiv2 import ImageData, set_log_level

    set_log_level(4)  # it would print about every odd tag of a camera
    return ImageData(content)
