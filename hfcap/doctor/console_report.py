"""The report for people: coloured at a terminal, plain text (ignored tokens in brackets) everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hfcap.doctor.cost import Cost
from hfcap.doctor.dataset import DataFacts
from hfcap.doctor.labels import LabelFacts, ShownCaption
from hfcap.doctor.measurement import Measurement
from hfcap.doctor.pixels import PixelFacts
from hfcap.doctor.report import DoctorReport
from hfcap.doctor.tokens import TokenFacts
from hfcap.doctor.train_generate_parity import AgreementFacts
from hfcap.doctor.weights import WeightFacts
from hfcap.text import gigabytes, printable

_SUPERVISED, _IGNORED = "bold green", "bright_black"
_MAX_LISTED_SIZES = 4
_BUSY = 1.2
_MUCH_FASTER = 1.5


def print_report(console: Console, report: DoctorReport, sheet: Path | None) -> None:
    """Print the problems, then every topic that was examined; `sheet` is the contact sheet's path."""
    _print_problems(console, report)
    if report.data is not None:
        _section(console, "Data", _data_lines(report.data, report.tokens))
    if report.pixels is not None:
        _section(console, "Images", _pixel_lines(report.pixels, sheet))
    if report.weights is not None:
        _print_weights(console, report.weights)
    if report.labels is not None:
        _print_labels(console, report.labels)
    if report.agreement is not None:
        _section(console, "Training and generation", _agreement_lines(report.agreement))
    if report.measured is not None and report.cost is not None:
        _section(console, f"Cost on {report.measured.device}", _cost_lines(report.measured, report.cost))
    console.print()


def _section(console: Console, title: str, lines: Iterator[str]) -> None:
    console.print(f"\n{title}", style="bold", markup=False)
    for line in lines:
        _print_indented(console, Text(line))


def _print_indented(console: Console, text: Text, by: int = 2) -> None:
    # Captions, file names and columns are strangers' text, whose control characters would command the terminal.
    text.plain = printable(text.plain)
    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, by)))
    else:
        # Whole lines, so that the output can be searched.
        console.print(Text(" " * by) + text, soft_wrap=True)


def _data_lines(data: DataFacts, tokens: TokenFacts | None) -> Iterator[str]:
    for name, split in data.splits.items():
        sizes = [f"{count:,} with {captions}" for captions, count in split.captions_per_image.items()]
        listed = ", ".join(sizes[:_MAX_LISTED_SIZES]) + (", ..." if len(sizes) > _MAX_LISTED_SIZES else "")
        low, middle, high = split.words
        yield (
            f"{name}: {split.n_images:,} images, {split.n_captions:,} captions ({listed}); words per caption "
            f"{low} to {high}, median {middle:g}"
        )
    train = data.splits["train"]
    yield (
        f"training captions: {data.distinct_captions:,} different, {train.one_word_captions:,} of one word, "
        f"{train.repeated_captions:,} repeated for the same image"
    )
    yield "most frequent: " + "; ".join(f"{text!r} ({count:,})" for text, count in data.most_frequent[:3])
    for name, shared in data.shared_with_train.items():
        same = "not compared" if shared.same_bytes is None else f"{shared.same_bytes:,}"
        yield (
            f"{name} images also in train: {shared.same_id:,} by id, {shared.same_file_name:,} by file name, "
            f"by content {same}"
        )
    if tokens is not None:
        low, middle, high = tokens.tokens
        yield (
            f"tokens per caption {low} to {high}, median {middle:g}; {tokens.cut:,} captions cut, "
            f"{tokens.unknown:,} unknown tokens"
        )


def _pixel_lines(pixels: PixelFacts, sheet: Path | None) -> Iterator[str]:
    height, width = pixels.size
    (small_width, small_height), (large_width, large_height) = pixels.original_sizes
    yield (
        f"{width} x {height} pixels, made from {small_width} x {small_height} to {large_width} x {large_height} "
        f"({pixels.n_images} images)"
    )
    for name, channel in zip(("red", "green", "blue"), pixels.channels, strict=False):
        yield f"{name}: {channel.lowest:.2f} to {channel.highest:.2f}, mean {channel.mean:.2f}"
    yield f"without normalisation: {pixels.restored[0]:.2f} to {pixels.restored[1]:.2f} (right: within 0 to 1)"
    if sheet is not None:
        yield f"what the captioner sees: {sheet}"


def _print_weights(console: Console, weights: WeightFacts) -> None:
    console.print("\nWeights", style="bold")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("  part", "parameters", "trained", "frozen"):
        table.add_column(title, justify="left" if title == "  part" else "right")
    for name, part in weights.parts.items():
        table.add_row(f"  {name}", f"{part.parameters:,}", f"{part.trained:,}", f"{part.frozen:,}")
    frozen = weights.parameters - weights.trained
    table.add_row("  all", f"{weights.parameters:,}", f"{weights.trained:,}", f"{frozen:,}")
    console.print(table)
    share = weights.trained / max(weights.parameters, 1)
    _print_indented(console, Text(f"{share:.2%} are trained; {weights.dtype}, {gigabytes(weights.weight_bytes)}"))
    if weights.lora is not None:
        hits = ", ".join(f"{ending} ({count})" for ending, count in weights.lora.adapted.items())
        _print_indented(console, Text(f"LoRA adapts {sum(weights.lora.adapted.values())} layers: {hits}"))
        _print_indented(console, Text(weights.lora.coverage.sentence()))
        in_full = ", ".join(weights.lora.in_full) or "none"
        _print_indented(console, Text(f"trained in full besides the adapters: {in_full}"))


