"""Captions next to their images: what is skipped, overwritten and appended to, and that a stop leaves nothing half."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hfcap.captioners.base import Captioner
from hfcap.captioning import Finishing, QualityGate, SidecarOutput, Wording, caption_images
from hfcap.captioning.sharded import ShardedJob, caption_shards
from hfcap.data.marks import Mark, append_lines, marks_of
from hfcap.data.sidecars import Sidecar, read_sidecar_file
from hfcap.errors import StoppedError, UserError
from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.clip_score import ClipScore, ClipScoreOptions
from hfcap.metrics.shared.images import DecodedImages, FileBytes
from tests.captioners.clip_folder import write_clip
from tests.captioners.helpers import write_image
from tests.captioning.test_unfinished import Stopper

Model = tuple[Captioner, str]
Screen = tuple[io.StringIO, io.StringIO]


@pytest.fixture
def stopper(monkeypatch: pytest.MonkeyPatch) -> Stopper:
    return Stopper(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, of which one lies deeper and one can't be read."""
    for number, name in enumerate(["0.png", "1.PNG", "2.b.png", "deeper/0.png", "4.png"]):
        write_image(tmp_path / "images" / name, seed=number)
    (tmp_path / "images" / "4.png").write_bytes(b"damaged")
    return tmp_path / "images"


def texts(folder: Path, ending: str = "txt") -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob(f"*.{ending}"))
    }


def caption(model: Model, folder: Path, kind: Any = "txt", existing: Any = "skip", **options: Any) -> dict[str, str]:
    """Return file name -> caption, as `caption_images` says."""
    finishing = Finishing(
        options.pop("wording", Wording()), options.pop("gate", QualityGate()), SidecarOutput(kind, existing)
    )
    found = caption_images(model[1], [str(folder)], batch_size=2, finishing=finishing, **options)
    return {Path(one.file_name).relative_to(folder).as_posix(): one.caption for one in found}


def test_a_text_file_next_to_each_image(model: Model, folder: Path, screen: Screen) -> None:
    found = caption(model, folder)
    assert list(found) == ["0.png", "1.PNG", "2.b.png", "deeper/0.png"]
    expected = {"0.txt": "0.png", "1.txt": "1.PNG", "2.b.txt": "2.b.png", "deeper/0.txt": "deeper/0.png"}
    assert texts(folder) == {sidecar: f"{found[image]}\n" for sidecar, image in expected.items()}
    # No table on the screen, and nothing else in the folders.
    assert screen[0].getvalue() == ""
    assert sum(path.is_file() for path in folder.rglob("*")) == 5 + 4


def test_what_is_there_is_skipped_and_empty_ones_are_filled(model: Model, folder: Path, stopper: Stopper) -> None:
    (folder / "0.txt").write_text("mine")
    (folder / "1.txt").write_text(" \n")
    found = caption(model, folder)
    assert list(found) == ["1.PNG", "2.b.png", "deeper/0.png"] and stopper.images == 3
    assert (folder / "0.txt").read_text() == "mine"
    assert (folder / "1.txt").read_text() == f"{found['1.PNG']}\n"
    stopper.images = 0
    (folder / "4.png").unlink()
    assert caption(model, folder) == {} and stopper.images == 0


def test_overwriting_and_appending(model: Model, folder: Path) -> None:
    (folder / "0.txt").write_bytes(codecs.BOM_UTF8 + "meins, grün\r\nzwei\r\n".encode())
    found = caption(model, folder, existing="append")
    assert (folder / "0.txt").read_bytes() == codecs.BOM_UTF8 + f"meins, grün\r\nzwei\r\n{found['0.png']}\r\n".encode()
    before = texts(folder)
    assert caption(model, folder, existing="append") == found
    assert texts(folder) == before, "a caption that is there already is not written again"
    caption(model, folder, existing="overwrite", wording=Wording(prefix="sks"))
    assert texts(folder)["deeper/0.txt"] == f"sks {found['deeper/0.png']}\n"
    assert (folder / "0.txt").read_bytes() == codecs.BOM_UTF8 + f"sks {found['0.png']}\r\n".encode()


