"""The command `hfcap caption`: what is captioned, with which words, and in which form it is written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hfcap.cli.captions import MaxNewTokens, NumBeams
from hfcap.cli.common import (
    AcceptChanges,
    Force,
    TrustRemoteCode,
    app,
    execute,
    given_options,
    refuse_idle,
    say,
)
from hfcap.errors import UserError
from hfcap.files import check_can_write
from hfcap.progress import error_console
from hfcap.text import counted, printable

if TYPE_CHECKING:
    from hfcap.captioners.adaptation.quantization import Weights
    from hfcap.captioning import Finishing
    from hfcap.captioning.with_images.sidecar_output import ImageOutput
    from hfcap.data.web.image_stream import ImageStream
    from hfcap.schema import Prediction

_INPUTS_NEEDED = (
    "give images or a dataset as INPUT; without, a run's split is captioned as its recipe says (generate, "
    "score.split, train.per_device_eval_batch_size)"
)
_FORMS = "FILE.jsonl, .json, .csv, .tsv, .parquet, .txt (captions alone), .tar (WebDataset); with --to-shards a folder"

Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        help="files, folders, patterns, web addresses, lists (.txt); or a dataset: Hub id, parquet, COCO JSON"
    ),
]
Sidecar = Annotated[Literal["txt", "json"] | None, typer.Option(help="write next to each image: 001.txt for 001.png")]
Existing = Annotated[
    Literal["skip", "overwrite", "append"] | None,
    typer.Option(help="with --sidecar, --embed: images that have one; default: skip"),
]
Embed = Annotated[bool, typer.Option("--embed", help="write into each image file, as its description (XMP, IPTC)")]
AltTextPage = Annotated[
    Path | None, typer.Option(help="HTML or Markdown page: -o gets a copy whose images have alternative texts")
]
PushToHub = Annotated[
    str | None, typer.Option(help="namespace/name: publish images and captions as a dataset, private unless --public")
]
Public = Annotated[bool, typer.Option("--public", help="with --push-to-hub: who may see a new dataset: everybody")]
ToShards = Annotated[
    Literal["parquet", "webdataset"] | None,
    typer.Option(help="of many images: a file for each shard in the folder -o, shared by any number of processes"),
]
ImagesPerShard = Annotated[
    int | None, typer.Option(min=1, help="with --to-shards, where the inputs are not shards themselves; default: 1000")
]
NumProcesses = Annotated[
    int | None, typer.Option(min=1, help="with --to-shards: processes on this machine, each on a GPU of its own if any")
]
Dedup = Annotated[
    bool, typer.Option("--dedup", help="with --to-shards: of images with the same bytes caption the first alone")
]
PricePerHour = Annotated[
    float | None, typer.Option(min=0, help="with --to-shards: of a process (a GPU); shows what all will cost")
]
Prefix = Annotated[str | None, typer.Option(help="text in front of captions, e.g. a trigger word")]
Suffix = Annotated[str | None, typer.Option(help="text after captions")]
ReviewBelowScore = Annotated[float | None, typer.Option(help="mark captions of a lower log-probability for review")]
ReviewBelowClipScore = Annotated[
    float | None, typer.Option(min=0, max=2.5, help="mark captions of a lower CLIPScore for review")
]
ClipModel = Annotated[str | None, typer.Option(help="with --review-below-clip-score: folder or Hub id")]
ForbidWords = Annotated[str | None, typer.Option(help="words that captions do not hold, joined by commas")]
PromptOption = Annotated[
    str | None, typer.Option(help="what the captioner is told, or goes on from; not part of captions")
]
StyleOption = Annotated[
    Literal["short", "detailed", "tags", "alt_text"] | None,
    typer.Option(help="what is asked for in place of --prompt, of models that take instructions"),
]
NumReturnSequences = Annotated[int | None, typer.Option(min=1, help="captions per image")]
DoSample = Annotated[bool | None, typer.Option("--sample", help="sample captions instead of beam search")]
Temperature = Annotated[float | None, typer.Option(min=0.01, help="with --sample: below 1 likelier words")]
TopP = Annotated[float | None, typer.Option(min=0.01, max=1.0, help="with --sample: drop rare words")]
Seed = Annotated[
    int | None, typer.Option(min=0, help="random seed, only with --sample; an equal --batch-size draws equal captions")
]
Quantization = Annotated[
    Literal["int8", "int4"] | None,
    typer.Option(help="weights in 8 or 4 bits; needs torchao (pip install torchao)"),
]
DType = Annotated[
    Literal["bfloat16", "float32"] | None,
    typer.Option(help="number type of weights and computation; default: as they are stored"),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="images at a time; default: 16")]
Split = Annotated[str | None, typer.Option(help="of a dataset; default: all")]
ConfigName = Annotated[str | None, typer.Option(help="configuration of a Hub dataset")]
ImageColumn = Annotated[str | None, typer.Option(help="of a dataset with several columns of images")]
ImageFolder = Annotated[str | None, typer.Option(help="image folder of a COCO file, if not 'images' next to it")]
Checkpoint = Annotated[
    Literal["best", "last"] | None, typer.Option(help="of a run, also while it trains: caption with this checkpoint")
]
Revision = Annotated[str | None, typer.Option(help="commit, tag or branch of the model on the Hub")]


@app.command()
def caption(
    model: Annotated[
        str, typer.Argument(help="run directory, model folder, Hub id, address of a server, or a recipe file")
    ],
    inputs: Inputs = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help=_FORMS)] = None,
    sidecar: Sidecar = None,
    embed: Embed = False,
    existing: Existing = None,
    alt_text: AltTextPage = None,
    push_to_hub: PushToHub = None,
    public: Public = False,
    to_shards: ToShards = None,
    images_per_shard: ImagesPerShard = None,
    num_processes: NumProcesses = None,
    dedup: Dedup = False,
    price_per_hour: PricePerHour = None,
    prefix: Prefix = None,
    suffix: Suffix = None,
    review_below_score: ReviewBelowScore = None,
    review_below_clip_score: ReviewBelowClipScore = None,
    clip_model: ClipModel = None,
    forbid_words: ForbidWords = None,
    prompt: PromptOption = None,
    style: StyleOption = None,
    num_beams: NumBeams = None,
    max_new_tokens: MaxNewTokens = None,
    num_return_sequences: NumReturnSequences = None,
    do_sample: DoSample = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    batch_size: BatchSize = None,
    dtype: DType = None,
    quantization: Quantization = None,
    split: Split = None,
    config_name: ConfigName = None,
    image_column: ImageColumn = None,
    images: ImageFolder = None,
    revision: Revision = None,
    checkpoint: Checkpoint = None,
    accept_changes: AcceptChanges = False,
    trust_remote_code: TrustRemoteCode = False,
    force: Force = False,
) -> None:
    """Caption images with a trained captioner; without images, the scored split of a run.

    With -o or --sidecar, a stopped captioning goes on where it was.
    """
    given = given_options(**{name: value for name, value in locals().items() if name not in _NOT_OPTIONS})
    _check(output, given, public=public, dedup=dedup)
    if inputs or alt_text is not None:
        _caption_images(model, inputs, output, given | {"public": public, "dedup": dedup}, force, trust_remote_code)
        return
    refuse_idle(_INPUTS_NEEDED, output=output, sample=given.pop("do_sample", None), **given)
    done = execute(model, None, "caption", force, trust_remote_code, accept_changes)
    if done.accelerator.is_main_process:
        say(f"Predictions: {done.directory.predictions(done.recipe.score.split)}")


_NOT_OPTIONS = ("model", "inputs", "output", "public", "dedup", "accept_changes", "trust_remote_code", "force")
_SAMPLED = ("do_sample", "temperature", "top_p", "seed")
_GENERATION = (
    *("style", "num_beams", "max_new_tokens", "num_return_sequences", "do_sample", "temperature", "top_p", "seed"),
)
_DATASET = ("split", "config_name", "image_column", "images")


def _check(output: Path | None, given: dict[str, Any], public: bool, dedup: bool) -> None:
    """Refuse, before anything is imported, an output that cannot be written and options without effect."""
    if output is not None:
        check_can_write(output, folder="to_shards" in given)
    if "push_to_hub" not in given:
        refuse_idle("has an effect only with --push-to-hub", public=public)
    if "to_shards" not in given:
        only = _of(given, ("images_per_shard", "num_processes", "price_per_hour"))
        refuse_idle("has an effect only with --to-shards", dedup=dedup, **only)


def _caption_images(
    model: str,
    inputs: list[str] | None,
    output: Path | None,
    given: dict[str, Any],
    force: bool,
    trust_remote_code: bool,
) -> None:
    from hfcap.api.runs import checkpoint_model
    from hfcap.captioners.quiet import quiet_loading
    from hfcap.captioning import DatasetChoice, caption_images, images_of, with_enough_beams

    if "to_shards" in given:
        refuse_idle("does not go with --to-shards", **_of(given, ("sidecar", "embed", "alt_text")))
    finishing = _finishing(given, output, inputs)
    quiet_loading()
    if "to_shards" in given:
        _caption_shards(model, inputs or [], output, given, force, trust_remote_code, finishing)
        return
    if finishing.page is not None and output is not None and finishing.page.images.total == 0:
        finishing.page.write(output, {})
        say(f"Every image of the page has an alternative text, or is no file: {output}")
        return
    choice = DatasetChoice(**_of(given, _DATASET))
    images = images_of(inputs or [], choice) if finishing.page is None else finishing.page.images
    with checkpoint_model(model, given.get("checkpoint"), trust_remote_code) as place:
        found = caption_images(
            place,
            images,
            output,
            overrides=with_enough_beams(_of(given, _GENERATION)),
            prompt=given.get("prompt"),
            batch_size=given.get("batch_size", 16),
            revision=given.get("revision"),
            weights=_weights(given),
            trust_remote_code=trust_remote_code,
            again=force,
            finishing=finishing,
        )
    if marked := sum(bool(prediction.review) for prediction in found):
        say(f"{marked:,} of {len(found):,} captions are marked for review")
    if finishing.sidecars is not None:
        what = "descriptions in images" if given.get("embed") else "sidecars"
        one = "description" if given.get("embed") else "sidecar"
        say(f"Captions: {len(found):,} {what}" if found else f"Nothing to do: every image has a {one}")
    if output is not None:
        say(f"Captions: {output}")
    if "push_to_hub" in given:
        _push(model, images, found, given["push_to_hub"], private=not given["public"])


def _caption_shards(
    model: str,
    inputs: list[str],
    output: Path | None,
    given: dict[str, Any],
    force: bool,
    trust_remote_code: bool,
    finishing: Finishing,
) -> None:
    from hfcap.api.runs import checkpoint_model
    from hfcap.captioning import DatasetChoice, sharded, with_enough_beams
    from hfcap.decoding import say_cut

    if output is None:
        raise UserError("--to-shards: say which folder they go into: -o FOLDER")
    if "push_to_hub" in given:
        _require_no_own_places(inputs)
    with checkpoint_model(model, given.get("checkpoint"), trust_remote_code) as folder:
        job = sharded.ShardedJob(
            folder,
            tuple(inputs),
            output,
            given["to_shards"],
            given.get("images_per_shard", 1000),
            DatasetChoice(**_of(given, _DATASET)),
            with_enough_beams(_of(given, _GENERATION)),
            given.get("prompt"),
            given.get("batch_size", 16),
            given.get("revision"),
            _weights(given),
            trust_remote_code,
            finishing,
            given["dedup"],
            given.get("price_per_hour"),
        )
        place, n_processes = sharded.own_place(), given.get("num_processes", 1)
        if n_processes > 1 and not place.quiet:
            tally = sharded.caption_shards_with(n_processes, sharded.own_command(), job, place, force)
        else:
            # Who started this process deleted already what was there.
            tally = sharded.caption_shards(job, place, force and not place.quiet)
    if place.quiet:
        return
    if tally.failures:
        said = f"{len(tally.failures):,} could not be read, as {output / 'manifest.jsonl'} says; the first: "
        error_console.print(printable(said + tally.failures[0]), style="yellow", markup=False, soft_wrap=True)
    say_cut(tally.cut, tally.images, tally.limit)
    if tally.marked:
        say(f"{tally.marked:,} of {tally.images:,} captions are marked for review")
    if tally.duplicates:
        say(f"Left out: {counted(tally.duplicates, 'image')} with the bytes of another one")
    say(f"Captions of {counted(tally.images, 'image')} in {counted(tally.shards, 'shard')}: {output}")
    if "push_to_hub" in given and place.rank == 0:
        from hfcap.publishing.caption_shards import push_caption_shards

        pushed = push_caption_shards(output, given["push_to_hub"], private=not given["public"])
        sent = f"{counted(pushed.n_files, 'file')} in {counted(pushed.n_commits, 'commit')}"
        say(f"Published {sent}: {pushed.url}" if pushed.n_files else f"Nothing to publish: {pushed.url}")


def _require_no_own_places(inputs: list[str]) -> None:
    """Refuse, before any work, files whose names in the published captions would tell of this machine's folders.

    Tars, parquet files and datasets have names of their own.
    """
    for text in inputs:
        place = Path(text)
        named = place.suffix not in (".tar", ".parquet") and not any(place.glob("*.tar"))
        if named and (place.is_absolute() or text.startswith("~")):
            raise UserError(
                f"{text}: its images would be published with this machine's folders in their names; change to a folder "
                "above them, and give a relative name"
            )


def _push(model: str, images: ImageStream, found: list[Prediction], repo_id: str, private: bool) -> None:
    from hfcap.captioners.facts import shown_model
    from hfcap.publishing.caption_dataset import push_caption_dataset, stage_caption_dataset

    with tempfile.TemporaryDirectory() as folder:
        stage_caption_dataset(images.open(0, None), found, Path(folder), shown_model(model))
        result = push_caption_dataset(Path(folder), repo_id, private)
    done = f"Published {len(result.uploaded)} files" if result.uploaded else "Nothing to publish"
    say(f"{done}: {result.url}")


def _weights(given: dict[str, Any]) -> Weights:
    from hfcap.captioners.adaptation.quantization import Weights

    return Weights(given.get("dtype"), given.get("quantization"))


def _of(given: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _finishing(given: dict[str, Any], output: Path | None, inputs: list[str] | None) -> Finishing:
    from hfcap.captioning import AltText, Finishing, QualityGate, Wording, forbidden_words

    page = None
    if "alt_text" in given:
        if inputs:
            raise UserError("--alt-text: captions the images of the page; leave the others out")
        refuse_idle("has no effect with --alt-text", **_of(given, ("sidecar", "embed", *_DATASET)))
        page = AltText(given["alt_text"])
        page.check_output(output, given["alt_text"])
    sidecars = _with_images(given, output)
    if "push_to_hub" in given:
        from hfcap.publishing.push import check_may_publish

        refuse_idle("does not go with --push-to-hub", **_of(given, ("sidecar", "embed", "alt_text")))
        check_may_publish(given["push_to_hub"])
    if "review_below_clip_score" not in given:
        refuse_idle("has an effect only with --review-below-clip-score", clip_model=given.get("clip_model"))
    gate = QualityGate(
        given.get("review_below_score"),
        given.get("review_below_clip_score"),
        forbidden=forbidden_words(given["forbid_words"]) if "forbid_words" in given else (),
        **_of(given, ("clip_model",)),
    )
    return Finishing(
        Wording(**_of(given, ("prefix", "suffix"))), gate, sidecars, page, shown="push_to_hub" not in given
    )


def _with_images(given: dict[str, Any], output: Path | None) -> ImageOutput | None:
    """Return where captions go that stay with their images."""
    from hfcap.captioning import EmbeddedOutput, SidecarOutput

    chosen = [f"--{name}" for name in ("sidecar", "embed") if given.get(name)]
    if not chosen:
        refuse_idle("has an effect only with --sidecar or --embed", existing=given.get("existing"))
        return None
    if len(chosen) > 1 or output is not None:
        raise UserError(f"-o, {', '.join(chosen)}: give one of them")
    if "sidecar" in given:
        return SidecarOutput(given["sidecar"], given.get("existing", "skip"))
    if given.get("existing") == "append":
        raise UserError("--existing append: an image has one description; give skip or overwrite")
    return EmbeddedOutput(given.get("existing", "skip"))
