"""Pictures that a person names by their web address: http and https only, bounded in size, time and redirects."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from hfcap import __version__
from hfcap.data.images import UnreadableImageError
from hfcap.errors import UserError

MAX_WEB_BYTES = 32 * 1024 * 1024
"""Less than for files: several are fetched at a time, and a server may send what it likes."""
MAX_REDIRECTS = 5
ANSWER_SECONDS = 15.0
"""How long a server may be silent."""
TOTAL_SECONDS = 60.0
"""How long one picture may take."""
PAUSE_SECONDS = 1.0
"""Before the one repetition after a network error or an overloaded server."""

_CHUNK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_TRIED_AGAIN = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class WebImage:
    """A picture at a web address; `web_image` makes it."""

    url: str

    def read(self) -> bytes:
        """Fetch the encoded picture.

        Raises:
            UnreadableImageError: the server does not give it out or cannot be reached, or the picture is too large.
        """
        try:
            try:
                return _fetch(self.url)
            except (OSError, http.client.HTTPException):
                time.sleep(PAUSE_SECONDS)
                return _fetch(self.url)
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            raise UnreadableImageError(f"{self.url}: cannot be fetched ({reason})") from None

    def describe(self) -> str:
        """Return the address."""
        return self.url


def web_image(url: str) -> WebImage:
    """Return the picture at a web address, without fetching it.

    Raises:
        UserError: the address is not one of http or https, has no host, or holds a password.
    """
    problem = _address_problem(url)
    if problem is not None:
        # The part before '@' may be a secret, which errors must not repeat.
        shown = f"{url.partition('://')[0]}://...@{url.rpartition('@')[2]}" if "@" in url else url
        raise UserError(f"{shown}: {problem}")
    return WebImage(url)


def _address_problem(url: str) -> str | None:
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "not a web address; check the spelling"
    if parts.scheme not in ("http", "https"):
        return "pictures are fetched by http and https only; give a file, or a web address"
    if not host:
        return "a web address needs a host"
    if "@" in parts.netloc:
        return "holds a user name or password, which would end up in the output; save the picture and give the file"
    return None


def _ascii(url: str) -> str:
    """Return the address as servers want it: other characters percent-encoded, the host in IDNA, no fragment."""
    parts = urllib.parse.urlsplit(url)
    try:
        netloc = parts.netloc.encode("idna").decode() if not parts.netloc.isascii() else parts.netloc
    except UnicodeError:
        raise UnreadableImageError(f"{url}: not a possible host name") from None
    path, query = (urllib.parse.quote(part, safe="%/:=&?~+!$,;'()*@[]|") for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, netloc, path, query, ""))


def _opener() -> urllib.request.OpenerDirector:
    """Only http and https: urllib's usual opener also opens file:// and ftp://, and reads redirects without limit."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _fetch(url: str) -> bytes:
    """Fetch once, following redirects; OSError and HTTPException where another try may help."""
    opener, address, ends = _opener(), _ascii(url), time.monotonic() + TOTAL_SECONDS
    for _ in range(MAX_REDIRECTS + 1):
        request = urllib.request.Request(address, headers={"User-Agent": f"hfcap/{__version__}", "Accept": "image/*"})
        try:
            with contextlib.closing(opener.open(request, timeout=ANSWER_SECONDS)) as response:
                return _content(url, response, ends)
        except urllib.error.HTTPError as error:
            error.close()
            said = f"the server answers {error.code} {http.client.responses.get(error.code, '')}".rstrip()
            if error.code in _TRIED_AGAIN:
                raise OSError(said) from None
            target = error.headers.get("Location") if error.code in _REDIRECTS else None
            if target is None:
                raise UnreadableImageError(f"{url}: {said}") from None
            address = _redirected(url, address, target)
    raise UnreadableImageError(f"{url}: redirected more than {MAX_REDIRECTS} times")


def _redirected(url: str, address: str, target: str) -> str:
    try:
        following = urllib.parse.urljoin(address, target)
    except ValueError:
        raise UnreadableImageError(f"{url}: redirected to what is no web address") from None
    problem = _address_problem(following)
    if problem is not None:
        raise UnreadableImageError(f"{url}: redirected to where nothing is fetched from: {problem.partition(';')[0]}")
    # A stranger's server must not make this machine ask its own or its neighbours' services.
    if _inside(following) and not _inside(address):
        raise UnreadableImageError(f"{url}: redirected from the internet into the local network")
    return _ascii(following)


def _inside(address: str) -> bool:
    """Whether a host is this machine or one of its private network."""
    host = urllib.parse.urlsplit(address).hostname or ""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False  # a proxy may know it; otherwise opening it fails too
    return any(not ipaddress.ip_address(str(one).partition("%")[0]).is_global for one in found)


def _content(url: str, response: Any, ends: float) -> bytes:
    length = response.headers.get("Content-Length", "")
    expected = int(length) if length.isdecimal() else None
    too_large = f"{url}: more than {MAX_WEB_BYTES:,} bytes; save the picture smaller and give the file"
    if expected is not None and expected > MAX_WEB_BYTES:
        raise UnreadableImageError(too_large)
    content = bytearray()
    # read1 returns what has come: read would wait for a whole chunk from a server that sends byte by byte.
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > MAX_WEB_BYTES:
            raise UnreadableImageError(too_large)
        if time.monotonic() > ends:
            raise UnreadableImageError(f"{url}: not complete after {TOTAL_SECONDS:.0f} seconds")
    if expected is not None and len(content) < expected:
        raise OSError(f"the connection broke after {len(content):,} of {expected:,} bytes")
    return bytes(content)