def test_json_keeps_what_it_does_not_know(model: Model, folder: Path) -> None:
    (folder / "0.json").write_text('{"url": "https://a.b/c", "caption": "mine", "tags": [1]}')
    found = caption(model, folder, "json", "append", overrides={"num_return_sequences": 2, "num_beams": 2})
    row = json.loads((folder / "0.json").read_text(encoding="utf-8"))
    assert row["caption"] == "mine" and row["captions"][:2] == ["mine", found["0.png"]] and len(row["captions"]) == 3
    assert row["url"] == "https://a.b/c" and row["tags"] == [1] and row["score"] < 0
    other = json.loads((folder / "2.b.json").read_text(encoding="utf-8"))
    assert list(other) == ["captions", "file_name", "score"] and other["file_name"] == "2.b.png"
    caption(model, folder, "json", "overwrite")
    row = json.loads((folder / "0.json").read_text(encoding="utf-8"))
    assert row["caption"] == found["0.png"] and row["captions"] == [found["0.png"]] and row["tags"] == [1]


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_a_stopped_one_goes_on(existing: str, model: Model, folder: Path, tmp_path: Path, stopper: Stopper) -> None:
    (folder / "1.txt").write_text("" if existing == "skip" else "mine\n")
    shutil.copytree(folder, tmp_path / "whole")
    caption(model, tmp_path / "whole", existing=existing)
    stopper.batches = 1
    with pytest.raises(StoppedError, match=r"stopped after 2 images; the same command continues there"):
        caption(model, folder, existing=existing)
    assert set(texts(folder)) == {"0.txt", "1.txt"}
    # As if the power had failed between the note and the second sidecar of the batch.
    (folder / "1.txt").write_text("" if existing == "skip" else "mine\n")
    stopper.batches, stopper.images = None, 0
    caption(model, folder, existing=existing)
    assert stopper.images == (3 if existing == "skip" else 2)
    assert texts(folder) == texts(tmp_path / "whole")
    names = sorted(path.name for path in folder.rglob("*") if path.suffix not in (".txt", ".png", ".PNG"))
    assert names == ["deeper"], "what noted the progress is gone"


def test_hostile_names(model: Model, tmp_path: Path) -> None:
    names = ["-o.png", "a\nb.png", "[x]*.png", "e\u0301 'q\".png", "n" * 250 + ".png", "\udcff.png", "\udcfe.png"]
    for number, name in enumerate(names):
        write_image(tmp_path / "one.png", seed=number)
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "one.png").rename(tmp_path / "images" / name)
    caption(model, tmp_path / "images")
    found = sorted(os.fsencode(path.name) for path in (tmp_path / "images").glob("*.txt"))
    assert found == sorted(os.fsencode(name)[:-3] + b"txt" for name in names)
    caption(model, tmp_path / "images", "json")
    assert json.loads((tmp_path / "images" / "a\nb.json").read_text())["file_name"] == "a\nb.png"
    for name in ("\udcff", "\udcfe"):  # two that look the same
        text, row = (read_sidecar_file(tmp_path / "images" / f"{name}.{kind}") for kind in ("txt", "json"))
        alone = caption_images(model[1], [str(tmp_path / "images" / f"{name}.png")])
        assert text.captions == row.captions == (alone[0].caption,)


