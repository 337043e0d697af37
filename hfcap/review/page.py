"""`hfcap review`: the page that shows images with their captions and takes what a person writes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from PIL import Image

from hfcap.data.images import FileImage, UnreadableImageError, decode_image
from hfcap.errors import UserError
from hfcap.pages.local_server import Answer, json_answer, page_answer
from hfcap.review.folder import ChangedError, ReviewFolder

_SIDES = {"image": 1280, "small": 160}
"""Longer side in pixels of the images that the browser gets."""


class ReviewPage:
    """Answers the browser's requests about a folder under review."""

    def __init__(self, folder: ReviewFolder) -> None:
        self.folder = folder

    def get(self, path: str) -> Answer | None:
        """Return the page, the items as JSON, or one image as JPEG."""
        if path == "":
            title = f"Captions of {self.folder.folder.resolve().name}"
            return page_answer("review/review.html.jinja", "review/review.js", title=title)
        if path == "items":
            return json_answer([item.as_row() for item in self.folder.items()])
        name, _, number = path.partition("/")
        if name in _SIDES and number.isdecimal() and int(number) < len(self.folder.images):
            return self._image(int(number), _SIDES[name])
        return None

    def _image(self, number: int, side: int) -> Answer | None:
        """Never the file's own bytes: a browser has more decoders than those that are held to be safe here."""
        try:
            image = decode_image(FileImage(self.folder.images[number]), side)
        except UnreadableImageError:
            return None
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.info.clear()
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        return Answer(buffer.getvalue(), "image/jpeg")

    def post(self, path: str, value: Mapping[str, Any]) -> Answer | None:
        """Save the captions of one image."""
        number, text, version = value.get("number"), value.get("text"), value.get("version")
        if path != "save":
            return None
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self.folder.images):
            raise UserError("request: number must be that of an image")
        if not isinstance(text, str) or not isinstance(version, str):
            raise UserError("request: text and version must be texts")
        try:
            return json_answer(self.folder.save(number, text, version).as_row())
        except ChangedError:
            now = {"error": "the sidecar was changed by somebody else", "item": self.folder.item(number).as_row()}
            return json_answer(now, HTTPStatus.CONFLICT)
