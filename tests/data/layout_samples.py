"""Small datasets of our own content in every layout that hfcap knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hfcap.data.web.kept_images import kept_web_image
from tests.data.sample_images import write_jpeg

Captions = dict[str, dict[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Sample:
    """What a sample holds: split -> file name -> captions; `automatic`: recognised without being named."""

    captions: Captions
    automatic: bool = True


def _images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        write_jpeg(folder / name, ("red", "white", "blue", "green")[number % 4])


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


OWN: dict[str, tuple[str, ...]] = {"a.jpg": ("a red rose",), "b.jpg": ("a white tulip",), "c.jpg": ("blue sky",)}
DRAWN: Captions = {"drawn": OWN}


def _metadata(root: Path) -> Sample:
    _images(root, *OWN)
    _lines(root / "metadata.jsonl", [{"file_name": name, "caption": one} for name, (one,) in OWN.items()])
    return Sample(DRAWN)


def _sidecar(suffix: str) -> Callable[[Path], Sample]:
    def write(root: Path) -> Sample:
        _images(root, *OWN)
        for name, (caption,) in OWN.items():
            text = json.dumps({"caption": caption}) if suffix == ".json" else caption
            (root / name).with_suffix(suffix).write_text(text)
        return Sample(DRAWN)

    return write


def _table(root: Path) -> Sample:
    _images(root / "pics", *OWN)
    (root / "t.csv").write_text("photo;description\n" + "".join(f"{name};{one}\n" for name, (one,) in OWN.items()))
    return Sample({"drawn": {f"pics/{name}": captions for name, captions in OWN.items()}})


def _file_names(root: Path) -> Sample:
    names: dict[str, tuple[str, ...]] = {
        "1_a_red_rose.jpg": ("a red rose",),
        "2_a_tulip.jpg": ("a tulip",),
        "blue sky.jpg": ("blue sky",),
    }
    _images(root, *names)
    return Sample({"drawn": names}, automatic=False)


THREE = ("train", "validation", "test")
BY_SPLIT: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("a.jpg", ("a red rose", "a rose")),
    "validation": ("b.jpg", ("a white tulip", "the tulip")),
    "test": ("c.jpg", ("blue sky", "a sky")),
}


def _in_splits(prefix: str = "", **names: str) -> Captions:
    return {split: {prefix + names.get(split, name): texts} for split, (name, texts) in BY_SPLIT.items()}


def write_karpathy(
    folder: str = "imgs", file: str = "dataset_rsicd.json", val: str = "val"
) -> Callable[[Path], Sample]:
    """Return what writes Karpathy's JSON and its images."""

    def write(root: Path) -> Sample:
        _images(root / folder, *(name for name, _ in BY_SPLIT.values()))
        images = [
            {
                "filename": name,
                "imgid": number,
                "split": val if split == "validation" else split,
                "sentences": [{"raw": one, "tokens": one.split(), "sentid": k} for k, one in enumerate(texts)],
            }
            for number, (split, (name, texts)) in enumerate(BY_SPLIT.items())
        ]
        _json(root / file, {"images": images, "dataset": "rsicd"})
        return Sample(_in_splits(f"{folder}/"))

    return write


def _flickr_token(root: Path) -> Sample:
    names = [name for name, _ in BY_SPLIT.values()]
    _images(root / "Flicker8k_Dataset", *names)
    texts = "".join(
        f'{name}#{number}\t"{one}" said somebody .\n'
        for name, captions in BY_SPLIT.values()
        for number, one in enumerate(captions)
    )
    (root / "text").mkdir()
    (root / "text" / "Flickr8k.token.txt").write_text(texts + "lost.jpg.1#0\tan image that nobody has\n")
    for name, file in zip(names, ("trainImages", "devImages", "testImages"), strict=True):
        (root / "text" / f"Flickr_8k.{file}.txt").write_text(f"{name}\n")
    said = {s: (n, tuple(f'"{one}" said somebody .' for one in texts)) for s, (n, texts) in BY_SPLIT.items()}
    return Sample({split: {f"Flicker8k_Dataset/{name}": texts} for split, (name, texts) in said.items()})


