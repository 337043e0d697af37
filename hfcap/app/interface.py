"""The page of the demo, on this machine and, as a copy of this file, in a Space: it needs only gradio and transformers.

An image goes in; every model's caption comes out next to the others; beams, length and sampling are set for all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

Captioner = Callable[[Image.Image, dict[str, Any]], str]
"""From an RGB image and keyword arguments of `generate` to a caption."""

MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is decoded, as everywhere in hfcap: Pillow would hand an uploaded EPS to Ghostscript."""

ADVICE = "Choose an image first."


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
    num_beams: float, max_new_tokens: float, do_sample: bool, temperature: float, top_p: float
) -> dict[str, Any]:
    """Return keyword arguments of `generate` for the controls; those of sampling only where it is on."""
    values = {"num_beams": int(num_beams), "max_new_tokens": int(max_new_tokens), "do_sample": bool(do_sample)}
    return values | ({"temperature": float(temperature), "top_p": float(top_p)} if do_sample else {})


def caption_with_all(
    captioners: Mapping[str, Captioner], path: str | None, seed: float, decoding: dict[str, Any]
) -> list[str]:
    """Return one caption for each model, in their order; all draw with the same seed.

    Raises:
        ValueError: no image was chosen, or it cannot be read, or the settings contradict one another.
    """
    from transformers import set_seed

    if not path:
        raise ValueError(ADVICE)
    image = open_image(path)
    captions = []
    for captioner in captioners.values():
        set_seed(int(seed))
        captions.append(captioner(image.copy(), dict(decoding)))
    return captions


def build(captioners: Mapping[str, Captioner], defaults: Mapping[str, Any]) -> Any:
    """Return the page as gradio.Blocks.

    Args:
        captioners: name shown above the caption -> the model.
        defaults: the controls' values at the start, named as in `decoding_of`.
    """
    import gradio as gr

    def run(
        path: str | None, beams: float, tokens: float, sample: bool, temperature: float, top_p: float, seed: float
    ) -> Any:
        try:
            decoding = decoding_of(beams, tokens, sample, temperature, top_p)
            captions = caption_with_all(captioners, path, seed, decoding)
        except ValueError as error:
            raise gr.Error(str(error)) from None
        return captions if len(captions) > 1 else captions[0]

    with gr.Blocks(title="Image captions") as page:
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="filepath", label="Image", sources=["upload", "clipboard", "webcam"])
                button = gr.Button("Caption", variant="primary")
            with gr.Column():
                # Text boxes: captions and names are text, never HTML or Markdown.
                outputs = [gr.Textbox(label=name, lines=2, interactive=False) for name in captioners]
        with gr.Accordion("Decoding", open=False):
            start = {"num_beams": 3, "max_new_tokens": 30, "do_sample": False, "temperature": 1.0, "top_p": 1.0}
            start |= {name: value for name, value in defaults.items() if name in start}
            controls = [
                gr.Slider(1, 10, start["num_beams"], step=1, label="Beams (1: greedy)"),
                gr.Slider(1, 100, start["max_new_tokens"], step=1, label="Most new tokens"),
                gr.Checkbox(start["do_sample"], label="Sample (instead of beam search)"),
                gr.Slider(0.1, 2.0, start["temperature"], label="Temperature (when drawing)"),
                gr.Slider(0.05, 1.0, start["top_p"], label="Top-p (when drawing)"),
                gr.Number(0, label="Seed (when drawing)", precision=0, minimum=0),
            ]
        button.click(run, [image, *controls], outputs, api_name="caption", concurrency_limit=1)
        image.upload(run, [image, *controls], outputs, show_progress="minimal", concurrency_limit=1)
    return page
