"""What more processes gain on this machine, how much of it communication takes, and what that means for many images.

    python -m scripts.bench_scaling measure [--processes 1 2] [--images 3000] [--steps 40]
    python -m scripts.bench_scaling project --images 10000000 --images-per-second 100 --gpus 8 --price-per-hour 2.5

`measure` captions generated images (ViT-GPT2 of the quick start's size, random weights) in shards, and trains the same
model data-parallel, with one thread in each process. `project` computes time and cost by the formulas of
docs/scaling.md from numbers that you give.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hfcap.data.source import load_split
from hfcap.files import write_bytes
from hfcap.recipe.loading import load_recipe

ROOT = Path(__file__).resolve().parents[1]
MICRO_BATCHES = 8
"""Of one update, in the training that hardly communicates."""
_PER_SHARD, _BATCH = 100, 8


@dataclass(frozen=True)
class Training:
    """Seconds of a training in so many processes.

    Attributes:
        per_batch: of a micro-batch after which gradients are exchanged and weights are updated.
        without: of one after which they are not.
    """

    processes: int
    per_batch: float
    without: float

    @property
    def update(self) -> float:
        """Seconds that an exchange and an update take, as far as computing does not hide them."""
        return max(0.0, self.per_batch - self.without)


def between(often: float, seldom: float) -> tuple[float, float]:
    """Return seconds of a micro-batch with an update after each, and of one without.

    Args:
        often: seconds of a micro-batch where an update follows each. seldom: where it follows MICRO_BATCHES of them.
    """
    update = (often - seldom) * MICRO_BATCHES / (MICRO_BATCHES - 1)
    return often, often - update


def communication_share(several: Training, one: Training) -> float:
    """Return which part of a micro-batch several processes spend on what one does not: exchange and waiting."""
    return max(0.0, several.update - one.update) / several.per_batch


def hours_and_cost(images: float, per_second: float, gpus: int, price: float, busy: float) -> tuple[float, float]:
    """Return the hours that captioning takes, and what all GPUs cost meanwhile.

    Args:
        images: in all. per_second: images of one GPU. price: of a GPU and hour.
        busy: share of the time in which a GPU captions: the rest is starting, unfinished shards, waiting at the end.
    """
    hours = images / (per_second * gpus * busy) / 3600
    return hours, hours * gpus * price


def training_speed_up(compute: float, exchange_bytes: float, bandwidth: float, gpus: int, hidden: float) -> float:
    """Return how many times as many images as one GPU so many train, each with its own batch.

    A ring sends and receives 2 (n - 1) / n of the gradients' bytes (Patarasuk and Yuan 2009, "Bandwidth optimal
    all-reduce algorithms for clusters of workstations").

    Args:
        compute: seconds of an update on one GPU. exchange_bytes: of all gradients. bandwidth: bytes a second of each
            link. hidden: share of the exchange that goes on while gradients are computed.
    """
    exchange = 2 * (gpus - 1) / gpus * exchange_bytes / bandwidth
    return gpus * compute / (compute + exchange * (1 - hidden))


def _run(command: Sequence[str], processes: int | None = None) -> None:
    """Run hfcap, or several of it that train together, with one thread each."""
    start = [sys.executable, "-m", "hfcap"]
    if processes is not None and processes > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "hfcap"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*start, *command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-3000:]}")


def _quickstart() -> Path:
    return ROOT / "recipes" / "quickstart.yaml"


def _recipe(folder: Path, name: str, **train: Any) -> Path:
    """Write the quick start's recipe with other training, and without what follows it."""
    recipe = load_recipe(_quickstart())
    values = recipe.model_dump(mode="json", exclude_unset=True)
    values |= {"name": name, "output_dir": str(folder)}
    kept = {key: values["train"][key] for key in ("learning_rate",)}
    values["train"] = {**kept, "logging_steps": 5, "dataloader_num_workers": 0, "sample_captions": 0, **train}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def measured_captioning(folder: Path, model: Path, images: Path, processes: int) -> float:
    """Return images a second between the first and the last shard, all processes together."""
    output = folder / f"captions-{processes}"
    options = ["--to-shards", "parquet", "--images-per-shard", str(_PER_SHARD), "--num-processes", str(processes)]
    _run(["caption", str(model), str(images), "-o", str(output), *options])
    times = sorted(path.stat().st_mtime for path in output.glob("shard-*.parquet"))
    skipped = processes  # while the later processes start, the first works alone
    return (len(times) - skipped) * _PER_SHARD / (times[-1] - times[skipped - 1])


def measured_training(folder: Path, processes: int, steps: int) -> Training:
    """Train with an update after each micro-batch, and after eight; returns the medians of windows of the log."""
    seconds = []
    for accumulated in (1, MICRO_BATCHES):
        name = f"train-{processes}-{accumulated}"
        updates = max(10, steps // accumulated)
        options = {"max_steps": updates, "eval_steps": updates, "save_steps": updates}
        recipe = _recipe(
            folder, name, gradient_accumulation_steps=accumulated, per_device_train_batch_size=_BATCH, **options
        )
        _run(["train", str(recipe)], processes)
        rows = map(json.loads, (folder / name / "log.jsonl").read_text(encoding="utf-8").splitlines())
        speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
        seconds.append(_BATCH * processes / statistics.median(speeds[1:]))
    return Training(processes, *between(*seconds))


def measure(given: argparse.Namespace) -> None:
    """Print how fast so many processes are."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run(["train", str(_recipe(folder, "model", max_steps=1, eval_steps=1))])
        recipe = load_recipe(_quickstart(), [f"data.n_test={given.images}"])
        for number, record in enumerate(load_split(recipe.data, "test")):
            write_bytes(folder / "images" / f"{number:06d}.png", record.image.read())
        trainings: list[Training] = []
        print("| processes | images/s captioned | images/s trained | time of a micro-batch | communication |")
        print("|---|---|---|---|---|")
        for processes in given.processes:
            captioned = measured_captioning(folder, folder / "model", folder / "images", processes)
            trainings.append(measured_training(folder, processes, given.steps))
            now = trainings[-1]
            print(
                f"| {processes} | {captioned:.1f} | {_BATCH * processes / now.per_batch:.1f} | "
                f"{now.per_batch * 1000:.0f} ms | {communication_share(now, trainings[0]):.0%} |",
                flush=True,
            )


def project(given: argparse.Namespace) -> None:
    """Print time and cost of captioning."""
    hours, cost = hours_and_cost(given.images, given.images_per_second, given.gpus, given.price_per_hour, given.busy)
    print(f"{given.images:,} images on {given.gpus} GPUs: {hours:,.1f} hours, {hours / 24:,.1f} days, cost {cost:,.0f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure or project."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    tasks = parser.add_subparsers(required=True)
    measuring, projecting = tasks.add_parser("measure"), tasks.add_parser("project")
    measuring.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="one of them first")
    measuring.add_argument("--images", type=int, default=3000, help="to caption")
    measuring.add_argument("--steps", type=int, default=40, help="micro-batches to train with, about")
    measuring.set_defaults(task=measure)
    projecting.add_argument("--images", type=int, required=True)
    projecting.add_argument("--images-per-second", type=float, required=True, help="of one GPU, as hfcap caption says")
    projecting.add_argument("--gpus", type=int, default=1)
    projecting.add_argument("--price-per-hour", type=float, required=True, help="of a GPU")
    projecting.add_argument("--busy", type=float, default=0.95, help="share of the time in which a GPU captions")
    projecting.set_defaults(task=project)
    given = parser.parse_args(arguments)
    given.task(given)


if __name__ == "__main__":
    main()
