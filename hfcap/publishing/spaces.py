"""Folders that are ready to be a Space; metrics as Spaces for `evaluate.load` (the demo: hfcap/app/space.py)."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_url
from packaging.requirements import Requirement

from hfcap import registry
from hfcap.errors import UserError, requirement
from hfcap.files import folder_being_written, write_bytes, write_text
from hfcap.publishing.own_wheel import WHEEL_NAME, installed, wheel_content
from hfcap.publishing.secrets import refuse_secrets
from hfcap.recipe import strict_yaml

GRADIO_VERSION = "6.31.0"
"""The version that the page was tested with; a Space installs exactly the one that its card names."""

MARK = "written-by-hfcap.txt"
"""A file of every staged Space: only a folder that holds it is written over."""


_METRIC_PAGE = '''"""The page of the metric {name}; written by `hfcap publish-metric`."""

import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
unpacked = tempfile.mkdtemp()
with zipfile.ZipFile(HERE / "{wheel}") as archive:
    archive.extractall(unpacked)
sys.path.insert(0, unpacked)

import evaluate
import gradio as gr

metric = evaluate.load(str(HERE / "{name}.py"))


def score(captions, references):
    predictions = captions.splitlines()
    human = [[one.strip() for one in line.split("|") if one.strip()] for line in references.splitlines()]
    if not predictions or len(predictions) != len(human):
        raise gr.Error("Write as many lines of human captions as of captions, at least one.")
    try:
        return metric.compute(predictions=predictions, references=human)
    except (OSError, RuntimeError, ValueError) as error:
        raise gr.Error(str(error)) from None


page = gr.Interface(
    score,
    [
        gr.Textbox(label="Captions, one line an image", lines=4),
        gr.Textbox(label="Human captions, one line an image, joined by |", lines=4),
    ],
    gr.JSON(label="{name}"),
    title="{name}",
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
'''

# evaluate looks for what a module imports and would advise to install hfcap from the package index by its name.
_FROM_PACKAGE = "from hfcap.metrics import evaluate_metric\n"
_FROM_SPACE = """import importlib.util

if importlib.util.find_spec("hfcap") is None:
    raise ImportError("{name} needs hfcap: pip install {address}")
evaluate_metric = importlib.import_module("hfcap.metrics.evaluate_metric")
"""

_MORE_PACKAGES = {"meteor": ("pycocoevalcap",)}
"""Packages of hfcap's extras that a metric needs."""


def stage_metric(name: str, folder: Path, repo_id: str) -> Path:
    """Write a Space that holds a metric for `evaluate.load(repo_id)`, and hfcap itself; returns the folder.

    Raises:
        UserError: no such metric, the folder holds something else, or hfcap is not installed (`own_wheel.installed`).
    """
    from hfcap.metrics.evaluate_metric import evaluate_folder

    refuse_other_folder(folder)
    source = (evaluate_folder(name) / f"{name}.py").read_text(encoding="utf-8")
    assert _FROM_PACKAGE in source, source
    address = hf_hub_url(repo_id, WHEEL_NAME, repo_type="space")
    summary, citation = _about(name)
    text = f"""{summary}

```bash
pip install {address}
```

```python
import evaluate

metric = evaluate.load("{repo_id}")
metric.compute(predictions=["a cat"], references=[["a cat sits", "one cat"]], image_ids=["17"])
```

{citation}
"""
    needed = [one for one in map(Requirement, installed().requires or []) if one.marker is None]
    packages = [*map(str, needed), *map(requirement, _MORE_PACKAGES.get(name, ()))]
    write_space(
        folder,
        {
            WHEEL_NAME: wheel_content(),
            f"{name}.py": source.replace(_FROM_PACKAGE, _FROM_SPACE.format(name=name, address=address)),
            "app.py": _METRIC_PAGE.format(name=name, wheel=WHEEL_NAME),
            "requirements.txt": "".join(f"{package}\n" for package in packages),
            "README.md": space_card(name, text, tags=["evaluate", "metric", "image-captioning"]),
        },
    )
    return folder


def _about(name: str) -> tuple[str, str]:
    if name == "caption_suite":
        return "BLEU, ROUGE-L and CIDEr-D at once.", ""
    metric = registry.load("metrics", name).REGISTERED
    return str(metric.summary), "\n".join(["## Citation", "", str(metric.citation)]) if metric.citation else ""


def space_card(title: str, text: str, **metadata_: Any) -> str:
    """Return a Space's README.md: the Hub's settings, then `text`."""
    values: dict[str, Any] = {
        "title": title,
        "emoji": "🖼️",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": GRADIO_VERSION,
        # Spaces would take 3.10, for which hfcap and the pinned packages are too new.
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "pinned": False,
        **metadata_,
    }
    return f"---\n{strict_yaml.dump(values)}---\n\n{text}"


def refuse_other_folder(folder: Path) -> None:
    """Raise UserError if the folder holds anything but a Space that was staged there."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file()):
        raise UserError(f"{folder}: holds something else than a staged Space; give another --output")


def write_space(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write the files of a Space; an earlier staged one is replaced.

    Raises:
        UserError: a file holds a secret or a path of this machine.
    """
    with folder_being_written(folder) as temporary:
        for name, content in files.items():
            write_bytes(temporary / name, content.encode() if isinstance(content, str) else content)
        write_text(temporary / MARK, "hfcap may write this folder again; edit a copy.\n")
        refuse_secrets(temporary)
