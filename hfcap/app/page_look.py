"""How the demo's page looks, and what the browser does itself (copied into Spaces)."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

CSS = """
.gradio-container {max-width: 1200px !important; width: 100% !important; margin: 0 auto !important}
.about, .model {padding: 0 !important}
.about, .model, label span {overflow-wrap: anywhere}
.about h1 {font-size: 1.5rem; margin: 0 0 .25rem; font-weight: 600}
.about p {margin: 0; opacity: .75}
.model h2 {font-size: 1.05rem; margin: 0; font-weight: 600}
.model p {margin: 0; font-size: .85rem; opacity: .75}
.maps .grid-wrap {max-height: none !important}
.maps .grid-container {grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)) !important}
.caption textarea {font-size: 1.1rem}
footer {margin-top: 1rem}
@media (max-width: 600px) {
  .gradio-container {padding: 8px !important}
  .tools button {min-height: 44px}
}
"""

READ_ALOUD = """(text) => {
  if (!("speechSynthesis" in window)) { alert("This browser cannot read aloud."); return; }
  speechSynthesis.cancel();
  if (text) speechSynthesis.speak(new SpeechSynthesisUtterance(text));
}"""

COPY_ALT_TEXT = """(text) => {
  const escaped = text.replace(/&/g, "&amp;").replace(/"/g, "&quot;").replace(/</g, "&lt;");
  const attribute = `alt="${escaped}"`;
  // Browsers give pages of other machines the clipboard over HTTPS only.
  if (navigator.clipboard) navigator.clipboard.writeText(attribute);
  else window.prompt("Alt text", attribute);
}"""
"""An attribute for HTML; the text itself is copied by the button inside the text box."""


def heading(title: str, text: str, level: int = 1) -> str:
    """Return HTML of a heading with a line of text; both may be strangers' text."""
    line = f"<p>{html.escape(text)}</p>" if text else ""
    return f"<h{level}>{html.escape(title)}</h{level}>{line}"


def launch_options() -> Mapping[str, Any]:
    """Return how the page is served: its look, without fonts of other servers, and how large an upload may be."""
    import gradio as gr

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {
        "theme": gr.themes.Default(**fonts),
        "css": CSS,
        "max_file_size": "20mb",
        "footer_links": ["settings"],
        # gradio's own lines advise to share the page with everybody.
        "quiet": True,
    }
