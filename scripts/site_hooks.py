"""Hooks of MkDocs (mkdocs.yml): reference pages from the code, pages of the root folder, diagrams without scripts."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # MkDocs runs this file by itself
    sys.path.insert(0, str(ROOT))

ROOT_PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Address on the site -> file in the project's root."""

REFERENCES = {"`hfcap recipe-schema`": "reference/recipe.md"}
"""What pages name -> the generated page that it becomes a link to; the repository has no such page to link to."""

_EDGE = re.compile(r"\s*-->(?:\|([^|]+)\|)?\s*")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Draw Mermaid's flow charts as rows of boxes: Mermaid itself would be fetched from a server."""
    fence = {"name": "mermaid", "class": "flow", "format": flow_chart}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files in docs/."""
    from scripts.site_reference import PAGES

    for address, write in PAGES.items():
        files.append(File.generated(config, address, content=write()))
    for address, name in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, address, content=linked(text, "", "")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files of the project's root, and names of what the reference describes, to pages of the site."""
    depth = page.file.src_uri.count("/")
    for name, address in REFERENCES.items():
        if not page.file.src_uri.startswith("reference/"):
            markdown = markdown.replace(name, f"[{name}]({'../' * depth}{address})")
    return linked(markdown, "../" * (depth + 1), "../" * depth)


def linked(markdown: str, root: str, site: str) -> str:
    """Return `markdown` with links to ROOT_PAGES below `root` leading to their pages below `site`."""
    for address, name in ROOT_PAGES.items():
        markdown = markdown.replace(f"]({root}{name}", f"]({site}{address}")
    return markdown


def flow_chart(source: str, language: str, css_class: str, options: Any, md: Any, **_: Any) -> str:
    """Return a flow chart (`flowchart LR`, chains of nodes) as HTML; nodes keep the name that they have first."""
    named: dict[str, str] = {}
    chains = []
    for line in source.strip().splitlines()[1:]:
        nodes = _EDGE.split(line.strip())[::2]
        edges = _EDGE.split(line.strip())[1::2]
        for node in nodes:
            found = re.fullmatch(r"(\w+)(?:\[\(?([^])]+)\)?\])?", node)
            if found is None:
                raise ValueError(f"mermaid: cannot draw {node!r} (scripts/site_hooks.py)")
            named.setdefault(found[1], found[2] or found[1])
        chains.append(([re.split(r"\W", node)[0] for node in nodes], edges))
    rows = [_row([named[node] for node in nodes], edges) for nodes, edges in chains]
    return f'<div class="{css_class}">{"".join(rows)}</div>'


def _row(names: list[str], edges: list[str | None]) -> str:
    parts = [f"<span>{html.escape(names[0])}</span>"]
    for edge, name in zip(edges, names[1:], strict=True):
        label = f"{html.escape(edge)} " if edge else ""
        parts.append(f"<i>{label}&rarr;</i><span>{html.escape(name)}</span>")
    return f"<p>{''.join(parts)}</p>"
