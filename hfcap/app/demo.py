"""`hfcap demo`: the page over models that hfcap can load, run directories and adapters included."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from PIL import Image

from hfcap.app import interface
from hfcap.app.page_look import launch_options
from hfcap.app.page_models import PageModel, Say
from hfcap.app.word_stream import words_told
from hfcap.captioners.base import Captioner
from hfcap.captioners.shared.room import require_room, takes_prompt
from hfcap.captioning import load_captioner
from hfcap.captioning.given import image_records
from hfcap.card.example_images import drawn_images
from hfcap.card.shown_scores import score_line
from hfcap.data.image_files import folder_images
from hfcap.data.loading import PixelInputs
from hfcap.errors import MissingPackageError, UserError
from hfcap.explain import explain, lit_image
from hfcap.files import read_text, write_bytes
from hfcap.recipe.prompt_fields import fields_of, filled
from hfcap.scoring import score_captions
from hfcap.scoring.score_table import metric_name, shown_score

_MOST_EXAMPLES = 12


class LoadedModel(PageModel):
    """A model of the demo that hfcap loaded, with all that hfcap can do with it.

    Args:
        location: run directory, model folder or Hub id.
    """

    ranks = True

    def __init__(self, location: str, trust_remote_code: bool = False) -> None:
        self.captioner = load_captioner(location, trust_remote_code=trust_remote_code)
        super().__init__(lambda image, decoding: self.captioner.caption(image, **decoding).text, scores_of(location))
        self.defaults = self.captioner.defaults
        family = self.captioner.captioner
        self.explains = type(family).word_attention is not Captioner.word_attention
        self.takes_prompt = takes_prompt(family)
        if fields := fields_of(family.template):
            raise UserError(
                f"{location}: asks {family.template!r} of each image, and images of the demo come without a table that "
                f"has {fields[0]}; caption a folder with metadata instead: hfcap caption {location} FOLDER"
            )
        # The first caption also finds out which faster ways are right; none of the page's should be timed with that.
        self.captioner.caption(Image.new("RGB", (64, 48), "grey"), num_return_sequences=1)

    def captions(
        self, image: Image.Image, decoding: Mapping[str, Any], prompt: str | None, say: Say
    ) -> list[tuple[str, float | None]]:
        """Return captions with scores, best first; sampling takes the seed that torch was given last.

        Raises:
            ValueError: decoding arguments that contradict one another.
        """
        with words_told(self.captioner.captioner, say):
            found = self.captioner.caption(image, prompt, **{"num_return_sequences": 1, **self._seeded(decoding)})
        return [(candidate.text, candidate.score) for candidate in found.candidates]

    def heat_maps(
        self, image: Image.Image, decoding: Mapping[str, Any], prompt: str | None
    ) -> list[tuple[Image.Image, str]]:
        """Return the image once for each word, bright where the captioner looked.

        Raises:
            ValueError: the captioner has no attention to places in the image, or the caption is empty.
        """
        captioner = self.captioner.captioner
        options = self.captioner.options(**{**self._seeded(decoding), "num_return_sequences": 1})
        prompt = None if prompt is None else filled(prompt, {}, "this image")
        require_room(captioner, options, prompt)
        pixels = PixelInputs(list(image_records([image])), captioner.image_processor).pixel_values([0])
        found = explain(captioner, pixels, options, prompt)
        return [
            (Image.fromarray((255 * lit_image(word, found.image)[0]).astype(np.uint8)), word.word)
            for word in found.words
        ]

    @staticmethod
    def _seeded(decoding: Mapping[str, Any]) -> dict[str, Any]:
        # The page, which also runs without hfcap, seeds torch itself.
        return {**decoding, **({"seed": torch.initial_seed()} if decoding.get("do_sample") else {})}


def scores_of(location: str) -> str:
    """Return the main scores that the card of a run, a folder or a Hub model says; empty where there are none."""
    card = Path(location) / "README.md"
    if not Path(location).is_dir():
        try:
            card = Path(hf_hub_download(location, "README.md"))
        except (HfHubHTTPError, HFValidationError, OSError):
            return ""
    if not card.is_file():
        return ""
    try:
        return score_line(read_text(card, "model card"))
    except UserError:  # a stranger's card must not keep the model from the page
        return ""


def score_of(caption: str, references: Sequence[str]) -> dict[str, str]:
    """Return metric -> value as shown, of one caption against human ones.

    CIDEr-D is not among them: it weighs words by how many images they are used for, and this is one image.

    Raises:
        ValueError: no caption has words.
    """
    values = score_captions({"image": caption}, {"image": list(references)}, metrics=("bleu", "rouge_l"))
    return {metric_name(name): shown_score(name, values[name]) for name in ("bleu_1", "bleu_4", "rouge_l")}


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


def example_files(folder: Path | None, into: Path) -> list[str]:
    """Return images to try: those of a folder (12 at most), or two that are drawn into `into`.

    Raises:
        UserError: no such folder, or no images in it.
    """
    if folder is not None:
        found = folder_images(folder).found
        if not found:
            raise UserError(f"--examples {folder}: no images there; give a folder that holds some")
        return [str(path) for path in found[:_MOST_EXAMPLES]]
    for name, content in drawn_images().items():
        write_bytes(into / name, content)
    return [str(into / name) for name in drawn_images()]


@contextmanager
def served(
    models: Mapping[str, LoadedModel],
    host: str,
    port: int | None,
    accounts: Sequence[tuple[str, str]] | None = None,
    title: str = "Image captions",
    examples: Path | None = None,
) -> Iterator[str]:
    """Serve the page for the length of the block, which gets its address; only this machine can reach it unless
    `host` says otherwise.

    Args:
        accounts: names and passwords of those who may use it; None = everybody who can reach it.
        examples: folder of images to try; None = drawn ones.

    Raises:
        UserError: the port is taken, or there are no such images.
    """
    first = next(iter(models.values()))
    with tempfile.TemporaryDirectory(prefix="hfcap-demo-") as temporary:
        files = example_files(examples, Path(temporary))
        page = interface.build(models, first.defaults, title=title, examples=files, score=score_of)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                inbrowser=False,
                prevent_thread_lock=True,
                auth=list(accounts) if accounts is not None else None,
                **launch_options(),
            )
        except OSError as error:
            raise UserError(f"--port {port}: cannot be listened on ({error}); give another one") from None
        try:
            yield address
        finally:
            page.close(verbose=False)
