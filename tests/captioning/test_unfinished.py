"""A stopped captioning goes on where it was: the same file as without a stop, never mixed with another job."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import pytest

from hfcap.caption_batch import generate_captions
from hfcap.captioners.base import Captioner
from hfcap.captioning import DatasetChoice, caption_images
from hfcap.captioning import batches as batches_module
from hfcap.errors import StoppedError, UserError, WorkError
from tests.captioners.helpers import write_image
from tests.captioning.conftest import OPTIONS

Model = tuple[Captioner, str]
Screen = tuple[io.StringIO, io.StringIO]


class Stopper:
    """Counts captioned images; Ctrl-C comes before the batch that would follow `batches`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.batches: int | None = None
        self.images = 0
        self._original = generate_captions
        patch.setattr(batches_module, "generate_captions", self)

    def __call__(self, captioner: Any, images: Any, *arguments: Any, **options: Any) -> Any:
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches = None if self.batches is None else self.batches - 1
        self.images += len(images)
        return self._original(captioner, images, *arguments, **options)


@pytest.fixture
def stopper(monkeypatch: pytest.MonkeyPatch) -> Stopper:
    return Stopper(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine images, of which one can't be read."""
    for number in range(9):
        write_image(tmp_path / "images" / f"{number}.png", seed=number)
    (tmp_path / "images" / "3.png").write_bytes(b"damaged")
    return tmp_path / "images"


def stop(stopper: Stopper, behind: int, *arguments: Any, **options: Any) -> None:
    """Caption until Ctrl-C comes, two batches of two images later."""
    stopper.batches = 2
    with pytest.raises(StoppedError, match=f"stopped after {behind} images?; the same command continues there"):
        caption_images(*arguments, batch_size=2, **options)
    stopper.batches, stopper.images = None, 0


SAMPLING = {"do_sample": True, "num_beams": 1, "seed": 3, "top_p": 0.9}


@pytest.mark.parametrize(("suffix", "overrides"), [(".jsonl", SAMPLING), (".csv", {})])
def test_the_same_file_as_without_a_stop(
    suffix: str, overrides: dict[str, Any], model: Model, folder: Path, tmp_path: Path, stopper: Stopper, screen: Screen
) -> None:
    inputs: tuple[str, list[str]] = (model[1], [str(folder)])
    whole, output = tmp_path / f"whole{suffix}", tmp_path / "out" / f"stopped{suffix}"
    predictions = caption_images(*inputs, whole, overrides=overrides, batch_size=2)
    # 0 1, 2 (3) 4: the image that can't be read is behind it as well
    stop(stopper, 5, *inputs, output, overrides=overrides)
    assert not output.exists()
    (part,) = output.parent.iterdir()
    with part.open("a") as handle:
        handle.write('[{"image_id": "cut o')  # by a kill
    assert caption_images(*inputs, output, overrides=overrides, batch_size=2) == predictions
    assert stopper.images == 4
    assert output.read_bytes() == whole.read_bytes()
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    said = screen[1].getvalue()
    assert "Resuming after 5 images" in said and said.count("3.png: damaged") == 3


@pytest.mark.parametrize("change", ["options", "batch", "prompt", "image", "more images", "model"])
def test_another_job_begins_anew(
    change: str, model: Model, folder: Path, tmp_path: Path, stopper: Stopper, screen: Screen
) -> None:
    output = tmp_path / "x.jsonl"
    stop(stopper, 5, model[1], [str(folder)], output)
    location = model[1]
    options: dict[str, Any] = {"batch_size": 2}
    if change == "options":
        options["overrides"] = {"max_new_tokens": 3}
    elif change == "batch":
        options["batch_size"] = 3
    elif change == "prompt":
        options["prompt"] = "two"
    elif change == "image":
        write_image(folder / "0.png", seed=77)
    elif change == "more images":
        write_image(folder / "00.png", seed=77)
    else:
        other = tmp_path / "other"
        weight = next(model[0].model.parameters()).data
        before = weight.clone()
        weight += 0.01
        model[0].save(other, OPTIONS)
        weight.copy_(before)
        location = str(other)
    found = caption_images(location, [str(folder)], output, **options)
    assert stopper.images == len(found) == 8 + (change == "more images")
    assert "begins again, because what was begun there had another model, other options or other images" in (
        screen[1].getvalue()
    )
    assert list(tmp_path.glob("x.jsonl.*")) == []


def test_on_demand_it_begins_anew(model: Model, folder: Path, tmp_path: Path, stopper: Stopper) -> None:
    stop(stopper, 5, model[1], [str(folder)], tmp_path / "x.csv")
    caption_images(model[1], [str(folder)], tmp_path / "x.csv", batch_size=2, again=True)
    assert stopper.images == 8


def test_a_damaged_file_is_named(model: Model, folder: Path, tmp_path: Path, stopper: Stopper) -> None:
    stop(stopper, 5, model[1], [str(folder)], tmp_path / "x.csv")
    (part,) = tmp_path.glob("x.csv.part-*")
    part.write_text("no JSON\n")
    with pytest.raises(WorkError, match=r"x\.csv\.part-\w+: damaged .*delete it to begin again"):
        caption_images(model[1], [str(folder)], tmp_path / "x.csv", batch_size=2)


def test_a_second_captioning_into_the_same_file_is_refused(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.jsonl"
    original = generate_captions
    refused: list[str] = []

    def twice(*arguments: Any, **options: Any) -> Any:
        if not refused:
            with pytest.raises(UserError) as raised:
                caption_images(model[1], [str(folder)], output, overrides={"max_new_tokens": 2}, batch_size=2)
            refused.append(str(raised.value))
            assert caption_images(model[1], [str(folder)], tmp_path / "y.jsonl", batch_size=8)
        return original(*arguments, **options)

    monkeypatch.setattr(batches_module, "generate_captions", twice)
    found = caption_images(model[1], [str(folder)], output, batch_size=2)
    assert refused == [
        f"{output}: another captioning is writing there; wait until it is done, or give another name with -o"
    ]
    assert len(output.read_text().splitlines()) == len(found) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "x.jsonl", "y.jsonl"]


def test_without_a_file_nothing_is_kept(model: Model, folder: Path, stopper: Stopper) -> None:
    stopper.batches = 1
    with pytest.raises(StoppedError, match=r"stopped after 2 images; only with -o FILE would that be kept"):
        caption_images(model[1], [str(folder)], batch_size=2)


def test_a_streamed_dataset_goes_on_in_its_second_split(
    model: Model, folder: Path, tmp_path: Path, stopper: Stopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "hf" / name)
    for split, numbers in (("train", (0, 1, 2)), ("test", (4, 5, 6, 7))):
        cells = [{"bytes": (folder / f"{number}.png").read_bytes(), "path": None} for number in numbers]
        (tmp_path / "set").mkdir(exist_ok=True)
        datasets.Dataset.from_dict({"image": cells}).to_parquet(str(tmp_path / "set" / f"{split}.parquet"))
    inputs: tuple[str, list[str]] = (model[1], [str(tmp_path / "set")])
    whole = caption_images(*inputs, tmp_path / "whole.jsonl", batch_size=2, dataset=DatasetChoice())
    # Also into the dataset's own folder.
    for output in (tmp_path / "x.jsonl", tmp_path / "set" / "x.jsonl"):
        stop(stopper, 4, *inputs, output)
        assert caption_images(*inputs, output, batch_size=2) == whole
        assert stopper.images == 3
        assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
