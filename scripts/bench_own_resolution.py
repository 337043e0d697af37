"""Images per second of vision-language models at their own resolution: hfcap against the model's own `generate`.

    python scripts/bench_own_resolution.py [--kinds qwen2_5_vl internvl idefics3] [--shapes four] [--rounds 3]
        [--output F.json]

Both sides read the same image files, of four or sixteen shapes in mixed order, through the model's own processor, one
at a time and in batches, and must say the same words. The other side pads prompts of different lengths on the left, as
the processors do; "to generate one by one" compares with its single images, by processor time. Random weights rarely
end a caption, so that every image runs to `--max-new-tokens`. `--size 3b`: Qwen2.5-VL in its true size, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench_captioning import lively  # type: ignore[import-not-found]  # next to this script, which runs as a file
from bench_models import prepare_process  # type: ignore[import-not-found]
from bench_sides import (  # type: ignore[import-not-found]
    Clock,
    benchmark_parser,
    in_turns,
    machine,
    machine_text,
    options_for_child,
    speed_texts,
    summaries,
)
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForImageTextToText

from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.captioning.batches import caption_records
from hfcap.captioning.given import image_records
from hfcap.data.loading import PixelInputs
from hfcap.decoding import DecodingJob
from hfcap.files import write_json
from hfcap.recipe.blocks import GenerateOptions

sys.path.append(str(Path(__file__).resolve().parents[1]))  # smallest models with processors of their own: of the tests
from tests.captioners.helpers import random_image
from tests.captioners.itt_models import itt
from tests.captioners.itt_more_models import more

SIDES = ("generate", "hfcap")
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = {"qwen2_5_vl": itt, "internvl": more, "idefics3": itt}
FOUR = ((320, 240), (240, 320), (320, 212), (280, 280))
SHAPES = {
    "four": FOUR,
    "sixteen": (
        *FOUR,
        *((212, 320), (250, 187), (187, 250), (250, 166), (320, 180), (320, 291), (256, 320), (320, 160), (194, 320)),
        *((300, 225), (320, 256), (160, 320)),
    ),
}
"""(width, height), as photos of COCO halved: the commonest, and as many as a batch of photos has."""
PROMPT = "what is on it?"


def larger(kind: str, size: str) -> ImageTextToText:
    """Return a captioner of one kind with random weights: a tenth of a gigabyte where `size` is "true", 3b: 7."""
    small = KINDS[kind](kind, PROMPT, own=True)
    processor, config = small.processor, small.model.config.to_dict()
    of_3b = size == "3b"
    processor.tokenizer.add_tokens([f" word{number}" for number in range(8000)])
    processor.tokenizer.padding_side = "left"
    if size != "small":
        _enlarge(kind, processor, config)
    if of_3b:
        _enlarge_to_3b(config)
    config["text_config"]["vocab_size"] = 151_936 if of_3b else len(processor.tokenizer)
    model_type = config.pop("model_type")
    torch.manual_seed(0)
    with torch.device(_DEVICE):
        made = AutoConfig.for_model(model_type, **config)
        model: Any = AutoModelForImageTextToText.from_config(made, dtype=torch.bfloat16 if of_3b else torch.float32)
    lively(model)
    return ImageTextToText(model.eval(), processor, PROMPT)


def _enlarge(kind: str, processor: Any, config: dict[str, Any]) -> None:
    """Set width 512 and 8 layers of text, 320 and 6 of vision; an image of 320 x 240 becomes 88 to 325 tokens."""
    layers = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    vision = {"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 6, "num_attention_heads": 5}
    config["text_config"] |= {**layers, "num_key_value_heads": 2, "head_dim": 64}
    config["text_config"].pop("layer_types", None)
    if kind == "qwen2_5_vl":
        processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28}
        config["text_config"]["rope_parameters"]["mrope_section"] = [8, 12, 12]
        config["vision_config"] |= {"depth": 6, "num_heads": 5, "hidden_size": 320, "intermediate_size": 1280}
        config["vision_config"] |= {"out_hidden_size": 512, "window_size": 112, "fullatt_block_indexes": [2, 5]}
        return
    side = 224
    config["vision_config"] |= {**vision, "patch_size": 14, "image_size": side}
    if kind == "internvl":
        config["vision_config"] |= {"patch_size": [14, 14], "image_size": [side, side]}
        processor.image_processor.size = {"height": side, "width": side}
        processor.image_seq_length = 64
    else:
        processor.image_processor.size = {"longest_edge": 2 * side}
        processor.image_processor.max_image_size = {"longest_edge": side}
        processor.image_seq_len = 64


def _enlarge_to_3b(config: dict[str, Any]) -> None:
    """Set the widths and layers of Qwen2.5-VL-3B (its config.json)."""
    config["text_config"] |= {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
    config["text_config"] |= {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128}
    config["text_config"]["rope_parameters"]["mrope_section"] = [16, 24, 24]
    config["vision_config"] |= {"depth": 32, "num_heads": 16, "hidden_size": 1280, "intermediate_size": 3420}
    config["vision_config"] |= {"out_hidden_size": 2048, "fullatt_block_indexes": [7, 15, 23, 31]}


def own_way(captioner: ImageTextToText, files: Sequence[Path], batch_size: int, options: GenerateOptions) -> list[str]:
    """Caption files as the model's documentation does: processor with padding, `generate`, decode."""
    processor, captions = captioner.processor, []
    for first in range(0, len(files), batch_size):
        images = [Image.open(file).convert("RGB") for file in files[first : first + batch_size]]
        messages = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": PROMPT}]}]
            for image in images
        ]
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(captioner.model.device, captioner.model.dtype)
        found = captioner.model.generate(**inputs, generation_config=captioner.generation_config(options))
        sequences = found if isinstance(found, torch.Tensor) else found.sequences
        texts = processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        captions += [" ".join(text.split()) for text in texts]
    return captions


