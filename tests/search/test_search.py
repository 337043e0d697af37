"""Search by text: BM25 against its formula, cosines against plain CLIP, every kind of target, wrong input."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from hfcap.captioners.shared.dual_encoder import DualEncoder
from hfcap.errors import UserError
from hfcap.files import read_json_lines
from hfcap.metrics.meteor_parts.stemmer import stem
from hfcap.metrics.shared.tokenizer import tokenize
from hfcap.schema import CaptionedImage
from hfcap.search import find, load_collection, write_hits
from hfcap.search.words import CaptionWords
from tests.captioners.clip_folder import write_clip
from tests.captioners.helpers import MemoryImage, plain_processor, random_image
from tests.metrics.random_captions import random_captions

CAPTIONS = [
    ["two dogs run on a beach", "dogs at the sea"],
    ["a red bus in a street"],
    ["a dog sleeps", "a brown dog on a sofa"],
    ["people on a beach", "<b>many</b> people [bold]"],
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip"))


def records(captions: Sequence[Sequence[str]] = CAPTIONS) -> list[CaptionedImage]:
    return [
        CaptionedImage(str(number), f"{number}.png", tuple(group), MemoryImage(number))
        for number, group in enumerate(captions)
    ]


def plain_bm25(documents: list[list[str]], query: list[str]) -> list[float]:
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in dict.fromkeys(query):
            holders = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - holders + 0.5) / (holders + 0.5))
            count = document.count(word)
            score += idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(document) / mean))
        scores.append(score)
    return scores


def test_bm25_is_its_formula() -> None:
    captions = list(random_captions(40, seed=5)[1].values())
    query = "the dogs are running near two red balls, dogs"
    documents = [[stem(word) for text in group for word in tokenize(text)] for group in captions]
    expected = plain_bm25(documents, [stem(word) for word in tokenize(query)])
    assert CaptionWords(captions).scores(query) == pytest.approx(expected)
    assert len({round(score, 6) for score in expected}) > 10


def test_captions_alone_find_other_forms_of_a_word_and_nothing_else() -> None:
    hits = find("a Dog running", records(), where="here")
    assert [hit.record.image_id for hit in hits[:2]] == ["0", "2"]
    assert hits[0].caption == "two dogs run on a beach" and hits[0].cosine is None
    assert find("zebra", records(), where="here") == []
    assert len(find("a", records(), count=2, where="here")) == 2


def _plain_cosines(clip: str, query: str, count: int) -> Any:
    model, processor = AutoModel.from_pretrained(clip), plain_processor(clip)
    images = [random_image(number) for number in range(count)]
    inputs = processor(text=[query], images=images, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.inference_mode():
        return (model(**inputs).logits_per_text / model.logit_scale.exp())[0].numpy()


def test_images_by_plain_clip_also_without_captions(clip: str) -> None:
    expected = _plain_cosines(clip, "two dogs", 6)
    hits = find("two dogs", records([[]] * 6), encoder=DualEncoder(clip, "--model"), where="here")
    assert [int(hit.record.image_id) for hit in hits] == np.argsort(-expected).tolist()
    assert [hit.cosine for hit in hits] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert all(hit.words is None and hit.caption == "" for hit in hits)


def test_both_rankings_are_joined_by_reciprocal_ranks(clip: str) -> None:
    cosines, words = _plain_cosines(clip, "dogs on a beach", 4), CaptionWords(CAPTIONS).scores("dogs on a beach")
    places = [{number: place for place, number in enumerate(np.argsort(-v), 1)} for v in (cosines, words)]
    expected = [
        100 / (60 + places[0][number]) + (100 / (60 + places[1][number]) if words[number] > 0 else 0)
        for number in range(4)
    ]
    hits = find("dogs on a beach", records(), encoder=DualEncoder(clip, "--model"), where="here")
    assert {int(hit.record.image_id): hit.score for hit in hits} == pytest.approx(dict(enumerate(expected)))
    assert [hit.score for hit in hits] == sorted(expected, reverse=True)


# ---- what is searched ------------------------------------------------------------------------------------------------


def _folder(root: Path, metadata: bool = True) -> Path:
    for number in range(4):
        (root / "sub").mkdir(parents=True, exist_ok=True)
        random_image(number).save(root / ("sub" if number == 3 else ".") / f"{number}.png")
    if metadata:
        rows = [{"file_name": f"{number}.png", "captions": CAPTIONS[number]} for number in range(3)]
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_a_folder_gives_all_splits_and_images_without_captions(tmp_path: Path) -> None:
    found = load_collection(str(_folder(tmp_path / "images")))
    assert sorted(len(record.captions) for record in found) == [0, 1, 2, 2]
    assert len(load_collection(str(_folder(tmp_path / "plain", metadata=False)))) == 4
    assert len(load_collection(str(tmp_path / "plain" / "*.png"))) == 3


@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_captions_next_to_the_images_are_searched(tmp_path: Path, suffix: str) -> None:
    folder = _folder(tmp_path / "images", metadata=False)
    for number in range(3):
        (folder / f"{number}{suffix}").write_text(CAPTIONS[number][0])
    found = load_collection(str(folder))
    assert sorted(record.captions for record in found) == sorted([(), *((CAPTIONS[n][0],) for n in range(3))])
    assert find(CAPTIONS[1][0], found)[0].record.file_name == "1.png"


def test_a_coco_file_with_and_without_splits(tmp_path: Path) -> None:
    _folder(tmp_path / "images", metadata=False)
    for split in (None, "train"):
        images = [{"id": number, "file_name": f"{number}.png"} for number in range(3)]
        if split:
            images = [{**image, "split": "train" if image["id"] else "val"} for image in images]
        notes = [{"image_id": n, "caption": text} for n in range(3) for text in CAPTIONS[n]]
        path = tmp_path / "captions.json"
        path.write_text(json.dumps({"images": images, "annotations": notes}))
        assert len(load_collection(str(path))) == 3
    assert [record.image_id for record in load_collection(str(path), "val")] == ["0"]
    with pytest.raises(UserError, match=r"no images in split 'tset' \(splits that exist: 'train', 'val'\)"):
        load_collection(str(path), "tset")
    path.rename(tmp_path / "elsewhere.json")
    assert len(load_collection(str(tmp_path / "elsewhere.json"), images=str(tmp_path / "images"))) == 3


def test_a_run_and_a_recipe_give_the_images_of_their_data(tmp_path: Path) -> None:
    import yaml

    from tests.training.harness import recipe_values

    (tmp_path / "run").mkdir()
    for path in (tmp_path / "run" / "recipe.yaml", tmp_path / "mine.yaml"):
        path.write_text(yaml.safe_dump(recipe_values("blip", tmp_path)))
    for target in ("run", "mine.yaml"):
        assert len(load_collection(str(tmp_path / target))) == 7 + 4 + 5
        assert len(load_collection(str(tmp_path / target), "test")) == 5


def test_unreadable_images_are_skipped_and_named(tmp_path: Path, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _folder(tmp_path / "images", metadata=False)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    encoder = DualEncoder(clip, "--model")
    assert len(find("two dogs", load_collection(str(folder)), encoder=encoder, where=str(folder))) == 4
    assert "broken.jpg" in capsys.readouterr().err.replace("\n", "")


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    hits = find("many people", records([*CAPTIONS, ["=people()"]]), where="here")
    for suffix in ("csv", "jsonl", "html"):
        write_hits(hits, "many people <script>", tmp_path / f"hits.{suffix}")
    rows = list(csv.DictReader((tmp_path / "hits.csv").open()))
    assert [row["caption"] for row in rows] == ["<b>many</b> people [bold]", "'=people()"]
    assert [row["rank"] for _, row in read_json_lines(tmp_path / "hits.jsonl", "hits")] == [1, 2]
    page = (tmp_path / "hits.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert 'name="viewport"' in page  # else telephones show it in the size of stamps
    assert "<b>many" not in page and "&lt;b&gt;many" in page and "<script" not in page
    bare = find("many", records([["many"]]), where="here")[0]
    bare = dataclasses.replace(bare, caption="", record=dataclasses.replace(bare.record, file_name='"><b>.jpg'))
    write_hits([bare], "x", tmp_path / "hits.html")
    assert 'alt="&#34;&gt;&lt;b&gt;.jpg"' in (tmp_path / "hits.html").read_text()
    write_hits([bare] * 50, "x", tmp_path / "hits.html")
    page = (tmp_path / "hits.html").read_text()
    assert page.count("<li>") == 50 and page.count("<details>") == 2  # not one endless page
    assert "25 to 48" in page and "49 to 50" in page and 'start="49"' in page
    with pytest.raises(UserError, match=r"ends in \.csv or \.jsonl or \.html"):
        write_hits(hits, "x", tmp_path / "hits.txt")


@pytest.mark.parametrize(
    ("query", "captions", "by", "message"),
    [
        (" ", CAPTIONS, "auto", "text to search for is empty"),
        ("dog", [], "auto", "no images"),
        ("dog", [[], []], "auto", "no captions; give --model"),
        ("dog", CAPTIONS, "images", "--by images: needs a CLIP or SigLIP"),
        ("dog", [[], []], "captions", "--by captions: the images of here have no captions"),
    ],
)
def test_nothing_to_search_by(query: str, captions: list[list[str]], by: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(query, records(captions), by=by, where="here")


@pytest.mark.parametrize("target", ["nowhere", "./nowhere", "nowhere.json"])
def test_a_target_that_is_not_there(target: str) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load_collection(target)


def test_a_folder_without_metadata_has_no_splits(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="--split"):
        load_collection(str(tmp_path), "train")
