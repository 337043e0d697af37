"""The page of the demo, on this machine and, as a copy of this file, in a Space: it needs only gradio and transformers.

One image: the captions of all models next to each other, with what else they can do (`PageModel`). Many images: a table
and sidecars to download. Captions and names are strangers' text: they go into text boxes, or are escaped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcap.app.page_files import caption_files, write_downloads
from hfcap.app.page_look import COPY_ALT_TEXT, READ_ALOUD, heading
from hfcap.app.page_models import (
    ADVICE,
    Captioner,
    PageModel,
    Said,
    Settings,
    all_models,
    decoding_of,
    open_image,
    page_models,
)

Score = Callable[[str, Sequence[str]], Mapping[str, str]]
"""From a caption and human captions to metrics as they are shown."""

_START = {"num_beams": 3, "max_new_tokens": 30, "do_sample": False, "temperature": 1.0, "top_p": 1.0}


def settings_of(
    prompt: str, count: float, beams: float, tokens: float, sample: bool, temperature: float, top_p: float, seed: float
) -> Settings:
    """Return the settings for the values of the page's controls, in their order."""
    return Settings(decoding_of(beams, tokens, sample, temperature, top_p, count), int(seed), prompt or "")


def build(
    captioners: Mapping[str, Captioner | PageModel],
    defaults: Mapping[str, Any],
    *,
    title: str = "Image captions",
    about: str = "",
    examples: Sequence[str] = (),
    score: Score | None = None,
) -> Any:
    """Return the page as gradio.Blocks.

    Args:
        captioners: name shown above the caption -> the model.
        defaults: the controls' values at the start, named as in `decoding_of`.
        title, about: shown at the top.
        examples: image files to try.
        score: measures captions against those that a person types in; None = not offered.
    """
    import gradio as gr

    models = page_models(captioners)
    # Uploads are deleted a day after, looked for every hour; no word of its use goes to gradio's makers.
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(heading(title, about), elem_classes="about")
        controls = _Controls(gr, models, {**_START, **defaults})
        with gr.Tab("One image"):
            _one_image(gr, models, controls, list(examples), score)
        with gr.Tab("Many images"):
            _many_images(gr, models, controls)
        controls.render()
    return page


class _Controls:
    """Prompt and decoding, which stand under both tabs."""

    def __init__(self, gr: Any, models: Mapping[str, PageModel], start: Mapping[str, Any]) -> None:
        self._gr = gr
        prompted = [name for name, model in models.items() if model.takes_prompt]
        for_whom = "" if len(prompted) == len(models) else f", for {', '.join(prompted)}"
        ranked = any(model.ranks for model in models.values())
        self.prompt = gr.Textbox(
            label=f"Prompt{for_whom}",
            info="What the model is told, or goes on from; empty: its own",
            visible=bool(prompted),
            render=False,
        )
        self.decoding = [
            gr.Slider(1, 10, 1, step=1, label="Captions of each model", visible=ranked, render=False),
            gr.Slider(1, 10, start["num_beams"], step=1, label="Beams (1: greedy)", render=False),
            gr.Slider(1, 200, start["max_new_tokens"], step=1, label="Most new tokens", render=False),
            gr.Checkbox(start["do_sample"], label="Sample (instead of beam search)", render=False),
            gr.Slider(0.1, 2.0, start["temperature"], label="Temperature (when sampling)", render=False),
            gr.Slider(0.05, 1.0, start["top_p"], label="Top-p (when sampling)", render=False),
            gr.Number(0, label="Seed (when sampling)", precision=0, minimum=0, render=False),
        ]

    @property
    def all(self) -> list[Any]:
        """What `settings_of` takes."""
        return [self.prompt, *self.decoding]

    def render(self) -> None:
        """Put the controls of decoding here."""
        with self._gr.Accordion("Decoding", open=False):
            for control in self.decoding:
                control.render()


def _one_image(
    gr: Any, models: Mapping[str, PageModel], controls: _Controls, examples: list[str], score: Score | None
) -> None:
    with gr.Row():
        with gr.Column(min_width=280):
            image = gr.Image(type="filepath", label="Image", sources=["upload", "clipboard", "webcam"], height=360)
            controls.prompt.render()
            with gr.Row():
                button = gr.Button("Caption", variant="primary")
                stop = gr.Button("Stop", min_width=80)
            files = [[path] for path in examples]
            sample = gr.Examples(files, image, label="Examples", api_visibility="private") if files else None
        with gr.Column(min_width=280, scale=2), gr.Row():
            shown = [_model(gr, name, model) for name, model in models.items()]
    captions, others = [one[0] for one in shown], [one[1] for one in shown]

    def run(path: str | None, *values: Any) -> Iterator[list[Any]]:
        if not path:
            raise gr.Error(ADVICE)
        try:
            for said in all_models(models, path, settings_of(*values)):
                yield [_caption_box(gr, *one) for one in zip(models, said, strict=True)] + [
                    gr.update(value=one.others, visible=bool(one.others)) for one in said
                ]
        except ValueError as error:
            raise gr.Error(str(error)) from None

    asked: dict[str, Any] = {"inputs": [image, *controls.all], "outputs": [*captions, *others]}
    asked |= {"concurrency_limit": 1, "concurrency_id": "models"}
    started = [
        button.click(run, **asked, api_name="caption"),
        image.upload(run, **asked, api_visibility="private"),
    ]
    if sample is not None:
        started.append(sample.load_input_event.then(run, **asked, api_visibility="private"))
    stop.click(None, cancels=started, api_visibility="private")
    if any(model.explains for model in models.values()):
        _heat_maps(gr, models, controls, image)
    if score is not None:
        _own_captions(gr, models, score, captions)


