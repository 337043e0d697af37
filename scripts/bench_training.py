"""Captions per second and peak memory of training: hfcap against transformers' Trainer with one row per caption.

    python scripts/bench_training.py [--size small] [--families blip vit_gpt2] [--output bench_training.json]

Both sides: the same random weights, 5 captions per image with COCO's lengths, the same captions per update, precision
and optimiser, images already decoded. The Trainer's rows are padded to the longest of their batch and carry no label
there. Cases: `full` trains all weights; `lora` trains LoRA on the decoder after a frozen encoder, hfcap with a filled
feature store (and, computed from the encoder's measured time, with the one-off encoding spread over 5 epochs).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from bench_floor import floors, flop_counter  # type: ignore[import-not-found]  # next to this script, run as a file
from bench_models import (  # type: ignore[import-not-found]  # next to this script, which runs as a file
    END,
    PAD,
    START,
    as_captioner,
    build_model,
    image_size,
    prepare_process,
    random_captions,
)
from bench_sides import (  # type: ignore[import-not-found]
    Clock,
    arithmetic_text,
    benchmark_parser,
    floor_text,
    in_turns,
    machine,
    machine_text,
    options_for_child,
    ratio_text,
    summaries,
)
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch.nn.utils.rnn import pad_sequence
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback, TrainingArguments

from hfcap import registry
from hfcap.captioners.adaptation.lora import add_lora
from hfcap.captioners.base import Captioner
from hfcap.data.loading import BatchLoader, CaptionBatch, CaptionDataset, Collate, epoch_batches
from hfcap.data.packing import pack_captions
from hfcap.files import write_json
from hfcap.recipe.blocks import LoraOptions, TrainOptions
from hfcap.training.acceleration import compile_layers, use_cheap_layers
from hfcap.training.objectives.cross_entropy import CrossEntropy
from hfcap.training.optimization import build_optimizer, freeze_parts, frozen_modules, trained_parameters

SIDES = ("trainer", "hfcap")
K = 5
EPOCHS = 5
LORA = LoraOptions()
STEP = 0.1
"""Length of the step after which `--compare-step` compares losses."""


class RandomInputs:
    """Images (or stored states in bfloat16, as the feature store keeps them) that need no decoding."""

    plan = None

    def __init__(self, count: int, shape: tuple[int, ...], encoded: bool) -> None:
        self.encoded = encoded
        self.count = count
        self.values = torch.randn(4, *shape, dtype=torch.bfloat16 if encoded else torch.float32)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.values[index % 4]


def measure_ours(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """Train a few updates as hfcap's loop does."""
    family, size = options.family, options.size
    captioner = as_captioner(family, build_model(family, size), size)
    side = image_size(family, size)
    accelerator = Accelerator(mixed_precision=options.precision)
    captioner.model.to(accelerator.device)
    result: dict[str, Any] = {"loss": _mean(lambda: _our_losses(captioner, side, accelerator))}
    shape: tuple[int, ...] = (3, side, side)
    if case == "lora":
        torch.manual_seed(0)
        add_lora(captioner, LORA)
        captioner.model.to(accelerator.device)
        shape, result["encode_seconds_per_image"] = _encoding(captioner, options.images, side, accelerator)
    train = TrainOptions(max_steps=1, per_device_train_batch_size=options.images)
    freeze_parts(captioner, train)
    use_cheap_layers(captioner.model)
    n_images = options.images * options.accumulation * (options.steps + 5)
    # Enough for length grouping to do what it does in training.
    captions = random_captions(captioner.model, max(n_images, 16 * options.images), K)
    inputs = RandomInputs(len(captions), shape, case == "lora")
    collate = Collate([START], captioner.end_token_id, captioner.pad_token_id, inputs)
    batches = epoch_batches([sum(map(len, of_image)) for of_image in captions], options.images, 0, 0)
    loader = BatchLoader(CaptionDataset(inputs, captions, K, 0), collate, 0).load(batches, 0)
    if options.compile:
        compile_layers(captioner.model)
    parameters = list(trained_parameters(captioner.model).values())
    if options.compare_step:
        result["loss_after_step"] = _after_step(lambda: _our_losses(captioner, side, accelerator), parameters)
    plain = CrossEntropy(captioner, 0.0)
    objective = accelerator.prepare(plain).train()
    optimizer = accelerator.prepare(build_optimizer(captioner, train))
    for module in frozen_modules(captioner):
        module.eval()

    def update(window: list[CaptionBatch]) -> None:
        tokens = sum(map(plain.units, window))
        for batch in window:
            accelerator.backward(objective(batch) / tokens)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    windows: list[list[CaptionBatch]] = []
    clock = Clock()
    for _ in range(options.steps + 1):
        windows.append([next(loader).to(accelerator.device) for _ in range(options.accumulation)])
        update(windows[-1])
        clock.tick()
    result |= clock.result() | {"captions": sum(batch.n_captions for batch in windows[0])}
    # Captions differ in length: the floor is that of the update whose time stands for all.
    middle = windows[1 + result["seconds"].index(statistics.median_high(result["seconds"]))]
    if torch.cuda.is_available():
        result["gpu_busy_share"] = _busy_share(lambda: update(middle))
    if options.precision == "no" and not options.compile:
        # AdamW reads weights, gradients and two averages, and writes all but the gradients.
        moved = 7 * sum(weight.numel() * weight.element_size() for weight in parameters)
        result |= floors(lambda: update(middle), own_bytes=moved)
    return result


