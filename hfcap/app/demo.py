"""`hfcap demo`: the page over models that hfcap can load, run directories and adapters included."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hfcap.app import interface
from hfcap.captioning import load_captioner
from hfcap.errors import MissingPackageError, UserError
from hfcap.files import read_text


class LoadedModel:
    """A model of the demo: called with an image and decoding arguments, it says a caption.

    Args:
        location: run directory, model folder or Hub id.
    """

    def __init__(self, location: str, trust_remote_code: bool = False) -> None:
        self.captioner = load_captioner(location, trust_remote_code=trust_remote_code)
        self.defaults = self.captioner.defaults

    def __call__(self, image: Image.Image, decoding: Mapping[str, Any]) -> str:
        """Return the best caption; sampling takes the seed that torch was given last.

        Raises:
            ValueError: decoding arguments that contradict one another.
        """
        # The page, which also runs without hfcap, seeds torch itself.
        seed = {"seed": torch.initial_seed()} if decoding.get("do_sample") else {}
        return self.captioner.caption(image, **{**decoding, **seed, "num_return_sequences": 1}).text


def load_models(locations: Sequence[str], trust_remote_code: bool = False) -> dict[str, LoadedModel]:
    """Load the models of a demo; returns them by the names that the page shows (`shown_names`).

    Raises:
        UserError: a model cannot be loaded or is given twice, or gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingPackageError("gradio", "hfcap demo")
    names = shown_names(locations)
    return {name: LoadedModel(place, trust_remote_code) for name, place in zip(names, locations, strict=True)}


def shown_names(locations: Sequence[str]) -> list[str]:
    """Return what stands above the captions of each model: Hub ids, and of folders as little as tells them apart.

    The page may be seen by others, whom the folders of this machine do not concern.

    Raises:
        UserError: a model is given twice.
    """
    parts = [Path(place).resolve().parts if Path(place).exists() else (place,) for place in locations]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of_one[-length:]) for of_one in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("MODEL: one is given twice; name each model once")


def read_demo_accounts(path: Path) -> list[tuple[str, str]]:
    """Read who may use a demo: lines of name and password; '#' at the start of a line makes it a comment.

    Raises:
        UserError: a line is wrong; the message names it, never the password.
    """
    accounts: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "accounts of the demo").splitlines(), start=1):
        name, _, password = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        if len(password.strip()) < 8:
            raise UserError(f"{path}: line {number}: write: name password, the password of 8 characters at least")
        if name in accounts:
            raise UserError(f"{path}: line {number}: {name} has a line already; remove one of them")
        accounts[name] = password.strip()
    if not accounts:
        raise UserError(f"{path}: holds no account; write lines of: name password")
    return list(accounts.items())


def launch(
    models: Mapping[str, LoadedModel], host: str, port: int | None, accounts: Sequence[tuple[str, str]] | None = None
) -> None:
    """Serve the page until Ctrl-C; only this machine can reach it unless `host` says otherwise.

    Args:
        accounts: names and passwords of those who may use it; None = everybody who can reach it.
    """
    first = next(iter(models.values()))
    page = interface.build(models, first.defaults)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size="20mb",
        auth=list(accounts) if accounts is not None else None,
    )
