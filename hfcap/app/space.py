"""The demo as a Space: it loads published models with the code of their cards and needs no hfcap."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hfcap import text
from hfcap.app import interface, page_files, page_look, page_models
from hfcap.card.example_images import RECORD, drawn_images
from hfcap.card.requirements import installed_versions, needed_packages, packages_on_card
from hfcap.card.shown_scores import score_line
from hfcap.card.usage_code import OPENING, decoding_settings
from hfcap.errors import UserError
from hfcap.files import read_text
from hfcap.publishing import hub
from hfcap.publishing.published import PublishedModel, download_small
from hfcap.publishing.spaces import refuse_other_folder, space_card, write_space

_APP = '''"""Captions of an image by published models, side by side; written by `hfcap publish-space`."""

{imports}

{loaders}


CAPTIONERS = {{
{entries}
}}

ABOUT = {about!r}
EXAMPLES = {examples!r}

if __name__ == "__main__":
    models = {{name: PageModel(caption, ABOUT[name]) for name, caption in CAPTIONERS.items()}}
    build(models, {defaults!r}, title={title!r}, examples=EXAMPLES).launch(**launch_options())
'''

_PAGE = (interface, page_files, page_look, page_models, text)
"""Modules that the page is made of: they stand next to app.py and need only gradio and transformers."""

_OWN_IMPORT = re.compile(r"^from hfcap\.(?:app\.)?(\w+) import ", re.MULTILINE)

_IMPORTS = {"interface": "build", "page_look": "launch_options", "page_models": "PageModel"}


def stage_demo(model_ids: Sequence[str], folder: Path, title: str, trust_remote_code: bool = False) -> Path:
    """Write a Space that captions with published models; returns the folder.

    Args:
        model_ids: Hub ids; each is pinned to its present commit.
        folder: is made, or written over if a Space was staged there before.
        trust_remote_code: models may bring code, which the Space then runs.

    Raises:
        UserError: no such model, one brings code and trust_remote_code is off, or the folder holds something else.
    """
    refuse_other_folder(folder)
    if len(set(model_ids)) < len(model_ids):
        raise UserError("MODEL: one is given twice; name each model once")
    for model_id in model_ids:
        hub.check_repo_id(model_id, "the model")
    with tempfile.TemporaryDirectory(prefix="hfcap-space-") as temporary:
        models = [
            download_small(model_id, None, Path(temporary) / str(number)) for number, model_id in enumerate(model_ids)
        ]
        for model in models:
            if not any(name.endswith(".safetensors") for name in model.names):
                raise UserError(
                    f"{model.location}: has no weights as safetensors, and the Space would load a pickle; save "
                    "the model with safetensors"
                )
            if model.brings_code and not trust_remote_code:
                raise UserError(
                    f"{model.location}: brings its own modelling code, which the Space would run; read it, then give "
                    "--trust-remote-code"
                )
        app = _app(models, title)
        requirements = sorted({line for model in models for line in _requirements(model)})
    listed = "".join(f"- [{model_id}](https://huggingface.co/{model_id})\n" for model_id in model_ids)
    described = f"Upload an image; each model writes a caption:\n\n{listed}\nStaged by `hfcap publish-space`."
    write_space(
        folder,
        {
            "app.py": app,
            **page_sources(),
            **{f"examples/{name}": content for name, content in drawn_images().items()},
            "requirements.txt": "".join(f"{line}\n" for line in requirements),
            "README.md": space_card(title, described, models=list(model_ids), tags=["image-captioning", "hfcap"]),
        },
    )
    return folder


def _card(model: PublishedModel) -> str:
    path = model.files / "README.md"
    return read_text(path, "model card") if path.is_file() else ""


def _requirements(model: PublishedModel) -> list[str]:
    """Return what the model's card says to install, in the version that is installed here."""
    named = packages_on_card(_card(model)) if (model.files / RECORD).is_file() else []
    lines = []
    for requirement in named or needed_packages(model.files):
        name = requirement.partition(">=")[0]
        if name == "pillow":
            continue  # gradio brings it, and not every version suits gradio
        version = installed_versions([name]).get(name)
        lines.append(f"{name}=={version}" if version else requirement)
    return lines


def page_sources() -> dict[str, str]:
    """Return the page's files by name, each importing the others as its neighbours."""
    sources = {Path(str(module.__file__)).name: Path(str(module.__file__)) for module in _PAGE}
    return {name: _OWN_IMPORT.sub(r"from \1 import ", read_text(path, "source")) for name, path in sources.items()}


def _app(models: Sequence[PublishedModel], title: str) -> str:
    imports = {f"from {name} import {what}" for name, what in _IMPORTS.items()}
    loaders, entries = [], []
    for number, model in enumerate(models):
        load, caption = model.code(decoding=", **{**own, **decoding}", only_safetensors=True)
        lines = load.strip().splitlines()
        imports |= {line for line in lines if line.startswith("from ") and "PIL" not in line}
        body = [line for line in lines if line and not line.startswith("from ")]
        *steps, last = caption.replace(OPENING, "image = image").strip().splitlines()
        assert last.startswith("print(") and last.endswith(")"), last
        loaders.append(
            "\n".join(
                [
                    f"def load_{number}():",
                    *(f"    {line}" for line in body),
                    f"    own = {decoding_settings(model.files)!r}",
                    "",
                    "    def caption(image, decoding):",
                    *(f"        {line}" for line in steps if line != "image = image"),
                    f"        return {last[len('print(') : -1]}",
                    "",
                    "    return caption",
                ]
            )
        )
        entries.append(f"    {model.location!r}: load_{number}(),")
    return _APP.format(
        imports="\n".join(sorted(imports)),
        loaders="\n\n\n".join(loaders),
        entries="\n".join(entries),
        about={model.location: score_line(_card(model)) for model in models},
        examples=[f"examples/{name}" for name in drawn_images()],
        defaults=decoding_settings(models[0].files),
        title=title,
    )