@torch.inference_mode()
def _encoding(captioner: Captioner, count: int, side: int, accelerator: Accelerator) -> tuple[tuple[int, ...], float]:
    """Return the shape of an image's states and the seconds for one image, among `count` at once."""
    images = torch.randn(count, 3, side, side, device=accelerator.device)
    clock = Clock()
    with accelerator.autocast():
        for _ in range(4):
            states = captioner.encode(images)
            clock.tick()
    return tuple(states.shape[1:]), statistics.median(clock.result()["seconds"]) / count


def _same_batch(model: Any, side: int) -> tuple[torch.Tensor, list[list[list[int]]]]:
    """Return the images and captions whose loss both sides tell: the same weights must give the same."""
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(7))
    return pixels, random_captions(model, 2, K, seed=7)


def _our_losses(captioner: Captioner, side: int, accelerator: Accelerator) -> Iterator[torch.Tensor]:
    pixels, captions = _same_batch(captioner.model, side)
    packed = pack_captions(captions, [START], captioner.end_token_id, captioner.pad_token_id)
    batch = CaptionBatch(pixels, False, packed, 2 * K).to(accelerator.device)
    objective = CrossEntropy(captioner, 0.0).eval()
    with accelerator.autocast():
        yield objective(batch) / objective.units(batch)


@torch.inference_mode()
def _mean(losses: Callable[[], Iterator[torch.Tensor]]) -> float:
    return sum(float(part) for part in losses())


def _after_step(losses: Callable[[], Iterator[torch.Tensor]], parameters: list[torch.nn.Parameter]) -> float:
    """Return the loss of the same batch after one step of gradient descent, which tells gradients apart."""
    for part in losses():
        (1024 * part).backward()  # float16 has no small gradients
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    length = torch.stack([gradient.norm() for gradient in gradients]).norm()
    with torch.no_grad():
        for each, gradient in zip(parameters, gradients, strict=True):
            each.sub_(gradient * (STEP / length))
            each.grad = None
    return _mean(losses)


