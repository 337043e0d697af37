"""The models of the demo's page: an image goes in, captions come out; needs only transformers (copied into Spaces)."""

from __future__ import annotations

import queue
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from PIL import Image, ImageOps, UnidentifiedImageError

Captioner = Callable[[Image.Image, dict[str, Any]], str]
"""From an RGB image and keyword arguments of `generate` to a caption."""

Say = Callable[[str], None]
"""Takes a caption as far as it is written."""

MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is decoded, as everywhere in hfcap: Pillow would hand an uploaded EPS to Ghostscript."""

ADVICE = "Choose an image first."

_T = TypeVar("_T")


class PageModel:
    """A model of the page; this one captions and does no more, which is what a Space's models can.

    Attributes:
        about: shown under its name, plain text.
        takes_prompt, ranks, explains: whether it can be told a prompt, give several captions, draw heat maps.
    """

    takes_prompt = False
    ranks = False
    explains = False

    def __init__(self, caption: Captioner, about: str = "") -> None:
        self.about = about
        self._caption = caption

    def captions(
        self, image: Image.Image, decoding: Mapping[str, Any], prompt: str | None, say: Say
    ) -> list[tuple[str, float | None]]:
        """Return captions with scores, best first.

        Args:
            prompt: None = the model's own.
            say: takes the words so far, where the model tells them one by one.

        Raises:
            ValueError: settings that contradict one another.
        """
        return [(self._caption(image, {**decoding}), None)]

    def heat_maps(
        self, image: Image.Image, decoding: Mapping[str, Any], prompt: str | None
    ) -> list[tuple[Image.Image, str]]:
        """Return an image for each word of a caption, bright where the model looked.

        Raises:
            ValueError: it has no attention to places in the image.
        """
        return []


@dataclass(frozen=True)
class Settings:
    """What is set on the page for all models.

    Attributes:
        decoding: keyword arguments of `generate`.
        seed: of sampling, the same for each model.
        prompt: for models that take one; empty = their own.
    """

    decoding: Mapping[str, Any]
    seed: int = 0
    prompt: str = ""


@dataclass(frozen=True)
class Said:
    """What a model says of an image.

    Attributes:
        captions: with scores, best first.
        seconds: of the captioning; None while it goes on.
    """

    captions: list[tuple[str, float | None]] = field(default_factory=list)
    seconds: float | None = None

    @property
    def caption(self) -> str:
        """The best caption."""
        return self.captions[0][0] if self.captions else ""

    @property
    def others(self) -> str:
        """All captions as a list for people; empty where there is only one."""
        numbered = enumerate(self.captions, start=1)
        lines = [f"{n}. {text}" + ("" if score is None else f"  ({score:.2f})") for n, (text, score) in numbered]
        return "\n".join(lines) if len(lines) > 1 else ""


def open_image(path: str) -> Image.Image:
    """Return the image upright in RGB, on white where it is transparent.

    Raises:
        ValueError: not an image that can be read, or a very large one.
    """
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as opened:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"more than {MAX_PIXELS:,} pixels; save the image smaller")
            upright = ImageOps.exif_transpose(opened).convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("this is not an image that can be read; give a JPEG or PNG") from None
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError("the image is damaged or too large; save it again, and smaller") from None


def decoding_of(
    num_beams: float, max_new_tokens: float, do_sample: bool, temperature: float, top_p: float, count: float = 1
) -> dict[str, Any]:
    """Return keyword arguments of `generate` for the controls; those of sampling only where it is on.

    Args:
        count: captions wanted; a search needs at least as many beams.
    """
    count = int(count)
    beams = int(num_beams) if do_sample else max(int(num_beams), count)
    values = {"num_beams": beams, "max_new_tokens": int(max_new_tokens), "do_sample": bool(do_sample)}
    values |= {"num_return_sequences": count} if count > 1 else {}
    return values | ({"temperature": float(temperature), "top_p": float(top_p)} if do_sample else {})


def one_model(model: PageModel, image: Image.Image, settings: Settings) -> Generator[Said, None, Said]:
    """Yield the caption word by word where the model tells it so; return it with its time.

    Raises:
        ValueError: the settings contradict one another.
    """
    from transformers import set_seed

    decoding = dict(settings.decoding)
    if not model.ranks:
        decoding.pop("num_return_sequences", None)
    prompt = settings.prompt.strip() or None if model.takes_prompt else None
    set_seed(settings.seed)
    start = time.perf_counter()
    told = _told_while(lambda say: model.captions(image.copy(), decoding, prompt, say))
    while True:
        try:
            yield Said([(next(told), None)])
        except StopIteration as end:
            return Said(end.value, time.perf_counter() - start)


def _told_while(work: Callable[[Say], _T]) -> Generator[str, None, _T]:
    """Do the work in a thread of its own; yield what it says meanwhile, and return what it returns."""
    told: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    with ThreadPoolExecutor(max_workers=1) as pool:
        result = pool.submit(work, told.put)
        result.add_done_callback(lambda _: told.put(None))
        while (text := told.get()) is not None:
            yield text
        return result.result()


def finished(steps: Generator[Any, None, _T]) -> _T:
    """Run through all steps; return what is at their end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def all_models(models: Mapping[str, PageModel], path: str | None, settings: Settings) -> Iterator[list[Said]]:
    """Yield what every model says so far, in their order, one model after the other.

    Raises:
        ValueError: no image was chosen, or it cannot be read, or the settings contradict one another.
    """
    if not path:
        raise ValueError(ADVICE)
    image = open_image(path)
    said = [Said()] * len(models)
    for number, model in enumerate(models.values()):
        steps = one_model(model, image, settings)
        while True:
            try:
                said[number] = next(steps)
            except StopIteration as end:
                said[number] = end.value
                break
            yield list(said)
        yield list(said)


def caption_with_all(
    captioners: Mapping[str, Captioner | PageModel], path: str | None, seed: float, decoding: Mapping[str, Any]
) -> list[str]:
    """Return one caption for each model, in their order; all draw with the same seed.

    Raises:
        ValueError: as `all_models`.
    """
    *_, last = all_models(page_models(captioners), path, Settings(decoding, int(seed)))
    return [said.caption for said in last]


def page_models(captioners: Mapping[str, Captioner | PageModel]) -> dict[str, PageModel]:
    """Return captioners as models of the page."""
    return {name: one if isinstance(one, PageModel) else PageModel(one) for name, one in captioners.items()}
