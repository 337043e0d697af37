"""Images per second of captioning: hfcap against `model.generate`, in batches of the same size, with the same captions.

    python scripts/bench_captioning.py [--size small] [--families blip vit_gpt2] [--beams 3] [--output F.json]

Both sides get the same processed images and random weights and must say the same words. Random weights rarely end a
caption, so that every image runs to `--max-new-tokens`; 16 is where a batch of trained captions is done.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from bench_floor import floors, flop_counter  # type: ignore[import-not-found]  # next to this script, which runs as a file
from bench_models import (  # type: ignore[import-not-found]  # next to this script, which runs as a file
    END,
    PAD,
    START,
    as_captioner,
    build_model,
    image_size,
    prepare_process,
    word_tokenizer,
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
    speed_texts,
    summaries,
)
from rich.console import Console
from rich.table import Table

from hfcap.files import write_json
from hfcap.recipe.blocks import GenerateOptions

SIDES = ("generate", "hfcap")


def lively(model: Any) -> None:
    """Enlarge the matrices, so that images matter and words differ clearly.

    Fresh weights make all images and words nearly alike: every image would get the same caption, or rounding would
    choose among the words.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                scale = 1.5 * parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator, device=device) * scale)


def decoder_of(model: Any) -> Any:
    """Return the part that runs once per word."""
    return next(getattr(model, name) for name in ("text_decoder", "decoder", "language_model") if hasattr(model, name))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Caption `--batches` batches on one side, after one that warms up."""
    model = build_model(options.family, options.size)
    lively(model)
    side = image_size(options.family, options.size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = torch.randn(options.batch_size, 3, side, side, generator=torch.Generator().manual_seed(1)).to(device)
    values = {"num_beams": options.beams, "max_new_tokens": options.max_new_tokens}
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    model.eval().to(device, dtype)
    pixels = pixels.to(dtype)
    # A captioner changes its model; the other side keeps the plain one.
    captioner = as_captioner(options.family, model, options.size) if options.side == "hfcap" else None
    tokenizer = word_tokenizer(model)

    @torch.inference_mode()
    def caption() -> list[str]:
        if captioner is not None:
            started = time.perf_counter()
            states = captioner.encode(pixels)
            encoding.append(time.perf_counter() - started)
            found = captioner.caption_states(states, GenerateOptions(**values))
            return [of_image[0].text for of_image in found]
        # BLIP's own generate names the tokens; the others are told.
        tokens = {} if options.family == "blip" else {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
        sequences = model.generate(pixel_values=pixels, **values, **tokens)
        return [text.strip() for text in tokenizer.batch_decode(sequences, skip_special_tokens=True)]

    encoding: list[float] = []
    clock = Clock()
    with flop_counter() as counted:
        captions = caption()
    clock.tick()
    for _ in range(options.batches):
        captions = caption()
        clock.tick()
    result = {**clock.result(), "captions": captions, "gflop": counted.get_total_flops() / 1e9}
    if captioner is not None:
        if device == "cpu" and options.precision == "no":
            # Every step reads the decoder's weights.
            weights = sum(weight.numel() * weight.element_size() for weight in decoder_of(model).parameters())
            result |= floors(caption, own_bytes=0, weight_bytes=weights * options.max_new_tokens)
        if device == "cpu":  # a GPU has not ended when the call does
            result["encode_seconds"] = encoding[1:]
    return result


def compare(options: argparse.Namespace, family: str) -> dict[str, Any]:
    """Run both sides in turns, each in its own process."""
    names = ("size", "threads", "batch_size", "batches", "beams", "max_new_tokens", "precision")
    runs = in_turns(__file__, [*options_for_child(options, names), "--family", family], SIDES, options.rounds)
    ours, theirs = runs["hfcap"][0]["captions"], runs["generate"][0]["captions"]
    row: dict[str, Any] = {"family": family, "batch_size": options.batch_size, "beams": options.beams}
    row |= summaries(runs, "images", options.batch_size)
    row["same_captions"] = sum(one == other for one, other in zip(ours, theirs, strict=True)) / len(ours)
    row["different_captions"] = len(set(ours))
    return row


def main() -> None:
    """Measure one side (child process), or all."""
    parser = benchmark_parser(__doc__, SIDES)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=1, help="batches that count, after one that warms up")
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--precision", choices=["no", "bf16"], default="no", help="number type of all weights")
    options = parser.parse_args()
    prepare_process(options.threads, options.side)
    if options.side:
        print(json.dumps(measure(options)))
        return
    result: dict[str, Any] = {"machine": machine(), "threads": options.threads, "size": options.size, "rows": []}
    result |= {"max_new_tokens": options.max_new_tokens, "precision": options.precision}
    table = Table(
        "captioner",
        "generate images/s",
        "hfcap images/s",
        "ratio",
        "by processor time",
        "by arithmetic",
        "same captions",
        "of the floors' speed",
        title=machine_text(result["machine"]),
    )
    for family in options.families:
        row = compare(options, family)
        result["rows"].append(row)
        table.add_row(
            family,
            *speed_texts(row, options.even_if_busy),
            arithmetic_text(row),
            f"{row['same_captions']:.0%}",
            floor_text(row),
        )
        if options.output:
            write_json(options.output, result)
    Console().print(table)


if __name__ == "__main__":
    main()
