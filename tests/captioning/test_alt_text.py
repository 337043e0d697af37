"""Alternative texts in a copy of a page: which images get one, that they stay text, and that all else is the same."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from hfcap.captioners.base import Captioner
from hfcap.captioning import AltText, Finishing, caption_images
from hfcap.errors import UserError
from tests.captioners.helpers import write_image

CAPTION = 'a "red" <b> & Grün\n`x` [y](z) $a_b$ *c* \\'
PAGE = """<!doctype html>\r
<p>caf\xe9 <img src="a.png"><IMG class='x>y' SRC=./b.png ><img src="sub/c%20d.png?v=1#x"/>\r
<!-- <img src="a.png"> --><script>"<img src='a.png'>"</script><style>/*<img src=a.png>*/</style>
<img src="a.png" alt="mine"><img alt src="a.png"><img ALT="" src="a.png"><img>
<img src="data:image/png;base64,AAAA"><img src="https://e.org/x.png?a=1&amp;b=2"><img src="//e.org/y.png">
<picture><source srcset="z.webp"><img
   src="a.png"></picture><imgx src="a.png"> 1 < 2 <img src="http://["><img src="e&eacute;&#8364;.png">
<img src="\xc3\xa9.png" """
MARKDOWN = """# A page ![](head.png)

![](a.png) and ![ ](<b c.png> "title") but ![mine](a.png), `![](a.png)`, \\![](a.png), \\\\![](d.png)

    ![](a.png)

```
![](a.png)
```

> - ![](e(1).png) ``code ` ![](a.png)`` \xc3\xa0![](f\\_g.png)

| ![](t.png) | x |
|---|---|
| y | ![](u.png) |

<div>![](a.png)</div>

![](https://e.org/x.png) ![]() ![][ref]
"""


class Outline(HTMLParser):
    """Every image's source and alternative text, and everything else, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[tuple[str | None, str | None]] = []
        self.rest: list[object] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.images.append((values.get("src"), values.get("alt")))
        self.rest.append((tag, [pair for pair in attrs if pair[0] != "alt"]))

    def handle_data(self, data: str) -> None:
        self.rest.append(data)

    def handle_comment(self, data: str) -> None:
        self.rest.append(data)


def filled(path: Path, page: str, encoding: str = "latin-1") -> tuple[AltText, str]:
    path.write_bytes(page.encode(encoding))
    text = AltText(path)
    copy = path.with_stem("copy")
    assert text.write(copy, {}) == 0 and copy.read_bytes() == path.read_bytes()
    captions = {record.image_id: CAPTION for record in text.images.listed or []}
    text.write(copy, captions)
    return text, copy.read_bytes().decode(encoding)


def names(text: AltText, folder: Path) -> list[str]:
    return [record.image_id.removeprefix(f"{folder}/") for record in text.images.listed or []]


def test_html(tmp_path: Path) -> None:
    text, copy = filled(tmp_path / "page.html", PAGE)
    files = ["a.png", "b.png", "sub/c d.png"]
    web = ["https://e.org/x.png?a=1&b=2", "https://e.org/y.png"]
    assert names(text, tmp_path) == [*files, *web, "e\xe9\u20ac.png"]
    before, after = Outline(PAGE), Outline(copy)
    assert after.rest == before.rest
    expected = " ".join(CAPTION.split())
    changed = [new for old, new in zip(before.images, after.images, strict=True) if old != new]
    written = ["a.png", "./b.png", "sub/c%20d.png?v=1#x", *web[:1], "//e.org/y.png", "a.png", "e\xe9\u20ac.png"]
    assert changed == [(source, expected) for source in written]
    added = f' alt="{expected}"'.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    added = added.replace('"red"', "&quot;red&quot;").replace("ü", "&#252;")
    assert copy.count(added) == 7 and copy.replace(added, "") == PAGE


def test_markdown(tmp_path: Path) -> None:
    text, copy = filled(tmp_path / "page.md", MARKDOWN)
    files = ["head.png", "a.png", "b c.png", "d.png", "e(1).png", "f_g.png", "t.png", "u.png"]
    assert names(text, tmp_path) == [*files, "https://e.org/x.png"]
    reader = MarkdownIt().enable("table")
    before, after = (
        [child for token in reader.parse(page) for child in ([token] if token.children is None else token.children)]
        for page in (MARKDOWN, copy)
    )
    assert [(token.type, token.attrs) for token in before] == [(token.type, token.attrs) for token in after]
    for old, new in zip(before, after, strict=True):
        if old.type == "image" and old.content.strip() == "" and old.attrs["src"]:
            assert new.children is not None
            assert "".join(child.content for child in new.children).strip() == " ".join(CAPTION.split())
        else:
            assert new.content == old.content


@pytest.mark.parametrize("ends", ["\r\n", "\r"])
def test_line_ends_of_other_systems(ends: str, tmp_path: Path) -> None:
    page = MARKDOWN.replace("\n", ends)
    text, copy = filled(tmp_path / "page.markdown", page)
    assert len(names(text, tmp_path)) == 9 and copy.count(ends) == page.count(ends)


def test_utf_8_and_older_pages_stay_what_they_are(tmp_path: Path) -> None:
    for encoding in ("utf-8", "cp1251", "shift_jis"):
        page = {"utf-8": "\ufeffünï \N{CAT FACE}", "cp1251": "Привет", "shift_jis": "表示ソ"}[encoding]
        _, copy = filled(tmp_path / "page.htm", f'<p>{page}<img src="a.png">{page}', encoding)
        assert copy.startswith(f"<p>{page}<img alt=") and copy.endswith(f'src="a.png">{page}')
        assert "Gr&#252;n" in copy


def test_captions_of_a_page(model: tuple[Captioner, str], tmp_path: Path) -> None:
    write_image(tmp_path / "site/img/a.png")
    (tmp_path / "site/page.html").write_text('<img src="/img/a.png"><img src="gone.png"><img src="img/a.png" id=x>')
    text, copy = AltText(tmp_path / "site/page.html"), tmp_path / "copy.html"
    [found] = caption_images(model[1], text.images, copy, finishing=Finishing(page=text))
    assert [alt for _, alt in Outline(copy.read_text()).images] == [found.caption, None, found.caption]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.html", "site"]


def test_what_cannot_be(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.txt", b"", r"a\.txt: give a page whose name ends in \.html"),
        ("a.html", "<p>".encode("utf-16"), "UTF-16"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            AltText(tmp_path / name)
    with pytest.raises(UserError, match="page not found"):
        AltText(tmp_path / "b.html")
    page = tmp_path / "c.html"
    page.write_text("<p>")
    for output, message in (
        (None, r"-o FILE\.html"),
        (tmp_path / "x.csv", r"-o FILE\.html"),
        (page, "the page itself"),
    ):
        with pytest.raises(UserError, match=message):
            AltText(page).check_output(output, page)


def test_nothing_takes_long(tmp_path: Path) -> None:
    for name, page in (
        ("a.html", "<img " * 4_000 + "<!--" * 4_000),
        ("a.md", "![](" * 4_000 + "(" * 4_000),
        ("b.md", "`" * 4_000 + "![](a(" * 1_000),
    ):
        (tmp_path / name).write_text(page)
        AltText(tmp_path / name)