def test_what_cannot_be(model: Model, folder: Path, tmp_path: Path) -> None:
    write_image(folder / "0.jpg")
    with pytest.raises(UserError, match=r"0\.png and .*0\.jpg would share the sidecar 0\.txt; rename one"):
        caption(model, folder)
    (folder / "0.jpg").unlink()
    (folder / "0.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"0\.txt: sidecar is not UTF-8 text"):
        caption(model, folder)
    (folder / "0.txt").unlink()
    for content in ("[1]", '{"captions": "x"}', '{"caption": 1}', "{"):
        (folder / "0.json").write_text(content)
        with pytest.raises(UserError, match=r"0\.json: sidecar "):
            caption(model, folder, "json")
    finishing = Finishing(sidecars=SidecarOutput("txt"))
    with pytest.raises(UserError, match="--sidecar: writes next to image files"):
        caption_images(model[1], ["https://a.b/c.png"], finishing=finishing)


def test_words_around_captions() -> None:
    assert Wording("sks dog", ", by night").of("runs") == "sks dog runs, by night"
    assert Wording("sks dog, ", " (a photo)").of("runs") == "sks dog, runs (a photo)"
    assert Wording(suffix="#art").of("runs") == "runs #art"
    assert Wording("sks").of("") == "sks"
    for wrong in ("a\nb", "\x1b[31m", "  "):
        with pytest.raises(UserError, match="--prefix"):
            Wording(prefix=wrong)


@pytest.mark.parametrize("content", [b"a\n", b"a", b"a\r\nb\r\n", "ä\n".encode("utf-16"), b"  a \n\n", b""])
def test_a_sidecar_that_does_not_change_keeps_its_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    sidecar = read_sidecar_file(path)
    assert sidecar.with_captions(sidecar.captions) == content
    path.write_bytes(sidecar.with_captions([*sidecar.captions, "ö"]))
    assert read_sidecar_file(path).captions == (*sidecar.captions, "ö")
    assert Sidecar(tmp_path / "new.txt").with_captions(["x", "y"]) == b"x\ny\n"


@pytest.mark.parametrize("content", ['{"caption":"a"}', '{"captions": ["a"], "x": null}', '{"text": "a"}\r\n', "{}"])
def test_json_that_does_not_change_keeps_its_bytes(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, newline="")
    sidecar = read_sidecar_file(path)
    assert sidecar.with_captions(sidecar.captions) == content.encode()
    changed = json.loads(sidecar.with_captions(["c"], {"review": None}))
    assert changed.get("caption", changed.get("text", changed.get("captions"))) in ("c", ["c"])
    assert changed.keys() - {"caption"} == json.loads(content).keys() - {"caption"}


# ---- marks for review -------------------------------------------------------------------------------------------


def test_improbable_captions_are_marked(model: Model, folder: Path, screen: Screen) -> None:
    plain = caption_images(model[1], [str(folder)])
    scores = sorted(one.score or 0 for one in plain)
    assert scores[0] < scores[1]
    limit = (scores[0] + scores[1]) / 2
    found = caption_images(model[1], [str(folder)], finishing=Finishing(gate=QualityGate(min_score=limit)))
    assert [one.review for one in found] == [
        f"score {one.score:.3f} is below {limit:g}" if one.score == scores[0] else "" for one in plain
    ]
    caption(model, folder, gate=QualityGate(min_score=limit))
    marked = {**marks_of(folder), **{f"deeper/{name}": mark for name, mark in marks_of(folder / "deeper").items()}}
    assert [name for name, mark in marked.items() if mark.review] == [
        Path(one.file_name).relative_to(folder).as_posix() for one in found if one.review
    ]
    caption(model, folder, "json", gate=QualityGate(min_score=limit))
    reasons = [json.loads(text).get("review") for text in texts(folder, "json").values()]
    assert sorted(filter(None, reasons)) == [one.review for one in found if one.review]
    # Another limit takes marks back.
    caption(model, folder, existing="overwrite", gate=QualityGate(min_score=-99.0))
    assert {*marks_of(folder).values(), *marks_of(folder / "deeper").values()} == {Mark()}


def test_captions_that_do_not_fit_are_marked(model: Model, folder: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip", seed=3, spread=None)
    plain = caption_images(model[1], [str(folder)], tmp_path / "x.jsonl")
    metric = ClipScore(
        ClipScoreOptions(model=str(clip)),
        image_source=DecodedImages({one.image_id: FileBytes(Path(one.file_name)) for one in plain}),
    )
    captions = {one.image_id: one.caption for one in plain}
    values = metric.statistics(CaptionSet(captions, ReferenceSet({one: ["x"] for one in captions})))[:, 0]
    limit = float(np.mean(values))
    assert min(values) < limit - 1e-4 and max(values) > limit + 1e-4
    gate = QualityGate(min_clip_score=limit, clip_model=str(clip))
    output = tmp_path / "x.csv"
    caption_images(model[1], [str(folder)], output, batch_size=2, finishing=Finishing(gate=gate))
    with output.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    reviews = [row["review"] for row in rows]
    assert [float(row["clip_score"]) for row in rows] == pytest.approx(list(values), abs=1e-5)
    assert [bool(review) for review in reviews] == [value < limit for value in values]
    assert any(review.startswith("CLIPScore ") for review in reviews)
    job = ShardedJob(model[1], (str(folder),), tmp_path / "shards", batch_size=2, finishing=Finishing(gate=gate))
    caption_shards(job)
    rows_of_shard = pq.read_table(tmp_path / "shards/shard-00000.parquet").to_pylist()
    table = [row for row in rows_of_shard if row["problem"] is None]
    assert [row["clip_score"] for row in table] == pytest.approx(list(values), abs=1e-5)
    assert [bool(row["review"]) for row in table] == [bool(review) for review in reviews]


def test_scores_that_there_are_not(model: Model, folder: Path) -> None:
    finishing = Finishing(gate=QualityGate(min_score=-1.0))
    for overrides in ({"num_beams": 1}, {"do_sample": True, "num_beams": 1}):
        with pytest.raises(UserError, match=r"--review-below-score: greedy and sampled captions have no score"):
            caption_images(model[1], [str(folder)], overrides=overrides, finishing=finishing)


def test_a_line_that_was_cut_off_spoils_no_mark(tmp_path: Path) -> None:
    path = tmp_path / "review.jsonl"
    path.write_text('{"file_name": "a.png", "review": "x"}')
    append_lines(path, [{"file_name": "b.png", "review": "\u2028"}])
    assert marks_of(tmp_path) == {"a.png": Mark("x"), "b.png": Mark("\u2028")}
    path.write_text('{"file_name": 1}\n')
    with pytest.raises(UserError, match=r"review\.jsonl: line 1 lacks file_name or review"):
        marks_of(tmp_path)
