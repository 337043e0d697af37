"""A captioner that is ready for images: what `hfcap.load_captioner` returns, and what the demo captions with."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sized
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, overload

import torch

from hfcap.captioners.adaptation.quantization import NumberType, WeightOnly, Weights, hold_for_captioning
from hfcap.captioners.asking.asked import has_fields
from hfcap.captioners.base import Captioner, GeneratedCaption
from hfcap.captioners.loading import generation_defaults, local_folder
from hfcap.captioners.loading import load_captioner as load_family_captioner
from hfcap.captioners.quiet import quiet_libraries
from hfcap.captioners.shared.room import require_room
from hfcap.captioning.batches import caption_records
from hfcap.captioning.columns import with_columns
from hfcap.captioning.given import ImageLike, image_records, is_one_image
from hfcap.captioning.options import decoding_options, with_enough_beams
from hfcap.data.images import UnreadableImageError
from hfcap.data.loading import PixelInputs
from hfcap.decoding import DecodingJob
from hfcap.environment import default_device, prepare_processor, slow_bfloat16
from hfcap.errors import OptionError, shown
from hfcap.progress import error_console, progress_bar, reported
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.prompt_fields import with_stand_ins
from hfcap.recipe.styles import with_room_for_style
from hfcap.schema import Candidate, Caption, CaptionedImage

logger = logging.getLogger("hfcap")

DEFAULT_BATCH_SIZE = 16


def load_captioner(
    run: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    dtype: NumberType | None = None,
    quantization: WeightOnly | None = None,
    progress: bool = False,
) -> ImageCaptioner:
    """Load a captioner for use: a run, a model or adapter folder, a model of the Hub, or one that a server runs.

    Denormal numbers are flushed to zero in this process from then on, as in the command line: they are slow on CPUs.

    Args:
        run: run directory (or what `hfcap.train` returned), folder written by hfcap or save_pretrained, Hub id, or
            address of an OpenAI-compatible server (http://127.0.0.1:8000/v1), whose only model is asked.
        revision: commit, tag or branch of a Hub id.
        trust_remote_code: run code that comes with the model; only if you trust its author.
        device: as torch names it; default: the machine's accelerator (a GPU, a Mac's) if there is one.
        dtype: bfloat16 or float32: number type of weights and computation; default: the one that they are stored in, or
            float32.
        quantization: int8 or int4: weights of linear layers in 8 or 4 bits, by the package torchao.
        progress: show bars of downloads on standard error.

    Raises:
        UserError: nothing there that hfcap can caption with; the message says what was found.
        OptionError: no such device, number type or quantisation.
        WorkError: the Hub cannot be reached.
    """
    return ImageCaptioner(
        run,
        revision=revision,
        trust_remote_code=trust_remote_code,
        device=device,
        dtype=dtype,
        quantization=quantization,
        progress=progress,
    )


def ready_captioner(
    location: str,
    revision: str | None,
    trust_remote_code: bool,
    device: str | torch.device | None = None,
    weights: Weights | None = None,
) -> Captioner:
    """Load a captioner onto the device that it captions on; see `load_captioner`."""
    chosen = default_device() if device is None else _device(device)
    prepare_processor()
    captioner = load_family_captioner(location, revision, trust_remote_code)
    hold_for_captioning(captioner, weights or Weights())
    captioner.model.to(chosen)
    if weights is not None and weights.dtype == "bfloat16" and (slow := slow_bfloat16(chosen)):
        error_console.print(f"dtype: {slow}; float32 is faster here", style="yellow", markup=False)
    return captioner


def _device(device: str | torch.device) -> torch.device:
    """Return the device that somebody named.

    Raises:
        OptionError: torch has no such device here.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"device: {error}; give cpu, cuda or cuda:0") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device: {chosen}: torch finds no CUDA GPU here; leave it out to caption on the CPU")
    return chosen