def hfcap_s_way(
    captioner: ImageTextToText, files: Sequence[Path], batch_size: int, options: GenerateOptions
) -> list[str]:
    """Caption files as `hfcap caption` does."""
    job = DecodingJob([], PixelInputs([], captioner.image_processor), options, batch_size, 0)
    lists = caption_records(captioner, job, image_records([str(file) for file in files]))
    return [found if isinstance(found, str) else found[0].text for some in lists for _, found in some]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Caption all images on one side, after the first ones have warmed it up."""
    captioner = larger(options.family, options.size)
    way = hfcap_s_way if options.side == "hfcap" else own_way
    asked = GenerateOptions(num_beams=options.beams, max_new_tokens=options.max_new_tokens)
    shapes = SHAPES[options.shapes]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        files = [Path(folder) / f"{number:03d}.jpg" for number in range(options.images)]
        for number, file in enumerate(files):
            random_image(number, shapes[number % len(shapes)]).save(file)
        clock = Clock()
        way(captioner, files[: 2 * len(FOUR)], options.batch_size, asked)
        clock.tick()
        captions = way(captioner, files, options.batch_size, asked)
        clock.tick()
    return {**clock.result(), "captions": captions}


def compare(options: argparse.Namespace, kind: str, batch_size: int) -> dict[str, Any]:
    """Run both sides in turns, each in its own process."""
    names = ("size", "threads", "shapes", "beams", "max_new_tokens")
    n_images = options.images if batch_size > 1 else min(8, options.images)
    arguments = [*options_for_child(options, names), "--images", str(n_images), "--batch-size", str(batch_size)]
    runs = in_turns(__file__, [*arguments, "--family", kind], SIDES, options.rounds)
    ours, theirs = runs["hfcap"][0]["captions"], runs["generate"][0]["captions"]
    row: dict[str, Any] = {"kind": kind, "images": n_images, "batch_size": batch_size}
    row |= summaries(runs, "images", n_images)
    row["same_captions"] = sum(one == other for one, other in zip(ours, theirs, strict=True)) / len(ours)
    row["different_captions"] = len(set(ours))
    return row


def main() -> None:
    """Measure one side (child process), or all."""
    parser = benchmark_parser(__doc__, SIDES, sizes=("true", "small", "3b"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--shapes", choices=SHAPES, default="four")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--only-batches", action="store_true", help="not one at a time")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    options = parser.parse_args()
    prepare_process(options.threads, None)
    if options.side:
        print(json.dumps(measure(options)))
        return
    result: dict[str, Any] = {"machine": machine(), "threads": options.threads, "size": options.size, "rows": []}
    head = (
        "images at once",
        "generate images/s",
        "hfcap images/s",
        "ratio",
        "by processor time",
        "to generate one by one",
    )
    table = Table("model", *head, "same", title=machine_text(result["machine"]))
    for kind in options.kinds:
        alone: Any = None
        for batch_size in (options.batch_size,) if options.only_batches else (1, options.batch_size):
            row = compare(options, kind, batch_size)
            result["rows"].append(row)
            alone = row["generate"] if batch_size == 1 else alone
            if alone is not None:
                ours, theirs = (side["images_per_processor_second"] for side in (row["hfcap"], alone))
                row["ratio_to_one_by_one"] = ours / theirs
            table.add_row(
                kind,
                str(batch_size),
                *speed_texts(row, options.even_if_busy),
                f"{row['ratio_to_one_by_one']:.2f}" if alone is not None else "",
                f"{row['same_captions']:.0%}",
            )
    Console().print(table)
    if options.output is not None:
        write_json(options.output, result)


if __name__ == "__main__":
    main()
