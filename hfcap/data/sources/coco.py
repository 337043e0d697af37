"""COCO captions with the Karpathy split, from the official 2014 or 2017 photo folders."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from hfcap.data.checks import clean_caption
from hfcap.data.images import FileImage, resolve_inside
from hfcap.data.kept.keeping import Origin, origin_of_files
from hfcap.data.source import NoSuchSplitError, Source
from hfcap.errors import UserError
from hfcap.files import no_folder, read_json
from hfcap.places import LocalPath
from hfcap.recipe.blocks import DataOptions
from hfcap.schema import CaptionedImage

KARPATHY_FILE = "dataset_coco.json"


class CocoOptions(DataOptions):
    """Keys of `data` for source coco."""

    source: Literal["coco"] = Field("coco", description="COCO, Flickr8k or Flickr30k with Karpathy's split")
    root: LocalPath = Field(description="folder that 'hfcap data coco --root' filled, or with the official folders")
    validation_split: str = Field("val", description="name in the file of the split that chooses the best checkpoint")
    year: Literal["auto", "2014", "2017"] = Field("auto", description="which photo folders; both hold the same photos")
    restval: bool = Field(True, description="Karpathy's 30,504 'restval' photos belong to train, as in published work")


class KarpathyImage(NamedTuple):
    """One entry of dataset_coco.json."""

    coco_id: int
    split: str
    file_name: str
    captions: tuple[str, ...]


def load(options: CocoOptions, split_name: str) -> list[CaptionedImage]:
    """Return the records of a Karpathy split (train, val, test, restval), in the order of dataset_coco.json.

    Raises:
        NoSuchSplitError: no such Karpathy split.
        UserError: `root` lacks the split file or the photo folders.
    """
    root = Path(options.root).expanduser()
    if not root.is_dir():
        raise UserError(no_folder(root, "folder", f"give the recipe's key data.root; {_remedy(root)}"))
    split_file = _first_existing(root / KARPATHY_FILE, root / "annotations" / KARPATHY_FILE)
    if split_file is None:
        raise UserError(
            f"{root}: no {KARPATHY_FILE} (the Karpathy split), neither in the folder nor in its annotations; "
            f"{_remedy(root)}"
        )
    entries = _read_karpathy(split_file)
    photos, year = _photo_folder(root, options.year)
    wanted = {"train", "restval"} if split_name == "train" and options.restval else {split_name}
    chosen = [entry for entry in entries if entry.split in wanted]
    if not chosen:
        raise NoSuchSplitError(str(split_file), split_name, sorted({entry.split for entry in entries}))
    names = _names_2017(photos) if year == "2017" else None
    return [_record(photos, split_file, entry, names) for entry in chosen]


def origin(options: CocoOptions, _split_name: str) -> Origin | None:
    """Return what the records of a split follow from: the split file, and the names in the photo folders."""
    root = Path(options.root).expanduser()
    split_file = _first_existing(root / KARPATHY_FILE, root / "annotations" / KARPATHY_FILE)
    if split_file is None:
        return None
    try:
        photos, _ = _photo_folder(root, options.year)
    except UserError:
        return None  # loading says what is wrong
    return origin_of_files([split_file], photos)


def _remedy(root: Path) -> str:
    return f"fetch COCO with: hfcap data coco --root {root}"


def _first_existing(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _photo_folder(root: Path, year: str) -> tuple[Path, str]:
    """Return the folder that holds train<year> and val<year>, and the year."""
    for candidate in ("2014", "2017") if year == "auto" else (year,):
        for folder in (root, root / "images"):
            if (folder / f"train{candidate}").is_dir() or (folder / f"val{candidate}").is_dir():
                return folder, candidate
    years = "2014 or 2017" if year == "auto" else year
    raise UserError(f"{root}: no photo folders of {years} (train{year[-4:]}, val..., also in images/); {_remedy(root)}")


def _record(photos: Path, split_file: Path, entry: KarpathyImage, names_2017: dict[str, str] | None) -> CaptionedImage:
    file_name = entry.file_name
    if names_2017 is not None:
        plain = f"{entry.coco_id:012d}.jpg"
        file_name = f"{names_2017.get(plain, 'train2017')}/{plain}"
    try:
        path = resolve_inside(photos, file_name)
    except UserError as error:
        raise UserError(f"{split_file}: image {entry.coco_id}: {error}") from None
    return CaptionedImage(str(entry.coco_id), file_name, entry.captions, FileImage(path))


def _names_2017(photos: Path) -> dict[str, str]:
    """Map file name to folder: the 2017 release shares the same photos out differently."""
    folders = [name for name in ("val2017", "train2017") if (photos / name).is_dir()]
    return {path.name: folder for folder in folders for path in (photos / folder).iterdir()}


def _read_karpathy(path: Path) -> tuple[KarpathyImage, ...]:
    status = path.stat()
    return _parse_karpathy(path, status.st_mtime_ns, status.st_size)


# Three splits are read one after the other, and parsing the 144 MB of the real file takes seconds.
@lru_cache(maxsize=1)
def _parse_karpathy(path: Path, _mtime: int, _size: int) -> tuple[KarpathyImage, ...]:
    content = read_json(path, "Karpathy split file")
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise UserError(f"{path}: not the Karpathy split: no list under 'images' at the top; fetch the file again")
    entries = tuple(_karpathy_image(f"{path}: images[{number}]", image) for number, image in enumerate(images))
    counts = Counter(entry.coco_id for entry in entries)
    twice = [str(coco_id) for coco_id, count in counts.items() if count > 1]
    if twice:
        raise UserError(f"{path}: cocoid occurs more than once: {', '.join(twice[:10])}; fetch the file again")
    return entries


def _karpathy_image(where: str, image: Any) -> KarpathyImage:
    try:
        coco_id, split = image["cocoid"], image["split"]
        file_name = f"{image['filepath']}/{image['filename']}"
        captions = tuple(clean_caption(sentence["raw"]) for sentence in image["sentences"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where} is not an entry of Karpathy's {KARPATHY_FILE} (wrong or missing: {error}); fetch the file again"
        ) from None
    if not isinstance(coco_id, int) or not isinstance(split, str):
        raise UserError(f"{where}: cocoid must be a number and split a text")
    return KarpathyImage(coco_id, split, file_name, captions)


REGISTERED = Source(
    options=CocoOptions,
    load=load,
    description="COCO captions, official photo folders, Karpathy split",
    origin=origin,
    about="COCO shows everyday scenes from Flickr with 80 kinds of objects; crowd workers wrote the English captions "
    "(license CC BY 4.0; the photos keep their owners' licences). Captioners trained on it are known to infer gender "
    "from context ([Zhao et al. 2017](https://arxiv.org/abs/1707.09457), [Hendricks et al. "
    "2018](https://arxiv.org/abs/1803.09797)) and to describe people of different skin tone differently ([Zhao et al. "
    "2021](https://arxiv.org/abs/2106.08503)).",
)