def _print_labels(console: Console, labels: LabelFacts) -> None:
    coloured = console.is_terminal and not console.no_color
    legend = Text("\nTokens in the loss ", style="bold")
    if coloured:
        legend.append("(in the loss", style=_SUPERVISED).append(", ").append("ignored", style=_IGNORED).append(")")
    else:
        legend.append("(ignored tokens in [brackets])")
    console.print(legend)
    for file_name, captions in groupby(labels.shown, key=lambda caption: caption.file_name):
        _print_indented(console, Text(file_name))
        for caption in captions:
            _print_indented(console, caption_text(caption, coloured), by=4)
    counted = labels.counted
    for line in (
        f"padding: {counted.padding / max(counted.positions, 1):.1%} of the row positions, "
        f"{counted.padding_in_loss + labels.measured.padding_in_loss:,} of them in the loss",
        f"prompt positions in the loss: {counted.prompt_in_loss + labels.measured.prompt_in_loss:,}",
        f"end token in the loss exactly once: {counted.ended:,} of {counted.captions:,} captions",
        f"loss before training: {labels.loss or float('nan'):.2f} per token; guessing among {labels.vocabulary:,} "
        f"tokens: {labels.uniform:.2f}",
    ):
        _print_indented(console, Text(line))


def caption_text(caption: ShownCaption, coloured: bool) -> Text:
    """Return a caption's tokens; ignored ones grey or, without colours, in brackets; repeated padding is counted."""
    text = Text()
    for supervised, group in groupby(caption.tokens, key=lambda token: token[1]):
        words = []
        for word, repeated in groupby(word for word, _ in group):
            count = len(list(repeated))
            words.append(word if count == 1 or supervised else f"{word} x {count}")
        shown = " ".join(words)
        if text:
            text.append(" ")
        if coloured:
            text.append(shown, style=_SUPERVISED if supervised else _IGNORED)
        else:
            text.append(shown if supervised else f"[{shown}]")
    return text


def _agreement_lines(facts: AgreementFacts) -> Iterator[str]:
    plain = facts.start_in_transformers or "not checked"
    yield (
        f"start token: {facts.start_in_training} in training, {facts.start_in_generation} in generation, {plain} in "
        "plain transformers"
    )
    if facts.prediction_difference is not None:
        difference = facts.prediction_difference
        yield f"difference of predictions for the same words: {difference:.1e} (right: rounding only)"
    if facts.leak is not None:
        yield f"influence of later words and other captions: {facts.leak:.1e} (right: 0)"
    if facts.image_effect is not None:
        yield f"influence of the image: {facts.image_effect:.1e} (right: more than 0)"


def _cost_lines(measured: Measurement, cost: Cost) -> Iterator[str]:
    schedule, memory, time, disk = cost.schedule, cost.memory, cost.time, cost.disk
    yield (
        f"{schedule.updates:,} updates ({schedule.epochs:g} epochs of {schedule.updates_per_epoch:,}), "
        f"{schedule.validations:,} validations"
    )
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimizer,
        "average": memory.average,
        "activations": memory.activations,
    }
    listed = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items() if size)
    available = "" if memory.available is None else f" of {gigabytes(memory.available)}"
    peak = gigabytes(measured.peak_bytes)
    yield f"memory: about {gigabytes(memory.total)}{available} ({listed}); this process took {peak}"
    yield (
        f"time: about {short_duration(time.total)} ("
        + (f"encoding once {short_duration(time.encoding)}, " if time.encoding else "")
        + f"training {short_duration(time.training)}, validation {short_duration(time.validation)}, captioning at most "
        f"{short_duration(time.captioning)})"
    )
    yield (
        f"measured: {measured.batches} steps of {measured.images} images, "
        f"{1 / measured.step_seconds:.3g} images/s, loss {' -> '.join(f'{loss:.2f}' for loss in measured.losses)}"
    )
    if measured.bfloat16_gain is not None and measured.bfloat16_gain > _MUCH_FASTER:
        yield (
            f"products in bfloat16 are {measured.bfloat16_gain:.1f} times as fast here as in float32: "
            "train.mixed_precision: bf16 trains faster, and rounds more"
        )
    if measured.load > _BUSY:
        yield (
            f"times are not reliable: other programs kept the machine busy (load {measured.load:.1f} per core); an "
            "idle machine can be many times faster"
        )
    yield (
        f"disk: checkpoints up to {gigabytes(disk.checkpoints)} ({gigabytes(disk.checkpoint)} each), model "
        f"{gigabytes(disk.model)}; {gigabytes(disk.run_free)} free"
    )
    if disk.store is None:
        yield "feature store: not used (the encoder is trained, or data.feature_store is off); image cache: not used"
        return
    name, store = "feature store" if disk.feature_store is not None else "image cache", disk.store
    yield f"{name}: {gigabytes(store.bytes)} more for {store.images:,} images that it lacks, in {store.folder}"


def short_duration(seconds: float) -> str:
    """Return a length of time for people: 8 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    if seconds < 5970:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _print_problems(console: Console, report: DoctorReport) -> None:
    problems = report.findings.problems
    for problem in sorted(problems, key=lambda problem: problem.level != "error"):
        if problem.key == "recipe":
            continue  # the command line prints the error that stopped the examination
        style = "red" if problem.level == "error" else "yellow"
        text = Text.assemble((f"{problem.level}: ", style), (f"{problem.key}: ", "bold"), problem.message)
        _print_indented(console, text, by=0)
        _print_indented(console, Text(f"-> {problem.remedy}"))
