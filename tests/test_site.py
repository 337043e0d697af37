"""The documentation as a site: it builds without a warning, shows what the code offers, and fetches nothing."""

from __future__ import annotations

import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import hfcap
from hfcap.cli import app
from scripts import site_reference

ROOT = Path(__file__).resolve().parents[1]
LARGEST_IMAGE = 150_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    pytest.importorskip("material", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class _Fetched(html.parser.HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
        self.found += [value for name, value in attributes if name == names.get(tag) and value]


def elsewhere(address: str) -> bool:
    return re.match(r"(?:[a-z]+:)?//", address) is not None


def test_pages_are_built(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")}
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - {"404.md"} == written | set(site_reference.PAGES) | {"contributing.md", "changelog.md"}


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = _Fetched('<a href="https://a.b/"></a><script src="//a.b/c.js"></script><img src="d.png">').found
    assert list(map(elsewhere, fetched)) == [True, False]
    found = {path.name: _Fetched(path.read_text(encoding="utf-8")).found for path in site.rglob("*.html")}
    assert all(found.values())
    assert {
        name: list(filter(elsewhere, addresses)) for name, addresses in found.items() if any(map(elsewhere, addresses))
    } == {}
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not any(re.search(r"url\(['\"]?(?:https?:)?//", style) for style in styles)
    # Material fetches Mermaid when a page holds a diagram for it.
    assert not any('class="mermaid"' in path.read_text(encoding="utf-8") for path in site.rglob("*.html"))


def test_what_the_reference_describes_is_linked(site: Path) -> None:
    for name in ("tutorial", "index"):
        assert (
            'href="reference/recipe.html"><code>hfcap recipe-schema</code></a>' in (site / f"{name}.html").read_text()
        )
    assert ">hfcap recipe-schema</code></a>" not in (site / "reference/recipe.html").read_text()


def test_diagrams_are_drawn(site: Path) -> None:
    page = (site / "captioners.html").read_text(encoding="utf-8")
    assert page.count('<div class="flow">') == 10
    assert "<span>ViT</span><i>patch states &rarr;</i><span>BERT-like decoder with cross-attention</span>" in page


def test_a_diagram_that_cannot_be_drawn_stops_the_build() -> None:
    hooks = pytest.importorskip("scripts.site_hooks", reason="needs the extra docs")
    drawn = hooks.flow_chart("flowchart LR\n  A[a < b] --> B[(c)]\n  A -->|d| C", "", "flow", {}, None)
    assert drawn == (
        '<div class="flow"><p><span>a &lt; b</span><i>&rarr;</i><span>c</span></p>'
        "<p><span>a &lt; b</span><i>d &rarr;</i><span>C</span></p></div>"
    )
    with pytest.raises(ValueError, match=r"cannot draw 'B\{c\}'"):
        hooks.flow_chart("flowchart LR\n  A[a] --> B{c}", "", "flow", {}, None)


def test_images_are_small() -> None:
    images = [path for path in (ROOT / "docs").rglob("*.*") if path.suffix in (".png", ".jpg", ".svg", ".gif")]
    assert images and [path.name for path in images if path.stat().st_size > LARGEST_IMAGE] == []


def test_every_recipe_key_is_in_the_reference() -> None:
    page = site_reference.recipe_page()
    for section, keys in {
        "## train": ["max_steps", "freeze", "optim"],
        "## lora": ["r", "target_modules"],
        "### model: captioner clip_prefix": ["mapper", "prefix_length"],
        "### data: source folder": ["root", "validation_share"],
        "### scst.reward": ["cider", "length"],
        "### score.metric_options.spice": ["jar", "memory_gigabytes"],
        "#### model.members": ["weight"],
    }.items():
        text = re.split(r"^#", page.partition(f"\n{section}")[2], maxsplit=1, flags=re.MULTILINE)[0]
        assert [key for key in keys if f"| `{key}` |" not in text] == []
    assert "| `max_steps` | integer, above 0 or null | `null` | optimiser updates;" in page
    assert '| `bias` | `none`, `all`, `lora_only` | `"none"` | which biases are trained' in page


def test_every_command_is_in_the_reference() -> None:
    page = site_reference.commands_page()
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        for inner, one in getattr(command, "commands", {"": command}).items():
            title = f"hfcap {name} {inner}".strip()
            text = re.split(r"^##", page.partition(f"### {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
            shown = [f"`{option}`" for parameter in one.params for option in parameter.opts if option[0] == "-"]
            assert text and [option for option in shown if option not in text] == [], title
    assert "```text\nhfcap run [OPTIONS] RECIPE [OVERRIDES...]\n```" in page
    assert "| `--steps` | integer | `3` | training steps to measure" in page


def test_the_reference_of_python_follows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(image: str, *, times: int = 1) -> list[str]:
        """Return captions.

        Args:
            image: a path;
                or an address.

        Raises:
            OSError: it is not there.
        """
        raise OSError(image * times)

    monkeypatch.setattr(hfcap, "__all__", ["__version__", "describe"], raising=False)
    monkeypatch.setattr(hfcap, "describe", describe, raising=False)
    page = site_reference.python_page()
    assert (
        "### hfcap.describe\n\n```python\ndescribe(image: str, *, times: int = 1) -> list[str]\n```\n\nReturn captions."
        in page
    )
    assert "**Args:**\n\n- `image`: a path;\n  or an address.\n" in page and "- `OSError`: it is not there." in page
    assert "### hfcap.schema.Prediction" in page and "__version__" not in page