def _busy_share(update: Callable[[], object], updates: int = 3) -> float:
    """Share of the time of some updates in which the GPU computed."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(updates):
            update()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return sum(event.self_device_time_total for event in profiled.key_averages()) / 1e6 / seconds


class TrainerClock(TrainerCallback):
    """Lets the Trainer tick a clock after every update, and counts the products of the one that warms up."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.counted = flop_counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Called by the Trainer."""
        self.clock.restart()
        self.counted.__enter__()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the Trainer."""
        if len(self.clock.marks) == 1:
            self.counted.__exit__(None, None, None)
        self.clock.tick()


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """One caption per row, as a script for the Trainer prepares them."""

    def __init__(self, captions: list[list[list[int]]], side: int) -> None:
        self.rows = [(image, caption) for image, of_image in enumerate(captions) for caption in of_image]
        self.images = torch.randn(4, 3, side, side)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, caption = self.rows[index]
        return {"pixel_values": self.images[image % 4], "caption": caption}


def row_collate(family: str) -> Any:
    """Pad to the longest caption of the batch; padding carries no label. Models shift labels themselves."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([row["pixel_values"] for row in rows])
        ends = [torch.tensor([*row["caption"], END]) for row in rows]
        if family == "vit_gpt2":  # puts its start token in front of the labels
            return {"pixel_values": pixels, "labels": pad_sequence(ends, batch_first=True, padding_value=-100)}
        ids = [torch.cat([torch.tensor([START]), row]) for row in ends]
        padded = pad_sequence(ids, batch_first=True, padding_value=PAD)
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        labels = padded.masked_fill(mask == 0, -100)
        labels[:, 0] = -100
        return {"pixel_values": pixels, "input_ids": padded, "attention_mask": mask, "labels": labels}

    return collate


def _their_losses(model: Any, options: argparse.Namespace) -> Iterator[torch.Tensor]:
    """Share of each caption, in a row of its own, in the mean loss, by the model's own forward."""
    pixels, captions = _same_batch(model, image_size(options.family, options.size))
    collate = row_collate(options.family)
    rows = [(pixels[image], caption) for image, of_image in enumerate(captions) for caption in of_image]
    tokens = sum(len(caption) + 1 for _, caption in rows)
    kind = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    model.eval()
    for image, caption in rows:
        made = collate([{"pixel_values": image, "caption": caption}])
        inputs = {name: value.to(model.device) for name, value in made.items()}
        with torch.autocast(model.device.type, dtype=kind, enabled=kind is not None):
            loss = model(**inputs).loss
        yield loss * ((len(caption) + 1) / tokens)
    model.train()


