"""Small imitations of published human judgments, with content of our own."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

CAPTIONS = {
    "1.jpg": ["a red kite over a beach", "somebody flies a kite", "a kite in the wind", "a kite and the sea", "kites"],
    "2.jpg": ["two goats on a hill", "goats eat grass", "a hill with goats", "goats outside", "white goats stand"],
    "3.jpg": ["a bowl of soup", "hot soup with bread", "soup on a table", "a spoon in soup", "a lunch of soup"],
}
EXPERT = [
    ("1.jpg", "2.jpg#0", (1, 1, 2)),
    ("1.jpg", "1.jpg#3", (4, 4, 4)),  # a human caption of this image
    ("2.jpg", "2.jpg#1", (4, 3, 4)),  # too
    ("2.jpg", "3.jpg#2", (1, 1, 1)),
    ("3.jpg", "1.jpg#4", (1, 2, 1)),
    ("3.jpg", "2.jpg#2", (2, 3, 2)),
]
CROWD = [
    ("1.jpg", "1.jpg#0", 3, 0),
    ("1.jpg", "3.jpg#0", 0, 3),
    ("2.jpg", "2.jpg#3", 2, 1),
    ("2.jpg", "1.jpg#2", 1, 2),
    ("3.jpg", "2.jpg#4", 0, 4),
]


def write_flickr8k(folder: Path, *, expert: bool = True, crowd: bool = True) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    lines = [f"{image}#{number}\t{text}  .\n" for image, group in CAPTIONS.items() for number, text in enumerate(group)]
    (folder / "Flickr8k.token.txt").write_text("".join(lines))
    if expert:
        rows = ["\t".join([image, key, *map(str, scores)]) + "\n" for image, key, scores in EXPERT]
        (folder / "ExpertAnnotations.txt").write_text("".join(rows))
    if crowd:
        rows = [f"{image}\t{key}\t{yes / (yes + no)}\t{yes}\t{no}\n" for image, key, yes, no in CROWD]
        (folder / "CrowdFlowerAnnotations.txt").write_text("".join(rows))
    return folder


def write_flickr8k_json(path: Path) -> Path:
    content = {
        "1": {
            "image_path": "Images/1.jpg",
            "ground_truth": CAPTIONS["1.jpg"],
            "human_judgement": [
                {"image_id": "1.jpg", "caption": "two goats on  a hill", "rating": 1.0},
                {"image_id": "1.jpg", "caption": "a kite above the sea", "rating": 3.0},
                {"image_id": "1.jpg", "caption": "nobody rated this", "rating": float("nan")},
            ],
        },
    }
    path.write_text(json.dumps(content))
    return path


def write_composite(folder: Path) -> tuple[Path, Path]:
    """The folder of ratings and a file of human captions."""
    folder.mkdir(exist_ok=True, parents=True)
    head = '"HITId";"Input.image_url";"Input.text1";"Input.text2";"Answer.Q1Answer";"Answer.Q2Answer"\n'
    (folder / "8k_correctness.csv").write_text(
        head
        + '"a";"http://example.org/8k/1.jpg";"a kite";"two goats; a hill";"5";"1"\n'
        + '"b";"http://example.org/8k/2.jpg";"two goats on a hill";"a cow";"4";"2"\n'
        + '"";"";"";"";"";""\n'
    )
    (folder / "coco_correctness.csv").write_text(
        head + '"c";"http://example.org/coco/COCO_val2014_000000000042.jpg";"soup";"bread";"3";"2"\n'
    )
    references = folder / "references.json"
    references.write_text(
        json.dumps({"1": CAPTIONS["1.jpg"], "2": CAPTIONS["2.jpg"], "42": CAPTIONS["3.jpg"]}), encoding="utf-8"
    )
    return folder, references


def write_foil(folder: Path) -> tuple[Path, Path]:
    """FOIL's file and COCO's captions."""
    rows = [
        {"caption": "two goats on a hill", "foil": False, "foil_word": "ORIG", "id": 7, "image_id": 2},
        {"caption": "two cats on a hill", "foil": True, "foil_word": "cats", "id": 7, "image_id": 2},
        {"caption": "two dogs on a hill", "foil": True, "foil_word": "dogs", "id": 7, "image_id": 2},
        {"caption": "a bowl of soup", "foil": False, "foil_word": "ORIG", "id": 8, "image_id": 3},
        {"caption": "a bowl of paint", "foil": True, "foil_word": "paint", "id": 8, "image_id": 3},
    ]
    foil = folder / "foilv1.0_test_2017.json"
    foil.write_text(json.dumps({"images": [{"id": 2}, {"id": 3}], "annotations": rows}))
    annotations = [
        {"image_id": int(image[0]), "id": number, "caption": caption}
        for image, group in CAPTIONS.items()
        for number, caption in enumerate(group)
    ]
    references = folder / "captions_val2014.json"
    references.write_text(json.dumps({"images": [{"id": 1}, {"id": 2}, {"id": 3}], "annotations": annotations}))
    return foil, references


# Pascal-50S: MATLAB files, written by the description of the format.


def _element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def _array(array_class: int, shape: tuple[int, int], content: bytes, name: str = "") -> bytes:
    flags = _element(6, struct.pack("<II", array_class, 0))
    # Names of up to four bytes stand next to their type.
    encoded = name.encode()
    short = struct.pack("<HH", 1, len(encoded)) + encoded.ljust(4, b"\0")
    named = short if 0 < len(encoded) <= 4 else _element(1, encoded)
    return _element(14, flags + _element(5, struct.pack("<ii", *shape)) + named + content)


def mat_value(value: Any, name: str = "") -> bytes:
    """Text, a number, a list of numbers, a cell ("cell", values), or a list of structs."""
    if isinstance(value, str):
        return _array(4, (1, len(value)), _element(4, value.encode("utf-16-le")), name)
    if isinstance(value, int | float):
        return mat_value([value], name)
    if isinstance(value, tuple):
        return _array(1, (1, len(value[1])), b"".join(map(mat_value, value[1])), name)
    if isinstance(value[0], dict):
        fields = list(value[0])
        head = _element(5, struct.pack("<i", 32)) + _element(1, b"".join(f.encode().ljust(32, b"\0") for f in fields))
        return _array(2, (1, len(value)), head + b"".join(mat_value(row[f]) for row in value for f in fields), name)
    return _array(6, (1, len(value)), _element(9, struct.pack(f"<{len(value)}d", *value)), name)


def mat_file(compressed: bool = True, **variables: Any) -> bytes:
    header = b"MATLAB 5.0 MAT-file, an imitation".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    parts = []
    for name, value in variables.items():
        data = mat_value(value, name)
        if compressed:
            packed = zlib.compress(data)
            data = struct.pack("<II", 15, len(packed)) + packed
        parts.append(data)
    return header + b"".join(parts)


def write_pascal50s(folder: Path, votes: int = 4) -> Path:
    """Four pairs, one of each kind; the last is a tie."""
    pairs = [
        ("1.jpg", "a kite flies", "kite sky kite", 3),
        ("2.jpg", "a truck", "goats on grass", 2),
        ("3.jpg", "soup and bread", "some soup", 1),
        ("3.jpg", "a plate", "a dish", 4),
    ]
    for_first = (4, 0, 3, 2)
    triplets = [
        {
            "A": ("cell", [CAPTIONS[image][number] + " "]),
            "B": ("cell", [first]),
            "C": ("cell", [second]),
            "winner": 1 if number < count else -1,
        }
        for (image, first, second, _), count in zip(pairs, for_first, strict=True)
        for number in range(votes)
    ]
    inputs = [{"image": image, "sent1": first, "sent2": second} for image, first, second, _ in pairs]
    (folder / "pair_pascal.mat").write_bytes(
        mat_file(new_input=inputs, category=[float(kind) for *_, kind in pairs], new_data=[1.0])
    )
    (folder / "consensus_pascal.mat").write_bytes(mat_file(compressed=False, triplets=triplets))
    return folder


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
