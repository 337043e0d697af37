"""Every layout of human judgments, read from a small imitation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hfcap.errors import UserError
from hfcap.judgments import Judgments, read_judgments
from hfcap.judgments.layouts.mat_file import read_mat
from hfcap.judgments.published import KNOWN_SETS
from tests.judgments import imitations
from tests.judgments.imitations import CAPTIONS


def ratings(judgments: Judgments) -> list[tuple[str, str, float]]:
    """(image, caption, score) of each rating."""
    captions = judgments.captions
    return [(captions[one.caption].image, captions[one.caption].text, one.score) for one in judgments.ratings]


def preferences(judgments: Judgments) -> list[tuple[str, str, str, str]]:
    """(image, preferred caption, the other one, kind) of each preference."""
    captions = judgments.captions
    assert all(captions[pair.better].image == captions[pair.worse].image for pair in judgments.preferences)
    return [
        (captions[pair.better].image, captions[pair.better].text, captions[pair.worse].text, pair.group)
        for pair in judgments.preferences
    ]


def test_flickr8k_expert_leaves_out_references_and_counts_each_expert(tmp_path: Path) -> None:
    folder = imitations.write_flickr8k(tmp_path / "text", crowd=False)
    found = read_judgments(str(folder))
    assert found.layout == "flickr8k_expert" and len(found.captions) == 4
    assert ratings(found)[:3] == [("1.jpg", "two goats on a hill .", score) for score in (1, 1, 2)]
    assert len(found) == 12 and "2 candidates" in found.notes[0]
    assert found.captions[0].references == tuple(f"{line} ." for line in CAPTIONS["1.jpg"])
    assert ratings(read_judgments(str(folder / "ExpertAnnotations.txt"))) == ratings(found)


def test_flickr8k_cf_takes_judged_captions_out_of_the_references(tmp_path: Path) -> None:
    folder = imitations.write_flickr8k(tmp_path / "text")
    found = read_judgments(str(folder / "CrowdFlowerAnnotations.txt"))
    assert found.layout == "flickr8k_cf" and found.notes == ()
    assert [score for *_, score in ratings(found)] == pytest.approx([1, 0, 2 / 3, 1 / 3, 0])
    assert found.captions[0].text == "a red kite over a beach ."
    assert found.captions[0].references == found.captions[1].references
    assert found.captions[1].references == tuple(f"{line} ." for line in CAPTIONS["1.jpg"][1:])
    assert len(found.captions[-1].references) == 5
    with pytest.raises(UserError, match=r"two sets of judgments; name one: .*ExpertAnnotations.txt or .*CrowdFlower"):
        read_judgments(str(folder))


def test_flickr8k_as_json_of_clipscores_authors(tmp_path: Path) -> None:
    found = read_judgments(str(imitations.write_flickr8k_json(tmp_path / "flickr8k.json")))
    assert found.layout == "flickr8k_expert"
    assert ratings(found) == [("1", "two goats on a hill", 1.0), ("1", "a kite above the sea", 3.0)]


def test_composite_finds_the_references_of_three_datasets(tmp_path: Path) -> None:
    folder, references = imitations.write_composite(tmp_path / "composite")
    found = read_judgments(str(folder), references=[references])
    assert found.layout == "composite" and len(found) == 6 and "2 cells" in found.notes[0]
    assert ratings(found)[1] == ("1.jpg", "two goats; a hill", 1.0)
    assert found.captions[2].text == "two goats on a hill"
    assert found.captions[2].references == tuple(CAPTIONS["2.jpg"][1:])
    assert found.captions[-1].references == tuple(CAPTIONS["3.jpg"])
    with pytest.raises(UserError, match="holds no human captions; give them with --references"):
        read_judgments(str(folder))
    references.write_text(json.dumps({"1": ["a kite"], "2": ["goats"]}))
    with pytest.raises(UserError, match=r"coco_correctness.csv: line 2: image 'COCO_val2014_0+42.jpg' has no human"):
        read_judgments(str(folder), references=[references])


def test_foil_prefers_the_right_caption_to_each_of_its_foils(tmp_path: Path) -> None:
    foil, references = imitations.write_foil(tmp_path)
    found = read_judgments(str(foil), references=[references])
    assert found.layout == "foil"
    assert preferences(found) == [
        ("2", "two goats on a hill", "two cats on a hill", ""),
        ("2", "two goats on a hill", "two dogs on a hill", ""),
        ("3", "a bowl of soup", "a bowl of paint", ""),
    ]
    assert {caption.references for caption in found.captions} == {
        tuple(CAPTIONS["2.jpg"][1:]),
        tuple(CAPTIONS["3.jpg"][1:]),
    }
    with pytest.raises(UserError, match="give COCO's with --references"):
        read_judgments(str(foil))


def test_pascal50s_takes_what_most_people_prefer(tmp_path: Path) -> None:
    found = read_judgments(str(imitations.write_pascal50s(tmp_path)))
    assert found.layout == "pascal50s"
    assert preferences(found) == [
        ("1.jpg", "a kite flies", "kite sky kite", "HM"),
        ("2.jpg", "goats on grass", "a truck", "HI"),
        ("3.jpg", "soup and bread", "some soup", "HC"),
    ]
    assert found.notes == ("1 pairs with as many votes for either caption are left out",)
    assert found.captions[0].references == tuple(CAPTIONS["1.jpg"][:4])


def test_matlab_files_hold_text_numbers_cells_and_structs(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    nested = ("cell", ["a", ("cell", [3.0])])
    path.write_bytes(imitations.mat_file(text="Gänse", many=[1.5, -2.0], nested=nested, of=[{"x": 1, "y": "z"}]))
    assert read_mat(path) == {
        "text": "Gänse",
        "many": [1.5, -2.0],
        "nested": ["a", [[3.0]]],
        "of": [{"x": [1.0], "y": "z"}],
    }


@pytest.mark.parametrize("damage", ["short", "head", "cut", "garbage"])
def test_damaged_matlab_files_are_named(tmp_path: Path, damage: str) -> None:
    folder = imitations.write_pascal50s(tmp_path)
    path = folder / "pair_pascal.mat"
    content = path.read_bytes()
    changed = {
        "short": b"MATLAB",
        "head": b"x" * len(content),
        "cut": content[: len(content) - 40],
        "garbage": content[:200] + b"\xff" * (len(content) - 200),
    }
    path.write_bytes(changed[damage])
    with pytest.raises(UserError, match=r"pair_pascal\.mat: "):
        read_judgments(str(folder))


ROWS: dict[str, list[dict[str, Any]]] = {
    "polaris_test": [
        {"imgid": "1.jpg", "refs": CAPTIONS["1.jpg"], "cand": "a kite", "human_score": 0.75},
        {"imgid": "2.jpg", "refs": CAPTIONS["2.jpg"], "cand": "cows", "human_score": 0.25},
    ],
    "nebula_test": [
        {"file_name": "1.jpg", "refs": CAPTIONS["1.jpg"], "mt": "a kite", "human_score": 0.75},
        {"file_name": "2.jpg", "refs": CAPTIONS["2.jpg"], "mt": "cows", "human_score": 0.25},
    ],
    "longcap-arena": [
        {"file_name": "1.jpg", "refs": CAPTIONS["1.jpg"][:1], "cand": "a kite", "score": 75},
        {"file_name": "2.jpg", "refs": CAPTIONS["2.jpg"][:1], "cand": "cows", "score": 25},
    ],
    "mine": [
        {"image_id": 1, "references": CAPTIONS["1.jpg"], "candidate": "a  kite", "rating": "4"},
        {"image_id": 2, "references": "goats", "candidate": "cows", "rating": 2},
    ],
}
LAYOUTS = {"polaris_test": "polaris", "nebula_test": "nebula", "longcap-arena": "longcap_arena", "mine": "ratings"}


@pytest.mark.parametrize("name", list(ROWS))
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_tables_of_ratings(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}{suffix}"
    if suffix == ".jsonl":
        imitations.write_table(path, ROWS[name])
    else:  # as pandas writes it: lists as text
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(ROWS[name][0]))
            writer.writeheader()
            writer.writerows(ROWS[name])
    found = read_judgments(str(path))
    assert found.layout == LAYOUTS[name]
    assert [caption.text for caption in found.captions] == ["a kite", "cows"]
    assert found.captions[0].references[0] == CAPTIONS["1.jpg"][0]
    first, second = (score for *_, score in ratings(found))
    assert first > second and found.captions[0].image != found.captions[1].image


def test_tables_of_preferences(tmp_path: Path) -> None:
    rows = [
        {"image": "1.jpg", "refs": CAPTIONS["1.jpg"], "better": "a kite", "worse": "a cow", "category": "HM"},
        {"image": "2.jpg", "refs": CAPTIONS["2.jpg"], "better": "goats", "worse": "a goat", "category": "HC"},
    ]
    found = read_judgments(str(imitations.write_table(tmp_path / "pairs.jsonl", rows)))
    assert found.layout == "preferences"
    assert preferences(found) == [("1.jpg", "a kite", "a cow", "HM"), ("2.jpg", "goats", "a goat", "HC")]


def test_a_dataset_with_images_in_it_and_no_ids(tmp_path: Path) -> None:
    """As Polaris is on the Hub; the rows of one image are known by their references."""
    images = [Image.fromarray(np.full((8, 8, 3), shade, dtype=np.uint8)) for shade in (10, 10, 200)]
    table = datasets.Dataset.from_dict(
        {
            "img": images,
            "refs": [CAPTIONS["1.jpg"], CAPTIONS["1.jpg"], CAPTIONS["2.jpg"]],
            "cand": ["a kite", "a cow", "goats"],
            "human_score": [1.0, 0.0, 0.75],
        },
        features=datasets.Features(
            {
                "img": datasets.Image(),
                "refs": datasets.Sequence(datasets.Value("string")),
                "cand": datasets.Value("string"),
                "human_score": datasets.Value("float64"),
            }
        ),
    )
    folder = tmp_path / "Polaris"
    datasets.DatasetDict({"train": table.select([0]), "test": table}).save_to_disk(str(folder))
    found = read_judgments(str(folder))
    assert found.layout == "polaris" and len(found) == 3
    assert found.captions[0].image == found.captions[1].image != found.captions[2].image
    source = found.captions[2].source
    assert source is not None and source.read()[:4] == b"\x89PNG"
    assert len(read_judgments(str(folder), split="train")) == 1
    with pytest.raises(UserError, match=r"no images in split 'validation'.*--split chooses one"):
        read_judgments(str(folder), split="validation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cand": None}, r"line 1: no column candidate or cand or mt or caption; found image_id, refs"),
        ({"human_score": None}, r"line 1: no column human_score or score"),
        ({"human_score": "good"}, r"line 1: the score must be a number, not 'good'"),
        ({"human_score": float("nan")}, r"line 1: the score must be a number, not nan"),
        ({"refs": None}, r"line 1: no human captions \(column references or refs or ref\).* with --references"),
        ({"refs": [7]}, r"line 1: the references must be text, not 7"),
        ({"cand": 7}, r"line 1: the caption must be text, not 7"),
    ],
)
def test_what_is_missing_in_a_table_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    row = {"image_id": 1, "refs": ["goats"], "cand": "a goat", "human_score": 1} | change
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({key: value for key, value in row.items() if value is not None}) + "\n")
    with pytest.raises(UserError, match=message):
        read_judgments(str(path))


def test_references_of_a_table_may_stand_in_another_file(tmp_path: Path) -> None:
    table = imitations.write_table(tmp_path / "mine.jsonl", [{"image_id": 1, "cand": "a kite", "score": 1}])
    human = tmp_path / "references.json"
    human.write_text(json.dumps({"1": CAPTIONS["1.jpg"]}))
    assert read_judgments(str(table), references=[human]).captions[0].references == tuple(CAPTIONS["1.jpg"])


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a kite\n")
    with pytest.raises(UserError, match=r"a\.txt: no layout of human judgments"):
        read_judgments(str(tmp_path / "a.txt"))
    folder = imitations.write_flickr8k(tmp_path / "text", crowd=False)
    (folder / "ExpertAnnotations.txt").write_text("1.jpg\t9.jpg#0\t1\t1\t1\n")
    with pytest.raises(UserError, match=r"line 1: '9\.jpg#0' is not in Flickr8k\.token\.txt"):
        read_judgments(str(folder))
    (folder / "ExpertAnnotations.txt").write_text("1.jpg\t1.jpg#0\t1\n")
    with pytest.raises(UserError, match="line 1 has 3 columns"):
        read_judgments(str(folder))


def test_every_layout_is_a_known_set() -> None:
    assert {
        *LAYOUTS.values(),
        "flickr8k_expert",
        "flickr8k_cf",
        "composite",
        "foil",
        "pascal50s",
        "preferences",
    } == set(KNOWN_SETS)