def measure_trainer(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """Train a few updates with transformers' Trainer."""
    family, size = options.family, options.size
    model = build_model(family, size).to("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {"loss": _mean(lambda: _their_losses(model, options))}
    if case == "lora":
        torch.manual_seed(0)
        lora = LoraConfig(
            target_modules=registry.load("captioners", family).REGISTERED.lora_target_modules,
            modules_to_save=["mapper"] if family == "clip_prefix" else None,
            fan_in_fan_out=family != "blip",
            **LORA.model_dump(include={"r", "lora_alpha", "lora_dropout"}),
        )
        model = get_peft_model(model, lora)
    if options.compare_step:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        result["loss_after_step"] = _after_step(lambda: _their_losses(model, options), trained)
    captions = random_captions(model, options.images * options.accumulation * (options.steps + 1), K)
    clock = TrainerClock(Clock())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=options.images * K,
            gradient_accumulation_steps=options.accumulation,
            max_steps=options.steps + 1,
            learning_rate=5e-5,
            max_grad_norm=1.0,
            bf16=options.precision == "bf16",
            fp16=options.precision == "fp16",
            use_cpu=not torch.cuda.is_available(),  # it takes bf16 on a CPU only if told
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Rows(captions, image_size(family, size)),
            data_collator=row_collate(family),
            callbacks=[clock],
        )
        trainer.train()
    captions_per_update = arguments.train_batch_size * arguments.gradient_accumulation_steps
    gflop = clock.counted.get_total_flops() / 1e9
    return {**result, **clock.clock.result(), "captions": captions_per_update, "gflop": gflop}


def compare(options: argparse.Namespace, family: str, case: str) -> dict[str, Any]:
    """Run both sides in turns, each in its own process, and return what was measured with the ratios."""
    images = options.images or (2 if case == "full" and family == "blip" else 4)
    common = options_for_child(options, ("size", "threads", "steps", "accumulation", "precision"))
    common += ["--family", family, "--case", case, "--images", str(images)]
    common += [f"--{name.replace('_', '-')}" for name in ("compile", "compare_step") if getattr(options, name)]
    runs = in_turns(__file__, common, SIDES, options.rounds)
    [captions] = {run["captions"] for of_side in runs.values() for run in of_side}
    row: dict[str, Any] = {"family": family, "case": case, "captions_per_update": captions}
    row |= summaries(runs, "captions", captions)
    for name in ("loss", "loss_after_step") if options.compare_step else ("loss",):
        row[name] = {side: of_side[0][name] for side, of_side in runs.items()}
    if "gpu_busy_share" in runs["hfcap"][0]:
        row["gpu_busy_share"] = statistics.median(run["gpu_busy_share"] for run in runs["hfcap"])
    if case == "lora":
        encode = statistics.median(run["encode_seconds_per_image"] for run in runs["hfcap"])
        per_caption = 1 / row["hfcap"]["captions_per_second"] + encode / (K * EPOCHS)
        row["ratio_with_encoding_over_5_epochs"] = 1 / per_caption / row["trainer"]["captions_per_second"]
    return row


def show(rows: list[dict[str, Any]], title: str, even_if_busy: bool) -> None:
    """Print the ratio table."""
    head = ("Trainer captions/s", "hfcap captions/s", "ratio", "by processor time", "by arithmetic", "memory")
    table = Table("captioner", "case", *head, "of the floors' speed", title=title)
    for row in rows:
        ours, theirs = row["hfcap"], row["trainer"]
        table.add_row(
            row["family"],
            row["case"],
            f"{theirs['captions_per_second']:.2f}",
            f"{ours['captions_per_second']:.2f}",
            ratio_text(row, "ratio_captions_per_second", even_if_busy),
            ratio_text(row, "ratio_captions_per_processor_second", even_if_busy),
            arithmetic_text(row),
            f"{ours['peak_memory_bytes'] / 2**30:.2f} / {theirs['peak_memory_bytes'] / 2**30:.2f} GiB",
            floor_text(row),
        )
        if "ratio_with_encoding_over_5_epochs" in row:
            spread = ratio_text(row, "ratio_with_encoding_over_5_epochs", even_if_busy)
            table.add_row("", "with encoding, 5 epochs", "", "", spread)
    Console().print(table)


def main() -> None:
    """Measure one side (child process), or all."""
    parser = benchmark_parser(__doc__, SIDES)
    parser.add_argument("--cases", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--steps", type=int, default=3, help="updates that count, after one that warms up")
    parser.add_argument("--images", type=int, help="images per micro-batch; each brings 5 captions")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per update, on both sides")
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument("--compile", action="store_true", help="hfcap's side as with train.torch_compile")
    parser.add_argument("--compare-step", action="store_true", help="also compare the loss after one plain step")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare_process(options.threads, options.side)
    if options.side:
        measure = measure_ours if options.side == "hfcap" else measure_trainer
        print(json.dumps(measure(options, options.case)))
        return
    result: dict[str, Any] = {"machine": machine(), "threads": options.threads, "size": options.size}
    result |= {"precision": options.precision, "rows": []}
    for family in options.families:
        for case in options.cases:
            if case == "full" and family == "clip_prefix":
                continue  # ClipCap's encoder stays frozen
            result["rows"].append(compare(options, family, case))
            if options.output:
                write_json(options.output, result)
    show(result["rows"], machine_text(result["machine"]), options.even_if_busy)


if __name__ == "__main__":
    main()
