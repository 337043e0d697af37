"""Commands that caption images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hfcap.cli.common import TrustRemoteCode, app, given_options, output_file, say
from hfcap.errors import UserError

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
        overrides=given_options(num_beams=num_beams, max_new_tokens=max_new_tokens),
        prompt=prompt,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    say(found.caption)
    say(f"Heat maps: {output}")


@app.command()
def review(
    folder: Annotated[Path, typer.Argument(help="folder of images with captions in sidecars")],
    sidecar: Annotated[
        Literal["txt", "json"] | None, typer.Option(help="form of the sidecars; default: the one that is there")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="default: any free one")] = None,
) -> None:
    """Open a page to read, correct and accept captions in sidecars; only this machine can reach it."""
    from hfcap.pages.local_server import serving_locally
    from hfcap.review import ReviewFolder, ReviewPage

    page = ReviewPage(ReviewFolder(folder, sidecar))
    with serving_locally(page, port) as server:
        say(f"{len(page.folder.images):,} images; open this address, Ctrl-C ends: {server.address}")
        server.wait()
