"""Images that a person names by their web address: http and https only, bounded in size, time and redirects."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
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
"""How long one image may take."""
PAUSE_SECONDS = 1.0
"""Before the one repetition after a network error or an overloaded server."""

_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
"""NAT64 (RFC 6052): the last 32 bits are an IPv4 address."""
_TRANSLATED_HERE = ipaddress.IPv6Network("64:ff9b:1::/48")
"""NAT64 of a private network (RFC 8215)."""
_PLAIN_ADDRESS = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,4})?(/[!-~]*)?")
"""Most addresses: nothing in them could be wrong, and taking each of millions apart takes longer than the rest."""
_CHUNK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_TRIED_AGAIN = (408, 429, 500, 502, 503, 504)


class RefusedByServerError(UnreadableImageError):
    """The server answered, and does not give the image out; asking again at once would not help."""


@dataclass(frozen=True, slots=True)
class WebImage:
    """An image at a web address; `web_image` makes it, and says what `local` is."""

    url: str
    local: bool = True

    def read(self) -> bytes:
        """Fetch the encoded image.

        Raises:
            RefusedByServerError: the server does not give it out.
            UnreadableImageError: it cannot be reached, or the image is too large.
        """
        ends = time.monotonic() + TOTAL_SECONDS
        try:
            try:
                return _fetch(self.url, ends, self.local)
            except (OSError, http.client.HTTPException):
                time.sleep(PAUSE_SECONDS)
                return _fetch(self.url, ends, self.local)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > ends:
                raise _late(self.url) from None
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            raise UnreadableImageError(f"{self.url}: cannot be fetched ({reason})") from None

    def describe(self) -> str:
        """Return the address."""
        return self.url


def web_image(url: str, local: bool = True) -> WebImage:
    """Return the image at a web address, without fetching it.

    Args:
        local: it may be in this machine's own network; not so where a stranger names it.

    Raises:
        UserError: the address is not one of http or https, has no host, or holds a password.
    """
    problem = _address_problem(url)
    if problem is not None:
        # The part before '@' may be a secret, which errors must not repeat.
        shown = f"{url.partition('://')[0]}://...@{url.rpartition('@')[2]}" if "@" in url else url
        raise UserError(f"{shown}: {problem}")
    return WebImage(url, local)


def _address_problem(url: str) -> str | None:
    if _PLAIN_ADDRESS.fullmatch(url):
        return None
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "not a web address; check the spelling"
    if parts.scheme not in ("http", "https"):
        return "images are fetched by http and https only; give a file, or a web address"
    if not host:
        return "a web address needs a host"
    if "@" in parts.netloc:
        return "holds a user name or password, which would end up in the output; save the image and give the file"
    return None


def _ascii(url: str) -> str:
    """Return the address as servers want it: other characters percent-encoded, the host in IDNA, no fragment."""
    parts = urllib.parse.urlsplit(url)
    try:
        # Also of ASCII: the socket would say the same of a host with empty or endless parts, but as a ValueError.
        netloc = parts.netloc.encode("idna").decode()
        path, query = (urllib.parse.quote(part, safe="%/:=&?~+!$,;'()*@[]|") for part in (parts.path, parts.query))
    except UnicodeError:
        raise UnreadableImageError(f"{url}: not a possible web address") from None
    return urllib.parse.urlunsplit((parts.scheme, netloc, path, query, ""))


class _Way:
    """Where one fetch has been, over all its redirects: once in the internet, it never enters the local network.

    Args:
        local: it may begin in the local network.

    Attributes:
        host: of the address that is asked now.
        outside: whether a server of the internet has been asked.
        socket: of the connection that is open.
    """

    def __init__(self, local: bool) -> None:
        self.host = ""
        self.outside = not local
        self.socket: Any = None

    def enter(self, connection: http.client.HTTPConnection) -> None:
        """Look where a connection leads before anything is asked there: a name may mean another machine every time.

        Raises:
            UnreadableImageError: from the internet into the local network.
        """
        # Behind a proxy only the names tell.
        proxied = connection.host.lower() != self.host
        reached = _addresses(self.host) if proxied else {str(connection.sock.getpeername()[0])}
        if self.outside and any(map(_is_local, reached)):
            raise UnreadableImageError(
                f"{self.host}: local, and no server of the internet, and no table, may lead there"
            )
        self.outside = self.outside or not reached or not all(map(_is_local, reached))

    def cut(self) -> None:
        """End the connection, from another thread, whatever it waits for."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                # Not ssl's own shutdown, which would also take the encryption from under the reading thread.
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class _Connection(http.client.HTTPConnection):
    def __init__(self, *arguments: Any, way: _Way, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.way = way

    def connect(self) -> None:
        """Connect, and look where to."""
        super().connect()
        self.way.enter(self)

    def getresponse(self) -> http.client.HTTPResponse:
        """Wait for the answer; until it is read the connection can be cut."""
        self.way.socket = self.sock
        return super().getresponse()


class _SecureConnection(http.client.HTTPSConnection, _Connection):
    """HTTPSConnection encrypts what the next class in line, `_Connection`, has connected and looked at."""


class _PlainHandler(urllib.request.HTTPHandler):
    def __init__(self, way: _Way) -> None:
        super().__init__()
        self.way = way

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open the request over the address-checking connection."""
        return self.do_open(partial(_Connection, way=self.way), req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def __init__(self, way: _Way) -> None:
        super().__init__()
        self.way = way

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open the request over the address-checking connection."""
        return self.do_open(partial(_SecureConnection, way=self.way), req)


def _opener(way: _Way) -> urllib.request.OpenerDirector:
    """Only http and https: urllib's usual opener also opens file:// and ftp://, and reads redirects without limit."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _PlainHandler(way),
        _SecureHandler(way),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


@contextlib.contextmanager
def _until(ends: float, way: _Way) -> Iterator[None]:
    """Cut the connection when time is up: a server that sends its headers byte by byte is never silent."""
    timer = threading.Timer(ends - time.monotonic(), way.cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _fetch(url: str, ends: float, local: bool) -> bytes:
    """Fetch once, following redirects; OSError and HTTPException where another try may help."""
    way, address = _Way(local), _ascii(url)
    opener = _opener(way)
    # Nothing is even connected to: what answers, and what does not, would tell a stranger about this network.
    if not local and any(map(_is_local, _addresses(urllib.parse.urlsplit(address).hostname or ""))):
        raise UnreadableImageError(
            f"{url}: in the local network, where a table may not lead unless data.allow_local_addresses says so"
        )
    with _until(ends, way):
        for _ in range(MAX_REDIRECTS + 1):
            if time.monotonic() > ends:
                raise _late(url)
            way.host = urllib.parse.urlsplit(address).hostname or ""
            target = None
            headers = {"User-Agent": f"hfcap/{__version__}", "Accept": "image/*"}
            try:
                request = urllib.request.Request(address, headers=headers)
                with contextlib.closing(opener.open(request, timeout=ANSWER_SECONDS)) as response:
                    return _content(url, response, ends)
            except urllib.error.HTTPError as error:
                target = _target(url, error)
            address = _redirected(url, address, target, way.outside)
    raise UnreadableImageError(f"{url}: redirected more than {MAX_REDIRECTS} times")


def _target(url: str, error: urllib.error.HTTPError) -> str:
    """Return where an answer redirects to; raise if it is none."""
    error.close()
    said = f"the server answers {error.code} {http.client.responses.get(error.code, '')}".rstrip()
    if error.code in _TRIED_AGAIN:
        raise OSError(said) from None
    target = error.headers.get("Location") if error.code in _REDIRECTS else None
    if target is None:
        raise RefusedByServerError(f"{url}: {said}") from None
    # http.client takes headers for Latin-1; servers that do not encode their addresses send UTF-8.
    return target.encode("latin-1", "replace").decode("utf-8", "replace")


def _redirected(url: str, address: str, target: str, outside: bool) -> str:
    try:
        following = urllib.parse.urljoin(address, target)
    except ValueError:
        raise UnreadableImageError(f"{url}: redirected to what is no web address") from None
    problem = _address_problem(following)
    if problem is not None:
        raise UnreadableImageError(f"{url}: redirected to where nothing is fetched from: {problem.partition(';')[0]}")
    following = _ascii(following)
    # A stranger's server must not make this machine ask its own or its neighbours' services.
    if outside and any(map(_is_local, _addresses(urllib.parse.urlsplit(following).hostname or ""))):
        raise UnreadableImageError(f"{url}: redirected from the internet into the local network")
    return following


def _addresses(host: str) -> set[str]:
    """IP addresses of a host; none where this machine does not know it (a proxy may; otherwise opening it fails)."""
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return set()


def _is_local(address: str) -> bool:
    """Whether an IP address is this machine's or one of its private network, also when IPv6 carries an IPv4 address."""
    known = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(known, ipaddress.IPv4Address):
        return not known.is_global
    translated = ipaddress.IPv4Address(int(known) & 0xFFFFFFFF) if known in _TRANSLATED else None
    carried = (known.ipv4_mapped, known.sixtofour, translated)
    return known in _TRANSLATED_HERE or not all(one.is_global for one in (known, *carried) if one is not None)


def _late(url: str) -> UnreadableImageError:
    return UnreadableImageError(f"{url}: not complete after {TOTAL_SECONDS:.0f} seconds")


def _content(url: str, response: Any, ends: float) -> bytes:
    length = response.headers.get("Content-Length", "")
    # Python refuses to read thousands of digits; twenty are too many bytes as well.
    expected = int(length[:20]) if length.isdecimal() else None
    too_large = f"{url}: more than {MAX_WEB_BYTES:,} bytes; save the image smaller and give the file"
    if expected is not None and expected > MAX_WEB_BYTES:
        raise UnreadableImageError(too_large)
    content = bytearray()
    # read1 returns what has come: read would wait for a whole chunk from a server that sends byte by byte.
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > MAX_WEB_BYTES:
            raise UnreadableImageError(too_large)
        if time.monotonic() > ends:
            raise _late(url)
    if time.monotonic() > ends:
        # Cut off, which looks like an end where the server did not say how much would come.
        raise _late(url)
    if expected is not None and len(content) < expected:
        raise OSError(f"the connection broke after {len(content):,} of {expected:,} bytes")
    return bytes(content)