def _model(gr: Any, name: str, model: PageModel) -> tuple[Any, Any]:
    """Put a model's part here; returns the boxes of its caption and of its further captions."""
    with gr.Column(min_width=260):
        gr.HTML(heading(name, model.about, level=2), elem_classes="model")
        caption = gr.Textbox(label="Caption", lines=3, interactive=False, buttons=["copy"], elem_classes="caption")
        others = gr.Textbox(label="Best first", lines=3, interactive=False, visible=False, buttons=["copy"])
        with gr.Row(elem_classes="tools"):
            read = gr.Button("Read aloud", size="sm", min_width=100)
            copy = gr.Button("Copy as alt text", size="sm", min_width=100)
        read.click(None, caption, js=READ_ALOUD, api_visibility="private")
        copy.click(None, caption, js=COPY_ALT_TEXT, api_visibility="private")
    return caption, others


def _caption_box(gr: Any, name: str, said: Said) -> Any:
    label = "Caption" if said.seconds is None else f"Caption, {said.seconds:.2f} s"
    return gr.update(value=said.caption, label=label)


def _heat_maps(gr: Any, models: Mapping[str, PageModel], controls: _Controls, image: Any) -> None:
    able = [name for name, model in models.items() if model.explains]
    with gr.Accordion("Where it looked, word by word", open=False):
        with gr.Row():
            chosen = gr.Dropdown(able, value=able[0], label="Model", visible=len(able) > 1)
            button = gr.Button("Show heat maps", min_width=160)
        maps = gr.Gallery(label="Heat maps", height="auto", format="jpeg", elem_classes="maps")

    def explain(path: str | None, name: str, *values: Any) -> Any:
        if not path:
            raise gr.Error(ADVICE)
        settings = settings_of(*values)
        model = models[name]
        decoding = {key: value for key, value in settings.decoding.items() if key != "num_return_sequences"}
        try:
            return model.heat_maps(open_image(path), decoding, settings.prompt.strip() or None)
        except ValueError as error:
            raise gr.Error(str(error)) from None

    image.change(lambda: None, None, maps, api_visibility="private", show_progress="hidden")
    button.click(
        explain,
        [image, chosen, *controls.all],
        maps,
        api_name="heat_maps",
        concurrency_limit=1,
        concurrency_id="models",
    )


def _own_captions(gr: Any, models: Mapping[str, PageModel], score: Score, captions: list[Any]) -> None:
    with gr.Accordion("Score against your own captions", open=False):
        own = gr.Textbox(label="Captions that people would write for this image, one a line", lines=3)
        button = gr.Button("Score")
        table = gr.Dataframe(label="Scores x 100 of these captions alone", interactive=False, wrap=True, visible=False)

    def measure(text: str, *said: str) -> Any:
        references = [line.strip() for line in text.splitlines() if line.strip()]
        if not references or not all(said):
            raise gr.Error("Caption an image, and write at least one caption of your own.")
        try:
            found = [score(caption, references) for caption in said]
        except ValueError as error:
            raise gr.Error(str(error)) from None
        rows = [[name, *scores.values()] for name, scores in zip(models, found, strict=True)]
        return gr.update(value={"headers": ["model", *found[0]], "data": rows}, visible=True)

    button.click(measure, [own, *captions], table, api_name="score")


def _many_images(gr: Any, models: Mapping[str, PageModel], controls: _Controls) -> None:
    with gr.Row():
        with gr.Column(min_width=280):
            files = gr.File(label="Images", file_count="multiple", height=200)
            folder = gr.UploadButton("Add a folder", file_count="directory")
            chosen = gr.Dropdown(list(models), value=next(iter(models)), label="Model", visible=len(models) > 1)
            with gr.Row():
                button = gr.Button("Caption all", variant="primary")
                stop = gr.Button("Stop", min_width=80)
        with gr.Column(min_width=280, scale=2):
            columns = ["file", "caption"]
            table = gr.Dataframe(
                headers=columns, label="Captions", interactive=False, wrap=True, column_widths=["30%", "70%"]
            )
            with gr.Row():
                as_table = gr.DownloadButton("Download CSV", visible=False)
                as_sidecars = gr.DownloadButton("Download sidecars (ZIP)", visible=False)

    def run(paths: list[str] | None, name: str, *values: Any, progress: Any = gr.Progress()) -> Iterator[list[Any]]:  # noqa: B008  # how gradio asks for it
        if not paths:
            raise gr.Error("Choose images first.")
        rows = []
        try:
            for row in caption_files(models[name], list(map(str, paths)), settings_of(*values)):
                rows.append(row)
                progress((len(rows), len(paths)), desc="Captioning", unit="images")
                yield [[[one.file_name, one.caption or one.problem] for one in rows], gr.skip(), gr.skip()]
        except ValueError as error:
            raise gr.Error(str(error)) from None
        # gradio keeps copies of what it offers.
        with tempfile.TemporaryDirectory(prefix="hfcap-demo-") as temporary:
            downloads = write_downloads(rows, Path(temporary))
            yield [gr.skip(), *(gr.update(value=path, visible=True) for path in downloads)]

    folder.upload(
        lambda old, new: [*(old or []), *new], [files, folder], files, api_visibility="private", show_progress="hidden"
    )
    started = button.click(
        run,
        [files, chosen, *controls.all],
        [table, as_table, as_sidecars],
        api_name="caption_files",
        concurrency_limit=1,
        concurrency_id="models",
    )
    stop.click(None, cancels=[started], api_visibility="private")
