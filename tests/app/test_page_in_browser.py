"""How a real browser uses the demo's page, and what it looks like on a telephone."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hfcap.app.demo import LoadedModel, example_files, served
from hfcap.app.page_models import PageModel, Say
from hfcap.app.space import page_sources
from tests.browser import Browser, browser
from tests.data.sample_images import write_jpeg
from tests.interrupting import serving
from tests.publishing.run_builder import build_run

pytest.importorskip("gradio")

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> ${7*7} {{7*7}} & \"q\""
_TEXT = "[...document.querySelectorAll('textarea')].map(e => e.value)"
_LABELS = "[...document.querySelectorAll('span[data-testid=block-info]')].map(e => e.textContent.trim())"


class HostileModel(PageModel):
    """Says a caption of somebody who means harm, word by word, and draws it on heat maps."""

    ranks = explains = takes_prompt = True

    def captions(
        self, image: Image.Image, decoding: Any, prompt: str | None, say: Say
    ) -> list[tuple[str, float | None]]:
        say("a")
        time.sleep(0.3)
        say("a slow")
        time.sleep(0.3)
        count = decoding.get("num_return_sequences", 1)
        return [(f"{prompt or ''}{HOSTILE} {number}", -0.5) for number in range(count)]

    def heat_maps(self, image: Image.Image, decoding: Any, prompt: str | None) -> list[tuple[Image.Image, str]]:
        return [(image, HOSTILE), (image, "two")]


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def hostile_page() -> Iterator[str]:
    """The page with a hostile model of a hostile name, and with one that says what it sees."""
    plain = PageModel(lambda image, _: f"{image.width} by {image.height}", "CIDEr-D 112.3")
    models: Any = {HOSTILE: HostileModel(lambda *_: "", HOSTILE), "plain": plain}
    models[HOSTILE].defaults = {"num_beams": 1}
    with served(models, "127.0.0.1", None, title=f"Title {HOSTILE}") as address:
        yield address


def click(driven: Browser, text: str) -> None:
    """Click the button with this text that can be seen (gradio measures tabs with hidden copies of them)."""
    said = f"e.innerText.trim().split('\\n')[0] === {json.dumps(text)}"
    found = (
        f"[...document.querySelectorAll('button')].find(e => {said} && e.offsetParent && "
        "!e.closest('.visually-hidden'))"
    )
    driven.wait(f"!!{found}")
    driven.run(f"{found}.click()")


def opened(driven: Browser, address: str, width: int = 1200, *, dark: bool = False) -> None:
    driven.addresses.clear()
    driven.open(address, width, dark=dark)
    driven.wait("!!document.querySelector('input[type=file]')")


def choose_example(driven: Browser) -> None:
    driven.wait("!!document.querySelector('.gallery-item img')")
    driven.run("document.querySelector('.gallery-item').click()")


def downloaded(driven: Browser, button: str, folder: Path) -> bytes:
    """What a download button gives."""
    folder.mkdir()
    driven.command("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    click(driven, button)
    driven.wait_for(lambda: any(path.suffix != ".crdownload" for path in folder.iterdir()))
    return next(folder.iterdir()).read_bytes()


def test_captions_of_one_image(driven: Browser, hostile_page: str, tmp_path: Path) -> None:
    write_jpeg(tmp_path / "photo.jpg", "red", size=(90, 60))
    opened(driven, hostile_page)
    driven.upload("input[type=file]", tmp_path / "photo.jpg")
    driven.wait(f"{_TEXT}.includes('a slow')")  # word by word
    driven.wait(f"{_TEXT}.includes('90 by 60')")
    assert f"{HOSTILE} 0" in driven.run(_TEXT)
    assert sum(label.startswith("Caption, 0.") for label in driven.run(_LABELS)) == 2
    heads = driven.run("[...document.querySelectorAll('.model h2')].map(e => e.parentElement.innerText)")
    assert [HOSTILE in heads[0], heads[1].split()] == [True, ["plain", "CIDEr-D", "112.3"]]
    assert driven.run("document.querySelector('h1').innerText") == f"Title {HOSTILE}"
    click(driven, "Where it looked, word by word")
    click(driven, "Show heat maps")
    driven.wait("document.querySelectorAll('.grid-container img, .gallery-item img').length >= 2")
    click(driven, "Score against your own captions")
    label = "[...document.querySelectorAll('label')].find(e => e.innerText.includes('that people would write'))"
    driven.wait(f"!!{label}")
    driven.run(f"{label}.querySelector('textarea').focus()")
    driven.command("Input.insertText", text="90 by 60\nred")
    click(driven, "Score")
    driven.wait("document.body.innerText.includes('BLEU-1') && document.body.innerText.includes('100.0')")
    title = driven.run("document.title")
    assert title == f"Title {HOSTILE}" and not driven.run("!!document.querySelector('img[src=x], img[onerror]')")
    assert [one for one in driven.addresses if not one.startswith((hostile_page, "data:", "blob:"))] == []


def test_reading_aloud_and_alt_text(driven: Browser, hostile_page: str) -> None:
    opened(driven, hostile_page)
    driven.run(
        "window.said = []; window.copied = []; speechSynthesis.speak = one => said.push(one.text);"
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: text => copied.push(text)}}); 0"
    )
    choose_example(driven)
    driven.wait(f"{_TEXT}.includes('224 by 192')")
    click(driven, "Read aloud")
    assert driven.wait("said")[0] == f"{HOSTILE} 0"
    click(driven, "Copy as alt text")
    driven.wait("copied.length")
    parsed = "new DOMParser().parseFromString(`<img ${copied[0]}>`, 'text/html').querySelector('img')"
    assert driven.run(f"{parsed}.alt") == f"{HOSTILE} 0"
    assert driven.run(f"{parsed}.attributes.length") == 1


def test_several_captions_and_a_prompt(driven: Browser, hostile_page: str) -> None:
    opened(driven, hostile_page)
    driven.run("document.querySelector('textarea').focus()")
    driven.command("Input.insertText", text="Tell me: ")
    click(driven, "Decoding")
    slider = "[...document.querySelectorAll('input[type=number]')][0]"
    driven.wait(f"!!{slider}")
    driven.run(f"{slider}.focus(); {slider}.select(); 0")
    driven.command("Input.insertText", text="3")
    driven.run("document.activeElement.blur()")
    choose_example(driven)
    listed = driven.wait(f"{_TEXT}.find(text => text.startsWith('1. '))").splitlines()
    assert len(listed) == 3 and listed[2] == f"3. Tell me:{HOSTILE} 2  (-0.50)"


def test_many_images(driven: Browser, hostile_page: str, tmp_path: Path) -> None:
    names = ["=1+1.jpg", "a (1).jpg", "a (1).png", "b/a (1).jpg", "broken.jpg", "ü&amp; 'x.jpg"]
    for number, name in enumerate(names):
        write_jpeg(tmp_path / name, "red", size=(90 + number, 60))
    (tmp_path / "broken.jpg").write_text("no image")
    opened(driven, hostile_page)
    click(driven, "Many images")
    driven.wait("[...document.querySelectorAll('input[type=file]')].some(e => e.multiple)")
    driven.upload("input[type=file][multiple]", *(tmp_path / name for name in names))
    driven.wait("document.body.innerText.includes('broken')")
    driven.run("[...document.querySelectorAll('input[role=combobox]')].find(e => e.offsetParent).focus()")
    driven.wait("[...document.querySelectorAll('[role=option]')].length > 1")
    option = "[...document.querySelectorAll('[role=option]')].find(e => e.innerText.trim().endsWith('plain'))"
    driven.run(f"{option}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
    click(driven, "Caption all")
    table = list(csv.reader(io.StringIO(downloaded(driven, "Download CSV", tmp_path / "csv").decode())))
    assert table[0] == ["file_name", "caption", "score", "problem"]
    wanted = ["'=1+1.jpg", "a (1).jpg", "a (1).png", "a (1) (2).jpg"]
    assert [row[0] for row in table[1:5]] == wanted and [row[1] for row in table[1:5]] == [
        f"{90 + number} by 60" for number in range(4)
    ]
    assert table[5][0] == "broken.jpg" and "not an image" in table[5][3] and table[6][1] == "95 by 60"
    with zipfile.ZipFile(io.BytesIO(downloaded(driven, "Download sidecars (ZIP)", tmp_path / "zip"))) as archive:
        sidecars = {name: archive.read(name).decode() for name in archive.namelist()}
    assert len(sidecars) == 5 and sidecars["a (1).jpg.txt"] == "91 by 60\n" and sidecars["=1+1.txt"] == "90 by 60\n"
    assert driven.run("document.title") == f"Title {HOSTILE}"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_telephone_shows_all_of_it(driven: Browser, hostile_page: str, dark: bool) -> None:
    opened(driven, hostile_page, width=400, dark=dark)
    for tab in ("Many images", "One image"):
        click(driven, tab)
        wide = driven.run(
            "[...document.querySelectorAll('.gradio-container *')].filter(e => e.offsetParent && "
            "e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.table-wrap, .gallery, .tab-container'))"
            ".map(e => e.outerHTML.slice(0, 120))"
        )
        assert driven.run("[innerWidth, document.documentElement.scrollWidth]") == [400, 400] and wide == []
    paper = driven.run("getComputedStyle(document.body).backgroundColor")
    levels = [int(level) for level in paper[paper.index("(") + 1 : -1].split(",")[:3]]
    assert (max(levels) < 60) if dark else (min(levels) > 240), paper
    low = driven.run(
        "[...document.querySelectorAll('.tools button')].filter(e => e.offsetParent && e.offsetHeight < 44).length"
    )
    assert low == 0


def test_models_that_hfcap_loads(driven: Browser, tmp_path: Path) -> None:
    models = {name: LoadedModel(str(build_run(tmp_path / name, name).path)) for name in ("blip", "show_attend_tell")}
    with Image.open(example_files(None, tmp_path)[0]) as image:
        decoding = {"num_beams": 2, "max_new_tokens": 8}
        wanted = [model.captions(image.convert("RGB"), decoding, None, print)[0][0] for model in models.values()]
    with served(models, "127.0.0.1", None) as address:
        opened(driven, address)
        choose_example(driven)
        for caption in wanted:
            driven.wait(f"{_TEXT}.map(text => text.trim()).includes({json.dumps(caption)})")
        click(driven, "Where it looked, word by word")
        click(driven, "Show heat maps")
        driven.wait("document.querySelectorAll('.grid-container img').length")


def test_the_command_says_its_address_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run").path
    with serving("demo", str(run), "--title", "Our <garden>") as (said, rest):
        address = re.fullmatch(r"Open (http://127\.0\.0\.1:\d+/) in a browser; Ctrl-C ends\.\n", said)
        assert address is not None, said
        with urllib.request.urlopen(address[1], timeout=20) as answer:
            assert b"garden" in answer.read()
    assert "share" not in said + "".join(rest)


def test_the_page_of_a_space_needs_no_hfcap(tmp_path: Path) -> None:
    for name, content in page_sources().items():
        (tmp_path / name).write_text(content)
    code = """
import sys
sys.modules["hfcap"] = None
import interface, page_look, page_models
page = interface.build({"it": page_models.PageModel(lambda image, decoding: "a cat", "CIDEr-D 1.0")}, {})
page_look.launch_options()
print(sorted(function.api_name for function in page.fns.values() if function.api_visibility == "public"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['caption', 'caption_files']"