def _flickr8k_kaggle(root: Path) -> Sample:
    _images(root / "Images", *OWN)
    rows = "".join(f'{name},"{one} , {k}"\n' for name, (one,) in OWN.items() for k in range(2))
    (root / "captions.txt").write_text("image,caption\n" + rows)
    return Sample({"drawn": {f"Images/{name}": (f"{one} , 0", f"{one} , 1") for name, (one,) in OWN.items()}})


def _flickr30k_kaggle(root: Path) -> Sample:
    _images(root / "flickr30k_images", *OWN)
    rows = "".join(f'{name}| {k}| "{one}" {k} .\n' for name, (one,) in OWN.items() for k in range(2))
    (root / "results.csv").write_text(
        f"image_name| comment_number| comment\n{rows}a.jpg| 4   A line without its bar .\n"
    )
    texts = {name: (f'"{one}" 0 .', f'"{one}" 1 .') for name, (one,) in OWN.items()}
    return Sample({"drawn": {f"flickr30k_images/{name}": captions for name, captions in texts.items()}})


def _coco(path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    _json(path, {"info": {}, "images": images, "annotations": annotations})


def _nocaps(root: Path) -> Sample:
    _images(root / "images", *OWN)
    domains = ("in-domain", "near-domain", "out-domain")
    images = [
        {"id": n, "file_name": name, "open_images_id": name[:1], "domain": domain}
        for n, (name, domain) in enumerate(zip(OWN, domains, strict=True))
    ]
    captions = [{"id": n, "image_id": n, "caption": one} for n, (one,) in enumerate(OWN.values())]
    _coco(root / "nocaps_val_4500_captions.json", images, captions)
    return Sample({"validation": {f"images/{name}": texts for name, texts in OWN.items()}})


def _textcaps(root: Path) -> Sample:
    _images(root, "train_images/aa.jpg", "train_images/bb.jpg", "test_images/cc.jpg")
    for short, part, image in (("train", "train", "aa"), ("val", "train", "bb"), ("test", "test", "cc")):
        row = {"image_id": image, "set_name": short, "image_path": f"{part}/{image}.jpg"}
        texts = [f"a sign says {image}", f"it says {image}"]
        rows = [{**row, "caption_str": one, "caption_id": k, "reference_strs": texts} for k, one in enumerate(texts)]
        _json(
            root / f"TextCaps_0.1_{short}.json",
            {"dataset_name": "textcaps", "data": [row] if short == "test" else rows},
        )
    return Sample(
        {
            "train": {"train_images/aa.jpg": ("a sign says aa", "it says aa")},
            "validation": {"train_images/bb.jpg": ("a sign says bb", "it says bb")},
        }
    )


def _vizwiz(root: Path) -> Sample:
    captions: Captions = {"train": {}, "validation": {}}
    for short, split in (("train", "train"), ("val", "validation")):
        names = [f"VizWiz_{short}_0000000{n}.jpg" for n in range(3)]
        _images(root / short, *names)
        images = [{"id": n, "file_name": name, "vizwiz_url": f"https://x.test/{name}"} for n, name in enumerate(names)]
        plain = {"is_precanned": False, "is_rejected": False}
        annotations: list[dict[str, Any]] = [
            {"image_id": 0, "caption": "Quality issues are too severe to recognize.", **plain, "is_precanned": True},
            {"image_id": 0, "caption": "a can of beans", **plain},
            {"image_id": 1, "caption": "spam spam", **plain, "is_rejected": True},
            {"image_id": 2, "caption": "a keyboard", **plain},
        ]
        _coco(root / "annotations" / f"{short}.json", images, [{"id": k, **a} for k, a in enumerate(annotations)])
        captions[split] = {f"{short}/{names[0]}": ("a can of beans",), f"{short}/{names[2]}": ("a keyboard",)}
    _json(
        root / "annotations" / "test.json", {"images": [{"id": 9, "file_name": "VizWiz_test_00000000.jpg"}], "info": {}}
    )
    return Sample(captions)


def _of_coco(pattern: str, caption: str) -> Callable[[Path], Sample]:
    def write(root: Path) -> Sample:
        captions: Captions = {}
        for short, split in (("train", "train"), ("val", "validation")):
            name = f"COCO_{short}2014_000000000042.jpg"
            _images(root / f"{short}2014", name)
            image_id = 42 if short == "train" else 43
            annotations = [{"id": 1, "image_id": image_id, "caption": caption}]
            _coco(root / pattern.format(short), [{"id": image_id, "file_name": name}], annotations)
            captions[split] = {f"{short}2014/{name}": (caption,)}
        return Sample(captions)

    return write


def _docci(root: Path) -> Sample:
    splits = {"train": "train_00000.jpg", "qual_dev": "qual_dev_00000.jpg", "test": "test_00000.jpg"}
    _images(root / "images", *splits.values())
    _lines(
        root / "docci_descriptions.jsonlines",
        [
            {"example_id": name[:-4], "split": split, "image_file": name, "description": f"A long view of {split}."}
            for split, name in splits.items()
        ],
    )
    return Sample({split: {f"images/{name}": (f"A long view of {split}.",)} for split, name in splits.items()})


def _dci(root: Path) -> Sample:
    base = root / "densely_captioned_images"
    for name, captions in BY_SPLIT.values():
        _images(base / "photos", name)
        entry = {
            "image": name,
            "short_caption": captions[0],
            "extra_caption": f"{captions[1]}, at length",
            "mask_data": {},
        }
        _json(base / "annotations" / f"{name[0]}.json", entry)
    _json(base / "splits.json", {"train": ["a.json"], "valid": ["b.json"], "test": ["c.json"]})
    return Sample({s: {f"densely_captioned_images/photos/{n}": t[:1]} for s, (n, t) in BY_SPLIT.items()})


def _rocov2(root: Path) -> Sample:
    captions: Captions = {}
    for short, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        image = f"ROCOv2_2023_{short}_000001"
        _images(root / short, f"{image}.jpg")
        (root / f"{short}_captions.csv").write_text(f'ID,Caption\n{image},"Chest CT, axial"\n')
        (root / f"{short}_concepts.csv").write_text(f"ID,CUIs\n{image},C0040405\n")
        captions[split] = {f"{short}/{image}.jpg": ("Chest CT, axial",)}
    return Sample(captions)


def _localized_narratives(root: Path) -> Sample:
    captions: Captions = {}
    for short, split in (("train", "train"), ("val", "validation")):
        number = "137576" if short == "train" else "42"
        _images(root / f"{short}2017", f"{int(number):012}.jpg")
        row = {"dataset_id": f"mscoco_{short}2017", "image_id": number}
        texts = ("In this image there is a rose.", "I can see a garden.")
        _lines(
            root / f"coco_{short}_captions.jsonl",
            [{**row, "annotator_id": n, "caption": one} for n, one in enumerate(texts)],
        )
        captions[split] = {f"{short}2017/{int(number):012}.jpg": texts}
    return Sample(captions)


def _coco_cn(root: Path) -> Sample:
    base = root / "coco-cn-version1805v1.1"
    base.mkdir()
    names = {
        "train": "COCO_train2014_000000000001",
        "validation": "COCO_train2014_000000000002",
        "test": "COCO_val2014_000000000003",
    }
    _images(root / "photos", *(f"{name}.jpg" for name in names.values()))
    lines = "".join(f"{name}#0\t一只狗\n{name}#1\t狗在跑\n" for name in names.values())
    (base / "imageid.human-written-caption.txt").write_text(lines, encoding="utf-8")
    for (split, name), short in zip(names.items(), ("train", "val", "test"), strict=True):
        assert split in THREE
        (base / f"coco-cn_{short}.txt").write_text(f"{name}\n")
    return Sample({split: {f"photos/{name}.jpg": ("一只狗", "狗在跑")} for split, name in names.items()})


def _xm3600(root: Path) -> Sample:
    _images(root / "images", *OWN)
    _lines(
        root / "captions.jsonl",
        [
            {"image/key": name[0], "en": {"caption": list(texts), "caption/tokenized": []}, "de": {"caption": ["Rose"]}}
            for name, texts in OWN.items()
        ],
    )
    return Sample({"test": {f"images/{name}": texts for name, texts in OWN.items()}})


def _addresses(root: Path, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Captions by the addresses of images, which are in the cache folder already: nobody is asked for them."""
    found = {}
    for name, texts in OWN.items():
        image = kept_web_image(f"http://images.test/{prefix}{name}")
        write_jpeg(image.path)
        found[image.url] = texts
    return found


def _tsv(name: str, first: str) -> Callable[[Path], Sample]:
    def write(root: Path) -> Sample:
        known = _addresses(root)
        rows = [(url, one) if first == "url" else (one, url) for url, (one,) in known.items()]
        (root / name).write_text("".join(f"{one}\t{other}\n" for one, other in rows))
        return Sample({"drawn": known})

    return write


def _pixelprose(root: Path) -> Sample:
    known = _addresses(root)
    rows = [{"uid": url[-5:], "url": url, "original_caption": "x", "vlm_caption": one} for url, (one,) in known.items()]
    _parquet(root / "vlm_captions_cc12m_00.parquet", rows)
    return Sample({"drawn": known})


def _llava(root: Path) -> Sample:
    _images(root / "coco" / "train2017", *OWN)
    rows: list[dict[str, Any]] = [
        {
            "id": name,
            "image": f"elsewhere/train2017/{name}",
            "conversations": [
                *({"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": one}),
                *({"from": "human", "value": "What colour?"}, {"from": "gpt", "value": "red"}),
            ],
        }
        for name, (one,) in OWN.items()
    ]
    rows.append({"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]})
    _json(root / "llava_instruct.json", rows)
    return Sample({"drawn": {f"coco/train2017/{name}": texts for name, texts in OWN.items()}})


def _trl(prompt: str, answer: str) -> Callable[[Path], Sample]:
    def write(root: Path) -> Sample:
        _images(root / "images", *OWN)
        rows = []
        for name, (one,) in OWN.items():
            user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe."}]}
            assistant = {"role": "assistant", "content": [{"type": "text", "text": one}]}
            turns = {"messages": [user, assistant]} if prompt == answer else {prompt: [user], answer: [assistant]}
            rows.append({"images": [f"images/{name}"], **turns})
        _lines(root / "chat.jsonl", rows)
        return Sample({"drawn": {f"images/{name}": texts for name, texts in OWN.items()}})

    return write


SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "metadata": _metadata,
    "sidecar_txt": _sidecar(".txt"),
    "sidecar_caption": _sidecar(".caption"),
    "sidecar_json": _sidecar(".json"),
    "karpathy": write_karpathy(),
    "flickr_token": _flickr_token,
    "flickr8k_kaggle": _flickr8k_kaggle,
    "flickr30k_kaggle": _flickr30k_kaggle,
    "nocaps": _nocaps,
    "textcaps": _textcaps,
    "vizwiz": _vizwiz,
    "stair": _of_coco("stair_captions_v1.2_{}.json", "赤いバラ"),
    "coco_captions": _of_coco("annotations/captions_{}2014.json", "a red rose"),
    "docci": _docci,
    "dci": _dci,
    "rocov2": _rocov2,
    "localized_narratives": _localized_narratives,
    "coco_cn": _coco_cn,
    "xm3600": _xm3600,
    "conceptual_captions": _tsv("Train_GCC-training.tsv", "caption"),
    "cc12m": _tsv("cc12m.tsv", "url"),
    "pixelprose": _pixelprose,
    "llava": _llava,
    "trl_messages": _trl("messages", "messages"),
    "trl_completion": _trl("prompt", "completion"),
    "coco_format": _of_coco("my_{}.json", "a red rose"),
    "table": _table,
    "file_names": _file_names,
}


def write_sample(name: str, root: Path) -> Sample:
    """Write the sample of a layout into a folder and return what it holds."""
    return SAMPLES[name](root)
