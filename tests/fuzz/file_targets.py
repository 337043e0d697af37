"""Readers of single files: recipes, metadata, captions, scores, images. None of them needs a model."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hfcap.data.images import FileImage, decode_image
from hfcap.data.inspection import inspect_data
from hfcap.data.inspection_report import report
from hfcap.data.sources import coco, coco_json, folder
from hfcap.data.tables.layouts import BY_NAME
from hfcap.errors import UserError
from hfcap.metrics.chair import Chair, ChairOptions
from hfcap.metrics.shared.document_frequencies import count_document_frequencies, load_document_frequencies
from hfcap.recipe.loading import load_recipe
from hfcap.recipe.shipped import shipped_recipes
from hfcap.schema import CaptionedImage
from hfcap.scoring import score_files
from hfcap.search.fusion import fuse_predictions
from hfcap.training.objectives.synonyms import synonym_table
from tests.data.layout_samples import SAMPLES, write_sample
from tests.data.sample_images import write_coco_json, write_jpeg
from tests.fuzz.images import write_images
from tests.fuzz.target import Target

CAPTIONS = {"1": ["a dog on a sofa", "a brown dog"], "2": ["two cats", "cats"], "3": ["a red ball", "the ball is red"]}


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _silent(_message: str) -> None:
    pass


# ---- recipes -------------------------------------------------------------------------------------------------------


def _make_recipes(place: Path) -> None:
    for name, path in shipped_recipes().items():
        _write(place / f"{name.replace('/', '-')}.yaml", Path(path).read_text())


def _use_recipes(place: Path, names: Sequence[str]) -> None:
    for name in names:
        load_recipe(place / name)


def _make_overrides(place: Path) -> None:
    _write(
        place / "recipe.yaml",
        {"name": "a", "captioner": "blip", "data": {"source": "scenes"}, "train": {"max_steps": 1}},
    )
    overrides = [
        "train.max_steps=5",
        "lora.r=4",
        "generate.num_beams=3",
        "model.pretrained=a/b",
        "score.metrics=[cider]",
    ]
    _write(place / "overrides.json", [*overrides, "data.n_train=7", "train.freeze=[vision]", "name=x", "lora=null"])


def _use_overrides(place: Path, _names: Sequence[str]) -> None:
    # As the shell would give them: texts without zero bytes.
    text = (place / "overrides.json").read_bytes().decode(errors="surrogateescape")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text.split(",")
    given = [
        str(item) if isinstance(item, str) else f"train.max_steps={item}"
        for item in (value if isinstance(value, list) else [value])
    ]
    load_recipe(place / "recipe.yaml", [item.replace("\0", "") for item in given])


# ---- metadata ------------------------------------------------------------------------------------------------------

_ROWS = [
    {"file_name": "a.jpg", "captions": ["a dog", "the dog"], "split": "train"},
    {"file_name": "b.jpg", "captions": ["a cat", "cats"], "split": "validation"},
    {"file_name": "c.jpg", "captions": ["a ball"], "split": "test"},
]


def _make_folder(place: Path, metadata: str, text: str) -> None:
    for letter in "abc":
        write_jpeg(place / f"{letter}.jpg")
    _write(place / metadata, text)


def _load_folder(place: Path, _names: Sequence[str]) -> None:
    for split in ("train", "validation", "test"):
        _checked(folder.load(folder.FolderOptions(root=str(place)), split))


def _make_layouts(place: Path) -> None:
    for name in SAMPLES:
        (place / name).mkdir()
        write_sample(name, place / name)


def _read_layouts(place: Path, names: Sequence[str]) -> None:
    """Read the damaged layouts by name and as `hfcap data inspect` recognises them; nothing is fetched."""
    refused = []
    for name in dict.fromkeys(file.split("/")[0] for file in names):
        options = folder.FolderOptions(root=str(place / name), layout=name, uncaptioned_images="ignore")
        try:
            folder.all_groups(options, *folder.found_layout(options))
        except UserError as error:
            refused.append(error)
        try:
            report(inspect_data(options.root, None if BY_NAME[name].automatic else name))
        except UserError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _checked(records: list[CaptionedImage]) -> None:
    for record in records:
        record.image.read()


def _make_karpathy(place: Path) -> None:
    images = [
        {"cocoid": n, "split": split, "filepath": "val2014", "filename": f"{n}.jpg", "sentences": [{"raw": "a dog"}]}
        for n, split in enumerate(("train", "val", "test", "restval"))
    ]
    for image in images:
        write_jpeg(place / "val2014" / str(image["filename"]))
    _write(place / coco.KARPATHY_FILE, {"images": images, "dataset": "coco"})


def _load_karpathy(place: Path, _names: Sequence[str]) -> None:
    _checked(coco.load(coco.CocoOptions(root=str(place)), "test"))


def _make_coco(place: Path) -> None:
    write_coco_json(place, splits=("train", "val", "test"), info={"year": 2014}, licenses=[])


def _load_coco(place: Path, _names: Sequence[str]) -> None:
    coco_json.list_images(place / "captions.json", None, None)
    for split in ("train", "val"):
        _checked(coco_json.load(coco_json.CocoJsonOptions(captions=str(place / "captions.json")), split))


# ---- captions and scores -------------------------------------------------------------------------------------------


def _make_captions(place: Path) -> None:
    _write(
        place / "p" / "a.jsonl",
        _lines([{"image_id": i, "caption": c[0], "file_name": f"{i}.jpg"} for i, c in CAPTIONS.items()]),
    )
    _write(place / "p" / "b.json", [{"image_id": int(i), "caption": c[0]} for i, c in CAPTIONS.items()])
    _write(place / "p" / "c.json", {i: c[0] for i, c in CAPTIONS.items()})
    _write(place / "p" / "d.csv", "image_id,caption\n" + "".join(f"{i},{c[0]}\n" for i, c in CAPTIONS.items()))
    images = [{"id": int(i), "file_name": f"{i}.jpg", "split": "test"} for i in CAPTIONS]
    annotations = [{"image_id": int(i), "caption": text} for i, texts in CAPTIONS.items() for text in texts]
    _write(place / "r" / "a.json", {"images": images, "annotations": annotations})
    _write(place / "r" / "b.json", CAPTIONS)
    _write(place / "r" / "c.jsonl", _lines([{"image_id": i, "captions": c} for i, c in CAPTIONS.items()]))
    sentences = {i: [{"raw": text} for text in texts] for i, texts in CAPTIONS.items()}
    _write(
        place / "r" / "d.json",
        {"images": [{"cocoid": int(i), "split": "test", "sentences": s} for i, s in sentences.items()]},
    )


def _score(place: Path, names: Sequence[str]) -> None:
    predictions = place / next((name for name in names if name.startswith("p/")), "p/a.jsonl")
    references = place / next((name for name in names if name.startswith("r/")), "r/a.json")
    metrics = ("bleu", "rouge_l", "cider", "diversity", "length", "bad_endings")
    score_files(predictions, references, metrics=metrics, n_resamples=10, output=place / "s.json", warn=_silent)
    score_files(predictions, references, split="test", metrics=("cider",), n_resamples=0, warn=_silent)


def _make_score_files(place: Path) -> None:
    _make_captions(place / "captions")
    for name, file in (("a", "a.jsonl"), ("b", "c.json")):
        score_files(
            place / "captions" / "p" / file,
            place / "captions" / "r" / "a.json",
            n_resamples=10,
            warn=_silent,
            metrics=("bleu", "rouge_l", "cider", "length"),
            output=place / f"{name}.json",
        )
    shutil.rmtree(place / "captions")


def _compare_files(place: Path, _names: Sequence[str]) -> None:
    import hfcap

    comparison = hfcap.compare([place / "a.json", place / "b.json"], n_resamples=100)
    str(comparison)


def _make_candidates(place: Path) -> None:
    rows = [
        {"image_id": i, "file_name": f"{i}.jpg", "caption": c[0], "score": -1.0, "candidates": [*c, c[0]]}
        for i, c in CAPTIONS.items()
    ]
    _write(place / "a.jsonl", _lines(rows))
    _write(place / "b.jsonl", _lines(rows[::-1]))
    _write(place / "c.json", [{"image_id": int(i), "caption": c[1]} for i, c in CAPTIONS.items()])


def _fuse(place: Path, _names: Sequence[str]) -> None:
    files = [place / name for name in ("a.jsonl", "b.jsonl", "c.json")]
    fuse_predictions(files, place / "out.jsonl", weights=[1, 0.5, 1], warn=_silent)


# ---- tables of metrics and objectives ------------------------------------------------------------------------------


def _make_frequencies(place: Path) -> None:
    count_document_frequencies(CAPTIONS, "corpus").save(place / "df.safetensors")
    _write(place / "df.json", CAPTIONS)


def _use_frequencies(place: Path, _names: Sequence[str]) -> None:
    refused = []
    for name in ("df.safetensors", "df.json"):
        try:
            frequencies = load_document_frequencies(str(place / name))
            assert frequencies is not None
            frequencies.fingerprint()
            _score_with(str(place / name))
        except UserError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _score_with(frequencies: str) -> None:
    predictions = {image_id: captions[0] for image_id, captions in CAPTIONS.items()}
    score_files(
        predictions, CAPTIONS, metrics=("cider",), document_frequencies=frequencies, n_resamples=0, warn=_silent
    )


def _make_tables(place: Path) -> None:
    instances = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"image_id": 1, "category_id": 1}, {"image_id": 2, "category_id": 2}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
    _write(place / "instances.json", instances)
    _write(place / "synonyms.json", {"sofa": ["couch", "settee"], "dog": ["hound"]})


def _use_tables(place: Path, _names: Sequence[str]) -> None:
    synonym_table(str(place / "synonyms.json"), ["a sofa and a dog"])
    Chair(ChairOptions(instances=place / "instances.json"))


# ---- images --------------------------------------------------------------------------------------------------------


def _decode(place: Path, names: Sequence[str]) -> None:
    for name in names:
        image = FileImage(place / name)
        decode_image(image)
        decode_image(image, draft_size=4)


def _folder_target(name: str, metadata: str, text: str, share: float = 1.0) -> Target:
    make: Callable[[Path], None] = functools.partial(_make_folder, metadata=metadata, text=text)
    return Target(name, make, _load_folder, (metadata,), share=share)


_CSV = (
    'file_name,caption_0,caption_1,split\na.jpg,a dog,"the, dog",train\nb.jpg,a cat,,validation\nc.jpg,a ball,,test\n'
)

TARGETS = (
    Target("recipes", _make_recipes, _use_recipes, share=0.3),
    Target("overrides", _make_overrides, _use_overrides, ("overrides.json",), share=0.3, names_file=False),
    _folder_target("metadata.jsonl", "metadata.jsonl", _lines(_ROWS)),
    _folder_target("metadata.csv", "metadata.csv", _CSV),
    Target("COCO JSON", _make_coco, _load_coco, ("captions.json",)),
    Target("Karpathy's split", _make_karpathy, _load_karpathy, (coco.KARPATHY_FILE,)),
    Target(
        "layouts", _make_layouts, _read_layouts, ("*.json", "*.json?*", "*.[ct]sv", "*.txt", "*.token", "*.caption")
    ),
    Target("captions", _make_captions, _score, ("[pr]/*",), share=2.0),
    Target("score files", _make_score_files, _compare_files, ("[ab].json",), share=0.5),
    Target("fusion", _make_candidates, _fuse, ("[abc].json*",)),
    Target("document frequencies", _make_frequencies, _use_frequencies),
    Target("tables", _make_tables, _use_tables),
    Target("images", write_images, _decode, share=2.0),
)
"""Readers of files that need no model."""