class ImageCaptioner:
    """A captioner ready for images; `load_captioner` makes it. One thread at a time may caption with it.

    Attributes:
        defaults: decoding options saved with the model, which the arguments of `caption` replace.
        captioner: the family's captioner, for what this class does not offer (`captioner.model` is transformers').
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: str | torch.device | None = None,
        dtype: NumberType | None = None,
        quantization: WeightOnly | None = None,
        progress: bool = False,
    ) -> None:
        place = os.fspath(location)
        self.location = str(Path(place).expanduser()) if place.startswith("~") else place
        with reported(progress), quiet_libraries(hub_bars=progress):
            self.defaults: dict[str, Any] = generation_defaults(local_folder(self.location, revision))
            weights = Weights(dtype, quantization)
            self.captioner = ready_captioner(self.location, revision, trust_remote_code, device, weights)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r}, family={self.captioner.family!r}, device={self.device})"

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.captioner.device

    def options(self, **generation: Any) -> GenerateOptions:
        """Return what `caption` with these generation options decodes with.

        Unless num_beams is given, samples (do_sample) are drawn without beams, and several captions an image
        (num_return_sequences) are searched with as many beams, at least three.

        Raises:
            OptionError: one is unknown (the message names the known ones), out of its range, or would be ignored.
        """
        options = decoding_options({**self.defaults, **with_room_for_style(with_enough_beams(generation))})
        if idle := options.without_effect(generation):
            raise OptionError(f"{idle[0]}: has no effect without do_sample=True; set it, or leave {idle[0]} out")
        return options

    @overload
    def caption(
        self,
        images: ImageLike,
        prompt: str | None = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        unreadable: Literal["raise", "skip"] = "raise",
        progress: bool = False,
        **generation: Any,
    ) -> Caption: ...

    @overload
    def caption(
        self,
        images: Iterable[ImageLike],
        prompt: str | None = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        unreadable: Literal["raise", "skip"] = "raise",
        progress: bool = False,
        **generation: Any,
    ) -> list[Caption]: ...

    def caption(
        self,
        images: ImageLike | Iterable[ImageLike],
        prompt: str | None = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        unreadable: Literal["raise", "skip"] = "raise",
        progress: bool = False,
        **generation: Any,
    ) -> Caption | list[Caption]:
        """Caption images as `hfcap caption` does: the same options and batch size give the same captions.

        Args:
            images: one image, which gives one Caption, or an iterable of images, which gives a list in their order.
                An image is a path, an address of http or https, an encoded file's bytes, a Pillow image, or an array:
                numpy (height, width, channels) or torch (channels, height, width), uint8 or floats from 0 to 1.
            prompt: text every caption starts with, not part of it; None = the model's own. `{name}` stands for the
                column `name` of the metadata file next to an image file, `{{` for a brace.
            batch_size: images at a time. Samples depend on it, other captions at most by rounding.
            unreadable: raise for an image that cannot be read, or skip it in a list with a warning in the log.
            progress: show a bar on standard error; otherwise counts are logged.
            generation: num_beams, max_new_tokens, num_return_sequences, do_sample, temperature, top_p, seed, style
                (short, detailed, tags, alt_text: in place of a prompt) and the others that `options` knows; they
                replace those saved with the model.

        Raises:
            OptionError: an option is unknown, out of its range, or would be ignored.
            UnreadableImageError: an image is missing, damaged, too large, or cannot be fetched.
            UserError: something given is no image.
        """
        one = is_one_image(images)
        if unreadable not in ("raise", "skip"):
            raise OptionError(f"unreadable: choose 'raise' or 'skip', not {shown(unreadable)}")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise OptionError(f"batch_size: must be at least 1, not {shown(batch_size)}")
        pixels = PixelInputs([], self.captioner.image_processor)
        options = self.options(**generation)
        prompt = self.captioner.prompt_for(options.style, prompt)
        job = DecodingJob([], pixels, options, batch_size, 0, prompt)
        records = image_records([images] if one else images)  # type: ignore[list-item,arg-type]  # one image, or not
        if has_fields(self.captioner, prompt):
            records = with_columns(records)
        require_room(self.captioner, options, self.captioner.prompt if prompt is None else with_stand_ins(prompt))
        total = 1 if one else len(images) if isinstance(images, Sized) else None
        with reported(progress), quiet_libraries(hub_bars=progress):
            captions = self._captions(job, records, total, skip=unreadable == "skip" and not one)
        return captions[0] if one else captions

    def _captions(
        self, job: DecodingJob, records: Iterable[CaptionedImage], total: int | None, skip: bool
    ) -> list[Caption]:
        captions: list[Caption] = []
        with progress_bar() as bar:
            advance = partial(bar.advance, bar.add_task("Captioning", total=total))
            with closing(caption_records(self.captioner, job, records, advance=advance)) as batches:
                for record, found in chain.from_iterable(batches):
                    if not isinstance(found, str):
                        captions.append(_caption(record, found))
                    elif skip:
                        logger.warning("skipped: %s", found)
                    else:
                        raise UnreadableImageError(found)
        return captions


def _caption(record: CaptionedImage, found: list[GeneratedCaption]) -> Caption:
    candidates = tuple(Candidate(caption.text, caption.score) for caption in found)
    return Caption(candidates[0].text, candidates[0].score, candidates, record.file_name, found[0].cut, found[0].usage)
