"""Alternative texts for the images of a page: captions filled into a copy of an HTML or Markdown file.

Only images without any alternative text get one; `alt=""` in HTML says that an image is decoration, and stays. All
other bytes are those of the original, whatever its encoding: bytes are taken for characters (Latin-1), and what is put
in is ASCII. HTML is read by the standard library's parser, Markdown by markdown-it (which comes with rich) and, within
its paragraphs, by the one pattern `![](destination)`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hfcap.data.images import FileImage
from hfcap.data.web.image_stream import ImageStream, listed_images
from hfcap.data.web.web_images import web_image
from hfcap.errors import UserError
from hfcap.files import MAX_LINE_BYTES, no_file, write_bytes
from hfcap.schema import CaptionedImage, ImageBytes
from hfcap.text import has_controls

PAGE_SUFFIXES = (".html", ".htm", ".md", ".markdown")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_LINE_END = re.compile(r"\r\n?|\n")
_EMPTY_IMAGE = re.compile(r"!\[[ \t]*\]\([ \t\n]*(<[^<>\r\n]+>|[^ \t\r\n()<>]+(?:\([^ \t\r\n()]*\)[^ \t\r\n()<>]*)*)")
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_SIGNS = re.compile(r"[\\`*_\[\]<>&!#|~$]")
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")


@dataclass(frozen=True)
class Gap:
    """A place where an alternative text is missing.

    Attributes:
        place: in the text of the page. source: address of the image as the page writes it.
        written: caption -> what is put in.
    """

    place: int
    source: str
    written: Callable[[str], str]


class AltText:
    """A page whose images get captions as alternative texts.

    Attributes:
        images: those without an alternative text, each once: files next to the page, and web addresses.

    Raises:
        UserError: there is no such file, it is no HTML or Markdown, or its encoding is UTF-16.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in PAGE_SUFFIXES:
            raise UserError(f"{path}: give a page whose name ends in {', '.join(PAGE_SUFFIXES)}")
        try:
            content = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise UserError(no_file(path, "page")) from None
        if content.startswith(_UTF16) or len(content) > MAX_LINE_BYTES:
            raise UserError(f"{path}: is UTF-16, or has more than {MAX_LINE_BYTES:,} bytes; save it as UTF-8")
        self._text = content.decode("latin-1")
        found = html_gaps(self._text) if path.suffix.lower() in (".html", ".htm") else markdown_gaps(self._text)
        self._gaps = [(gap, image) for gap in found if (image := _image(path.parent, gap.source)) is not None]
        records = {name: CaptionedImage(name, name, (), _source(name)) for _, name in self._gaps}
        self.images: ImageStream = listed_images(list(records.values()))

    def check_output(self, output: Path | None, page: Path) -> None:
        """Check before any work that the copy can be written.

        Raises:
            UserError: there is no name for it, it is that of the page, or it has another ending.
        """
        if output is None or output.suffix.lower() != page.suffix.lower():
            raise UserError(f"{page}: say where the copy goes: -o FILE{page.suffix}")
        if output.resolve() == page.resolve():
            raise UserError(f"{output}: is the page itself; give the copy another name")

    def write(self, output: Path, captions: Mapping[str, str]) -> int:
        """Write the copy; returns how many alternative texts were filled in.

        Args:
            captions: image id (see `images`) -> caption; images without one keep their gap.
        """
        pieces, end, filled = [], 0, 0
        for gap, image in self._gaps:
            if caption := " ".join(captions.get(image, "").split()):
                pieces += [self._text[end : gap.place], gap.written(caption)]
                end, filled = gap.place, filled + 1
        write_bytes(output, "".join([*pieces, self._text[end:]]).encode("latin-1"))
        return filled


def _image(folder: Path, source: str) -> str | None:
    """Return the file or web address of an image; None where it is neither (`data:`, `blob:`)."""
    try:
        address = source.encode("latin-1").decode("utf-8").strip()
    except UnicodeError:  # spelled as character references, or a page that is not UTF-8
        address = source.strip()
    address = f"https:{address}" if address.startswith("//") else address
    try:
        scheme = urlsplit(address).scheme.lower()
    except ValueError:
        return None
    if scheme in ("http", "https"):
        return address
    name = unquote(re.split(r"[?#]", address, maxsplit=1)[0]).lstrip("/")
    return None if scheme or not name or has_controls(name) else str(folder / name)


def _source(name: str) -> ImageBytes:
    return web_image(name) if "://" in name else FileImage(Path(name))


def _ascii(text: str) -> str:
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _in_html(caption: str) -> str:
    return f' alt="{_ascii(html.escape(caption))}"'


class _Images(HTMLParser):
    """Finds the places of images without `alt` in HTML, outside of comments, scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.gaps: list[Gap] = []
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an image without `alt`."""
        names = {name: value for name, value in reversed(attrs)}
        source = names.get("src")
        if tag != "img" or "alt" in names or not source:
            return
        line, column = self.getpos()
        # After the tag's name: there is always room for an attribute.
        place = self._lines[line - 1] + column + len("<img")
        self.gaps.append(Gap(place, source, _in_html))


def html_gaps(text: str) -> list[Gap]:
    """Return the images without `alt` of an HTML page, in order."""
    return _Images(text).gaps


def markdown_gaps(text: str) -> list[Gap]:
    """Return the images with an empty `![](...)` of a Markdown page, in order, outside of code and HTML blocks."""
    from markdown_it import MarkdownIt  # comes with rich

    starts = [0, *(match.end() for match in _LINE_END.finditer(text)), len(text)]
    gaps: dict[int, Gap] = {}
    for token in MarkdownIt().enable("table").parse(text):
        if token.type != "inline" or token.map is None:
            continue
        first, last = (starts[min(line, len(starts) - 1)] for line in token.map)
        block = text[first:last]
        code = [match.span() for match in _CODE_SPAN.finditer(block)]
        for match in _EMPTY_IMAGE.finditer(block):
            before = block[: match.start()]
            escaped = (len(before) - len(before.rstrip("\\"))) % 2
            if not escaped and not any(begin <= match.start() < end for begin, end in code):
                place = first + match.start() + len("![")
                source = html.unescape(_ESCAPED.sub(r"\1", match[1].strip("<>")))
                gaps[place] = Gap(place, source, _in_markdown)
    return [gaps[place] for place in sorted(gaps)]


def _in_markdown(caption: str) -> str:
    return _ascii(_SIGNS.sub(r"\\\g<0>", caption))
