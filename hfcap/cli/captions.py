"""Commands that caption images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hfcap.cli.common import AcceptChanges, Force, TrustRemoteCode, app, execute, output_file, refuse_idle, say
from hfcap.errors import UserError

Inputs = Annotated[
    list[str] | None,
    typer.Argument(help="files, folders, patterns, web addresses; or one dataset: Hub id, parquet, COCO JSON"),
]
_INPUTS_NEEDED = (
    "give images or a dataset as INPUT; without, a run's split is captioned as its recipe says (generate, "
    "score.split, train.per_device_eval_batch_size)"
)
NumBeams = Annotated[
    int | None, typer.Option(min=1, help="beams of the search, 1 = greedy; default: as the model was saved with")
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="most tokens of a caption; default: as the model was saved with")
]

Prompt = Annotated[
    str | None, typer.Option(help="what the captioner is told, or goes on from; it is not part of the caption")
]


@app.command()
def caption(
    model: Annotated[str, typer.Argument(help="run directory, model folder, Hub id, or a recipe file")],
    inputs: Inputs = None,
    output: Annotated[Path | None, output_file("FILE.jsonl or FILE.csv")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="what the captioner is told, or goes on from; not part of captions")
    ] = None,
    num_beams: NumBeams = None,
    max_new_tokens: MaxNewTokens = None,
    num_return_sequences: Annotated[int | None, typer.Option(min=1, help="captions per image")] = None,
    do_sample: Annotated[bool | None, typer.Option("--sample", help="sample captions instead of beam search")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="with --sample: below 1 likelier words")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1.0, help="with --sample: drop rare words")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="random seed; only with --sample")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="images at a time; default: 16")] = None,
    split: Annotated[str | None, typer.Option(help="of a dataset; default: all")] = None,
    config_name: Annotated[str | None, typer.Option(help="configuration of a Hub dataset")] = None,
    image_column: Annotated[str | None, typer.Option(help="of a dataset with several columns of images")] = None,
    images: Annotated[str | None, typer.Option(help="image folder of a COCO file, if not 'images' next to it")] = None,
    revision: Annotated[str | None, typer.Option(help="commit, tag or branch of the model on the Hub")] = None,
    accept_changes: AcceptChanges = False,
    trust_remote_code: TrustRemoteCode = False,
    force: Force = False,
) -> None:
    """Caption images with a trained captioner; without images, the scored split of a run.

    With -o, a stopped captioning goes on where it was.
    """
    options = _given(num_beams=num_beams, max_new_tokens=max_new_tokens, num_return_sequences=num_return_sequences)
    options |= _given(temperature=temperature, top_p=top_p, seed=seed)
    dataset = _given(split=split, config_name=config_name, image_column=image_column, images=images)
    if not inputs:
        refuse_idle(
            _INPUTS_NEEDED,
            **(dataset | options),
            **_given(output=output, revision=revision, prompt=prompt, sample=do_sample, batch_size=batch_size),
        )
        done = execute(model, None, "caption", force, trust_remote_code, accept_changes)
        if done.accelerator.is_main_process:
            say(f"Predictions: {done.directory.predictions(done.recipe.score.split)}")
        return
    from hfcap.captioners.quiet import quiet_loading
    from hfcap.captioning import DatasetChoice, caption_images, with_enough_beams

    quiet_loading()
    caption_images(
        model,
        inputs,
        output,
        overrides=with_enough_beams(options | _given(do_sample=do_sample)),
        prompt=prompt,
        batch_size=batch_size or 16,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dataset=DatasetChoice(**dataset),
        again=force,
    )
    if output is not None:
        say(f"Captions: {output}")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@app.command()
def ensemble(
    predictions: Annotated[list[Path], typer.Argument(help="predictions/<split>.jsonl of captioners")],
    output: Annotated[Path, output_file("FILE.jsonl")],
    weights: Annotated[str | None, typer.Option(help="one number a file, joined by commas; default: all equal")] = None,
    document_frequencies: Annotated[
        str, typer.Option(help="n-gram weights: corpus (the candidates), coco-train, coco-val, or a file of captions")
    ] = "corpus",
) -> None:
    """Choose for each image the caption that agrees most with those of all captioners (CIDEr-D consensus).

    Many sampled captions per image in every file (hfcap caption --sample --num-return-sequences 32) choose best.
    """
    from hfcap.search.fusion import fuse_predictions

    try:
        numbers = None if weights is None else [float(part) for part in weights.split(",")]
    except ValueError:
        raise UserError(f"--weights {weights!r}: give numbers joined by commas, e.g. 1,1,0.5") from None
    fused = fuse_predictions(predictions, output, weights=numbers, document_frequencies=document_frequencies)
    origins = ", ".join(f"{n:,} from {path}" for n, path in zip(fused.origins, predictions, strict=True))
    say(f"Captions of {len(fused.predictions):,} images ({origins}): {output}")


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="text to search for, e.g. 'two dogs on a beach'")],
    target: Annotated[
        str, typer.Argument(help="folder of images, COCO JSON file, Hub dataset, run directory or recipe file")
    ],
    model: Annotated[
        str | None, typer.Option(help="CLIP or SigLIP, folder or Hub id; without it only captions are searched")
    ] = None,
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="how many images")] = 10,
    by: Annotated[
        Literal["auto", "images", "captions", "both"], typer.Option(help="what is compared with the text")
    ] = "auto",
    split: Annotated[str | None, typer.Option(help="only this split; default: all")] = None,
    images: Annotated[str | None, typer.Option(help="image folder of a COCO file, if not 'images' next to it")] = None,
    output: Annotated[Path | None, output_file("FILE.csv, FILE.jsonl or FILE.html")] = None,
    revision: Annotated[str | None, typer.Option(help="commit, tag or branch of the model on the Hub")] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Find images by a text: by what they show, by the words of their captions, or by both."""
    from hfcap.progress import console
    from hfcap.search import OUTPUT_SUFFIXES, find, hit_table, load_collection, write_hits

    if output is not None and output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"{output}: give a name that ends in {' or '.join(OUTPUT_SUFFIXES)}")
    records = load_collection(target, split, images)
    encoder = None
    if model is not None:
        from hfcap.captioners.quiet import quiet_loading
        from hfcap.captioners.shared.dual_encoder import DualEncoder
        from hfcap.environment import default_device

        quiet_loading()
        encoder = DualEncoder(model, "--model", revision, trust_remote_code)
        encoder.model.to(default_device())
    hits = find(text, records, encoder=encoder, by=by, count=count, where=target)
    if not hits:
        say(f"No caption among {len(records):,} images has any of these words.")
    elif output is None:
        console.print(hit_table(hits, text))
    if output is not None:
        write_hits(hits, text, output)
        say(f"{len(hits)} of {len(records):,} images: {output}")


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="run directory, model folder or Hub id")],
    image: Annotated[str, typer.Argument(help="one image: a file or a web address")],
    output: Annotated[Path, output_file("FILE.png")],
    prompt: Annotated[
        str | None, typer.Option(help="what the captioner is told, or goes on from; not part of the caption")
    ] = None,
    num_beams: NumBeams = None,
    max_new_tokens: MaxNewTokens = None,
    revision: Annotated[str | None, typer.Option(help="commit, tag or branch on the Hub")] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Draw where the captioner looked: one heat map per generated word."""
    from hfcap.captioners.quiet import quiet_loading
    from hfcap.explain import explain_image

    quiet_loading()
    found = explain_image(
        model,
        image,
        output,
        overrides=_given(num_beams=num_beams, max_new_tokens=max_new_tokens),
        prompt=prompt,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    say(found.caption)
    say(f"Heat maps: {output}")
