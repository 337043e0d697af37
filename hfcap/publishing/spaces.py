"""Folders that are ready to be a Space; metrics as Spaces for `evaluate.load` (the demo: hfcap/app/space.py)."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from hfcap import __version__, registry, strict_yaml
from hfcap.errors import UserError
from hfcap.files import folder_being_written, write_text
from hfcap.publishing.secrets import refuse_secrets

GRADIO_VERSION = "6.31.0"
"""The version that the page was tested with; a Space installs exactly the one that its card names."""

MARK = "written-by-hfcap.txt"
"""A file of every staged Space: only a folder that holds it is written over."""


def stage_metric(name: str, folder: Path) -> Path:
    """Write a Space that holds a metric for `evaluate.load("owner/name")`; returns the folder.

    Raises:
        UserError: no such metric, or the folder holds something else.
    """
    from hfcap.metrics.evaluate_metric import evaluate_folder

    refuse_other_folder(folder)
    source = (evaluate_folder(name) / f"{name}.py").read_text(encoding="utf-8")
    summary, citation = _about(name)
    app = (
        f'"""The page of the metric {name}; written by `hfcap publish-metric`."""\n\n'
        "import evaluate\nfrom evaluate.utils import launch_gradio_widget\n\n"
        f'launch_gradio_widget(evaluate.load("{name}.py"))\n'
    )
    example = f"""```python
import evaluate

metric = evaluate.load("OWNER/{name}")
metric.compute(predictions=["a cat"], references=[["a cat sits", "one cat"]], image_ids=["17"])
```"""
    text = f"{summary}\n\nNeeds the package: `pip install hfcap`.\n\n{example}\n\n{citation}\n"
    write_space(
        folder,
        {
            f"{name}.py": source,
            "app.py": app,
            "requirements.txt": f"evaluate=={metadata.version('evaluate')}\nhfcap=={__version__}\n",
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
        "app_file": "app.py",
        "pinned": False,
        **metadata_,
    }
    return f"---\n{strict_yaml.dump(values)}---\n\n{text}"


def refuse_other_folder(folder: Path) -> None:
    """Raise UserError if the folder holds anything but a Space that was staged there."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file()):
        raise UserError(f"{folder}: holds something else than a staged Space; give another --output")


def write_space(folder: Path, files: dict[str, str]) -> None:
    """Write the files of a Space; an earlier staged one is replaced.

    Raises:
        UserError: a file holds a secret or a path of this machine.
    """
    with folder_being_written(folder) as temporary:
        for name, content in files.items():
            write_text(temporary / name, content)
        write_text(temporary / MARK, "hfcap may write this folder anew; edit a copy.\n")
        refuse_secrets(temporary)
