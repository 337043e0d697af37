"""Images at web addresses that a table names: fetched once and kept in the cache folder."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from hfcap.data.images import UnreadableImageError
from hfcap.data.web.web_images import RefusedByServerError, web_image
from hfcap.files import cache_folder, write_bytes, write_text

_TRY_AGAIN_SECONDS = 24 * 3600
"""What a server did not give out is not asked for again so soon: of large old tables a fifth of the images is gone."""


@dataclass(frozen=True, slots=True)
class KeptWebImage:
    """An image at an address; a stopped fetching of many goes on where it was, since each is a file of its own.

    Attributes:
        local: the address may be in this machine's own network.
    """

    url: str
    local: bool = False

    def read(self) -> bytes:
        """Return the encoded image, from the cache folder or from its server.

        Raises:
            UnreadableImageError: the server does not give it out, now or within the last day.
        """
        path = self.path
        if path.is_file():
            return path.read_bytes()
        refusal = path.with_suffix(".refused")
        if refusal.is_file() and time.time() - refusal.stat().st_mtime < _TRY_AGAIN_SECONDS:
            raise UnreadableImageError(refusal.read_text(encoding="utf-8"))
        try:
            encoded = web_image(self.url, local=self.local).read()
        except RefusedByServerError as error:
            write_text(refusal, str(error))
            raise
        write_bytes(path, encoded)
        return encoded

    def describe(self) -> str:
        """Return the address."""
        return self.url

    def check_key(self) -> str:
        """Return the address."""
        return self.url

    @property
    def path(self) -> Path:
        """Where the image is kept."""
        digest = hashlib.sha256(self.url.encode()).hexdigest()
        # Thousands of files per folder are slow on many file systems.
        return cache_folder() / "web_images" / digest[:2] / f"{digest[2:40]}.image"


def kept_web_image(url: str, local: bool = False) -> KeptWebImage:
    """Return the image at a web address, without fetching it.

    Raises:
        UserError: the address is not one of http or https, has no host, or holds a password.
    """
    web_image(url)
    return KeptWebImage(url, local)
