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


class LoadedModel:
    """A model of the demo: called with a picture and decoding arguments, it says a caption.

    Args:
        location: run directory, model folder or Hub id.
    """

    def __init__(self, location: str, trust_remote_code: bool = False) -> None:
        self.captioner = load_captioner(location, trust_remote_code=trust_remote_code)
        self.defaults = self.captioner.defaults

    def __call__(self, picture: Image.Image, decoding: Mapping[str, Any]) -> str:
        """Return the best caption; sampling takes the seed that torch was given last.

        Raises:
            ValueError: decoding arguments that contradict one another.
        """
        # The page, which also runs without hfcap, seeds torch itself.
        seed = {"seed": torch.initial_seed()} if decoding.get("do_sample") else {}
        return self.captioner.caption(picture, **{**decoding, **seed, "num_return_sequences": 1}).text


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
    raise UserError("a model is given twice; name each model once")


def launch(models: Mapping[str, LoadedModel], host: str, port: int | None) -> None:
    """Serve the page until Ctrl-C; only this machine can reach it unless `host` says otherwise."""
    first = next(iter(models.values()))
    page = interface.build(models, first.defaults)
    page.launch(server_name=host, server_port=port, share=False, max_file_size="20mb")
