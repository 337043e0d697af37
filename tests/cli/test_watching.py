"""Watching a run: samples of validations, status, curves, and a page that stops the training in an orderly way."""

from __future__ import annotations

import html
import io
import json
import re
import shlex
import shutil
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hfcap.caption_batch import generate_captions
from hfcap.captioners.loading import load_captioner
from hfcap.data.loading import PixelInputs
from hfcap.data.source import load_split
from hfcap.errors import StoppedError, UserError
from hfcap.files import only_one, read_json_lines
from hfcap.pages.local_server import serving_locally
from hfcap.run.curves import write_curves
from hfcap.run.live import LivePage
from hfcap.run.stages import Run
from hfcap.run.status import RunStatus, run_status, runs_status
from hfcap.run_directory.paths import RunDirectory
from tests.browser import chromium
from tests.cli.command_line import Hfcap, assert_refused, write_recipe
from tests.training.harness import tiny_recipe

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> $x^{ \x1b[31m"


def log_of(run: RunDirectory) -> list[dict[str, Any]]:
    return [row for _, row in read_json_lines(run.log, "log")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that was trained for six updates, validated every two, with two samples."""
    folder = tmp_path_factory.mktemp("watched")
    recipe = tiny_recipe("vit_gpt2", folder, max_steps=6, eval_steps=2, sample_captions=2, report_to=["tensorboard"])
    Run(recipe).execute("score")
    return RunDirectory(folder / "tiny")


def test_samples_are_the_captions_of_the_first_images(trained: RunDirectory) -> None:
    recipe = tiny_recipe("vit_gpt2", trained.path.parent, max_steps=6, eval_steps=2)
    records = load_split(recipe.data, "validation")[:2]
    rows = [row for row in log_of(trained) if "validation_loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert all([one["image_id"] for one in row["samples"]] == [one.image_id for one in records] for row in rows)
    # load_best_model_at_end: the model is that of the step with the lowest loss.
    best = min(rows, key=lambda row: row["validation_loss"])
    captioner = load_captioner(str(trained.path))
    pixels = PixelInputs(records, captioner.image_processor)
    import torch

    images = torch.stack([pixels[number] for number in range(2)])
    found = generate_captions(captioner, images, recipe.generate, plan=pixels.plan)
    assert [one["caption"] for one in best["samples"]] == [captions[0].text for captions in found]


def test_trackers_get_samples_as_texts(trained: RunDirectory) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    [folder] = {path.parent for path in (trained.path / "trackers").rglob("events.*")}
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    sample = next(row for row in log_of(trained) if "samples" in row)["samples"][0]
    [tag] = [tag for tag in events.Tags()["tensors"] if sample["image_id"] in tag]
    assert events.Tensors(tag)[0].tensor_proto.string_val[0].decode() == sample["caption"]


def test_samples_change_nothing_that_is_learnt(tmp_path: Path) -> None:
    losses = []
    for n_samples in (0, 3):
        recipe = tiny_recipe("blip", tmp_path / str(n_samples), max_steps=4, eval_steps=1, sample_captions=n_samples)
        Run(recipe).execute("train")
        rows = log_of(RunDirectory(tmp_path / str(n_samples) / "tiny"))
        losses.append([row.get("loss", row.get("validation_loss")) for row in rows])
    assert losses[0] == losses[1]


def test_status_of_a_run(trained: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    status = run_status(trained.path)
    rows = [row for row in log_of(trained) if "samples" in row]
    assert (status.step, status.total, status.next_stage, status.works) == (6, 6, "card", False)
    assert status.samples == rows[-1]["samples"] and status.seconds_left == 0
    lines = list(status.lines())
    assert lines[0].endswith(": stopped before the end of stage 'card'")
    assert lines[1].startswith("step 6 of 6, epoch ") and "left" not in lines[1]
    assert lines[2] == f"validation at step 6: loss {rows[-1]['validation_loss']:.4f}"
    assert lines[3] == f"  {rows[-1]['samples'][0]['image_id']}: {rows[-1]['samples'][0]['caption']}"
    assert lines[-1].startswith("scores of test: ") and "CIDEr-D " in lines[-1]


def test_remaining_time_and_work(trained: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "half")
    run.path.mkdir()
    run.recipe.write_bytes(trained.recipe.read_bytes())
    assert list(run_status(run.path).lines()) == [f"{run.path}: stopped before the end of stage 'train'"]
    rows = [{"step": 2, "epoch": 0.5, "loss": 3.0, "train_seconds": 40.0, "images_per_second": 1.25}]
    run.log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with only_one(run.lock, "busy"):
        status = run_status(run.path)
        assert status.works and status.total == 6 and status.seconds_left == 80
    assert list(status.lines()) == [
        f"{run.path}: working on stage 'train'",
        "step 2 of 6, epoch 0.50, loss 3.000, 1.2 images/s, about 0:01:20 left, validations not counted",
    ]
    run.lock.touch()  # of a process that was killed
    assert run_status(run.path).works is False
    text = run.recipe.read_text().replace("max_steps: 6", "max_steps: null")
    text = text.replace("num_train_epochs: null", "num_train_epochs: 3")
    run.recipe.write_text(text)
    assert run_status(run.path).total == 12


def test_a_log_of_strangers(trained: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / HOSTILE.partition("/")[0])
    run.path.mkdir()
    run.recipe.write_bytes(trained.recipe.read_bytes())
    samples = [{"image_id": HOSTILE, "caption": HOSTILE}, {"image_id": 1}, "x"]
    rows: list[dict[str, Any]] = [
        {"step": 1, "loss": "x", "epoch": True, "train_seconds": None, "validation_loss": HOSTILE, "samples": 3},
        {"step": 2, "loss": 1e400, "epoch": 0, "samples": samples, "validation_loss": 1.0},
        {"step": 3, "loss": 2.0, "validation_loss": 2.0, "samples": samples},
        {"step": 4, "loss": 1.0},
    ]
    run.log.write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    status = run_status(run.path)
    assert status.samples == samples[:1]
    write_curves([status], tmp_path / "curves.html")
    page = (tmp_path / "curves.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page and "\x1b" not in page and "training loss" in page


def test_curves(trained: RunDirectory, tmp_path: Path) -> None:
    one = run_status(trained.path)
    other = RunStatus(tmp_path / "other", False, None, rows=[{"step": 1, "loss": 2.0}, {"step": 9, "loss": 1.0}])
    write_curves([one, other], tmp_path / "curves.html")
    page = (tmp_path / "curves.html").read_text(encoding="utf-8")
    assert page.count('class="plot"') == 3 and "Content-Security-Policy" in page
    for row in [row for row in log_of(trained) if "samples" in row]:
        for sample in row["samples"]:
            assert html.escape(sample["caption"]) in page
    write_curves([one, other], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG" and image.height > image.width / 2
    before = (tmp_path / "curves.png").read_bytes()
    write_curves([one, other], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == before
    with pytest.raises(UserError, match=r"holds nothing to draw yet"):
        write_curves([RunStatus(tmp_path, True, "train", rows=[{"step": 1, "loss": 2.0}])], tmp_path / "x.html")
    with pytest.raises(UserError, match="named twice"):
        runs_status([trained.path, trained.path / "."])


def test_commands(trained: RunDirectory, tmp_path: Path, hfcap: Hfcap) -> None:
    found = hfcap("status", trained.path)
    assert found.code == 0 and "step 6 of 6" in found.out
    found = hfcap("plot", trained.path, "-o", tmp_path / "c.html")
    assert found.code == 0 and (tmp_path / "c.html").is_file()
    assert_refused(hfcap("plot", trained.path, "-o", tmp_path / "c.pdf"), "c.pdf", ".html or .png")
    for command in (("status",), ("plot", "-o", tmp_path / "x.png"), ("watch",)):
        assert_refused(hfcap(*command, tmp_path), "not a run directory")


def test_the_commands_of_the_page_work(
    trained: RunDirectory, tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "other"):
        shutil.copytree(trained.path, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    [block] = [text for text in re.findall(r"^```bash\n(.*?)^```$", page, re.M | re.S) if "hfcap status" in text]
    lines = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert [line[0] for line in lines] == ["status", "plot", "watch"]
    for line in lines[:2]:
        assert hfcap(*line).code == 0
    assert (tmp_path / "curves.html").is_file()


def test_validation_says_samples(tmp_path: Path, hfcap: Hfcap) -> None:
    found = hfcap("train", write_recipe(tmp_path, train={"sample_captions": 1}))
    assert found.code == 0
    [row] = [row for row in log_of(RunDirectory(tmp_path / "runs" / "tiny")) if "samples" in row]
    assert f"  {row['samples'][0]['image_id']}: {row['samples'][0]['caption']}".rstrip() in found.err


# ---- the live page ----------------------------------------------------------------------------------------------


def test_the_page_stops_a_training(tmp_path: Path, one_thread: None) -> None:
    recipe = tiny_recipe("vit_gpt2", tmp_path, max_steps=5000, eval_steps=5000)
    run, stopped = RunDirectory(tmp_path / "tiny"), []

    def ask_to_stop() -> None:
        while not run.log.is_file():
            time.sleep(0.02)
        with serving_locally(LivePage(run.path)) as server:
            request = urllib.request.Request(server.address + "stop", b"{}")
            request.add_header("Content-Type", "application/json")
            request.add_header("Origin", server.address.partition("/")[0] + "//" + server.address.split("/")[2])
            with urllib.request.urlopen(request) as answer:
                stopped.append(answer.status)

    asking = threading.Thread(target=ask_to_stop)
    asking.start()
    with pytest.raises(StoppedError, match=r"stopped at step \d+ of 5000"):
        Run(recipe).execute("train")
    asking.join()
    assert stopped == [200]
    step = run_status(run.path).step
    assert 0 < step < 5000
    assert [path.name for path in run.checkpoints.iterdir()] == [f"step-{step:08d}"]
    # The same command goes on: what was asked for then no longer counts.
    shorter = tiny_recipe("vit_gpt2", tmp_path, max_steps=5000, eval_steps=5000)
    assert run.stop_request.exists()
    thread = threading.Timer(0.5, lambda: run.stop_request.write_text("again"))
    thread.start()
    with pytest.raises(StoppedError):
        Run(shorter).execute("train")
    thread.join()
    assert run_status(run.path).step > step


def test_nothing_can_be_stopped_where_nothing_goes_on(trained: RunDirectory) -> None:
    page = LivePage(trained.path)
    with pytest.raises(UserError, match="no training is going on"):
        page.post("stop", {})
    assert not trained.stop_request.exists() and page.post("other", {}) is None and page.get("other") is None
    state = json.loads((page.get("state") or pytest.fail()).content)
    assert state["can_stop"] is False and (state["step"], state["total"]) == (6, 6)


def test_a_browser_shows_it(trained: RunDirectory, tmp_path: Path) -> None:
    with serving_locally(LivePage(trained.path)) as server:
        shown = chromium(server.address, tmp_path, "--virtual-time-budget=5000", "--window-size=600,900")
    sample = log_of(trained)[-1]["samples"][0]
    assert 'data-ready="yes"' in shown and shown.count('class="plot"') == 3
    assert html.escape(sample["caption"], quote=False) in shown and "step 6 of 6" in shown
    button = re.search(r"<button id=\"stop\"[^>]*>", shown)
    assert button is not None and "disabled" in button[0]
    assert io.StringIO(shown).readline().startswith("<!DOCTYPE html>")
