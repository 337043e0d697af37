"""What the speed benchmarks share: models with random weights, captions, machine, clock, sides in child processes.

Weights do not change how long a step takes, so random ones do. Each side of a comparison runs in a process of its own,
which makes its peak memory its own too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPProcessor,
    CLIPVisionConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from hfcap.captioners.base import Captioner
from hfcap.captioners.blip import Blip
from hfcap.captioners.clip_prefix import ClipPrefix
from hfcap.captioners.published.modeling_clip_prefix import ClipPrefixConfig, ClipPrefixForConditionalGeneration
from hfcap.captioners.shared.pretrained import new_image_processor
from hfcap.captioners.vit_gpt2 import VitGpt2
from hfcap.training.log import peak_memory_bytes

FAMILIES = ("blip", "vit_gpt2", "clip_prefix")
START, END, PAD = 1, 2, 0
COCO = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco" / "captions.json"
WORDS_OF_COCO = {
    **{7: 91, 8: 2071, 9: 2774, 10: 2717, 11: 1929, 12: 1249, 13: 697, 14: 388, 15: 224, 16: 138, 17: 95, 18: 63},
    **{19: 51, 20: 27, 21: 24, 22: 9, 23: 8, 24: 7, 25: 6, 26: 3},
}
"""Captions of 2,515 COCO images by number of words: used where the captions themselves are not at hand."""

_SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def build_model(family: str, size: str) -> Any:
    """Return a transformers model with random weights: BLIP-base 384, ViT-B/16 224 + GPT-2, CLIP ViT-B/32 + GPT-2."""
    torch.manual_seed(0)
    small = size == "small"
    special: dict[str, Any] = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    gpt2: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 1000} if small else {}
    if family == "blip":
        vision: dict[str, Any] = {**_SMALL, "image_size": 64} if small else {"image_size": 384}
        text: dict[str, Any] = (
            {**_SMALL, "encoder_hidden_size": 64, "vocab_size": 1000} if small else {"vocab_size": 30524}
        )
        config: Any = BlipConfig(
            vision_config={**vision, "initializer_range": 0.02}, text_config={**text, **special, "sep_token_id": END}
        )
        return BlipForConditionalGeneration(config)
    if family == "vit_gpt2":
        encoder = ViTConfig(**(_SMALL if small else {}), image_size=64 if small else 224)
        decoder = GPT2Config(**gpt2, **special, add_cross_attention=True)
        joined: Any = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        joined.decoder_start_token_id, joined.pad_token_id, joined.eos_token_id = START, PAD, END
        return VisionEncoderDecoderModel(joined)
    clip = CLIPVisionConfig(**(_SMALL if small else {}), image_size=64 if small else 224, patch_size=32)
    width = clip.hidden_size
    return ClipPrefixForConditionalGeneration(
        ClipPrefixConfig(vision_config=clip, text_config=GPT2Config(**gpt2), vision_width=width, **special)
    )


def vocabulary_size(model: Any) -> int:
    """Number of tokens the model chooses from."""
    config = model.config
    text: Any = config.decoder if hasattr(config, "decoder") else config.text_config
    return int(text.vocab_size)


def image_size(family: str, size: str) -> int:
    """Side of the square images the model takes."""
    return 64 if size == "small" else {"blip": 384}.get(family, 224)


def word_tokenizer(model: Any) -> Any:
    """A tokenizer with one word per token of the model."""
    words = {"<pad>": PAD, "<start>": START, "<end>": END}
    words |= {f"w{number}": number for number in range(len(words), vocabulary_size(model))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def as_captioner(family: str, model: Any, size: str) -> Captioner:
    """Wrap the model as hfcap does."""
    tokenizer, processor = word_tokenizer(model), new_image_processor(image_size(family, size))
    if family == "blip":
        return Blip(model, BlipProcessor(processor, tokenizer))
    return (VitGpt2 if family == "vit_gpt2" else ClipPrefix)(model, CLIPProcessor(processor, tokenizer))


def caption_lengths(count: int, seed: int = 0) -> list[int]:
    """Draw token counts of COCO captions; the closing full stop is a token of its own."""
    if COCO.is_file():
        rows = json.loads(COCO.read_text(encoding="utf-8"))["annotations"]
        population = [len(row["caption"].split()) for row in rows]
    else:
        population = [words for words, times in WORDS_OF_COCO.items() for _ in range(times)]
    return [length + 1 for length in random.Random(seed).choices(population, k=count)]


def random_captions(model: Any, n_images: int, captions_per_image: int, seed: int = 0) -> list[list[list[int]]]:
    """Token ids of captions of COCO's lengths, without special tokens."""
    generator = random.Random(seed)
    top = vocabulary_size(model)
    lengths = iter(caption_lengths(n_images * captions_per_image, seed))
    return [
        [[generator.randrange(3, top) for _ in range(next(lengths))] for _ in range(captions_per_image)]
        for _ in range(n_images)
    ]


def prepare_process(threads: int) -> None:
    """The same settings for both sides; hfcap sets flush_denormal in training, and random weights need it as much."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def matrix_speed(size: int = 1536, repeats: int = 8) -> float:
    """GFLOP/s of a float32 matrix product on this machine now: best of `repeats`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        float((left @ right)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def machine() -> dict[str, Any]:
    """Hardware and versions, for the JSON file."""
    import transformers

    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


class Clock:
    """Wall and processor seconds of each piece of work; the first one warms up."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was measured and start now."""
        self.marks = [(time.perf_counter(), time.process_time())]

    def tick(self) -> None:
        """A piece of work has ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def result(self) -> dict[str, Any]:
        """Seconds of each piece without the first, and the peak memory of this process."""
        pairs = list(zip(self.marks[1:-1], self.marks[2:], strict=True))
        return {
            "seconds": [after[0] - before[0] for before, after in pairs],
            "processor_seconds": [after[1] - before[1] for before, after in pairs],
            "peak_memory_bytes": peak_memory_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        }


def in_turns(script: str, arguments: Sequence[str], sides: Sequence[str], rounds: int) -> dict[str, list[Any]]:
    """Run the sides of a comparison one after the other, `rounds` times, so that all meet the same machine."""
    runs: dict[str, list[Any]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, found in runs.items():
            found.append(run_child(script, [*arguments, "--side", side]))
    return runs


def summaries(runs: dict[str, list[Any]], what: str, count: int) -> dict[str, Any]:
    """Return for each side its medians over all runs, and hfcap's ratios to the other side.

    Args:
        what: what is counted ("captions"). count: how many of it one measured piece of work has.
    """
    found: dict[str, Any] = {}
    for side, of_side in runs.items():
        seconds, processor = ([s for run in of_side for s in run[key]] for key in ("seconds", "processor_seconds"))
        found[side] = {
            f"{what}_per_second": count / statistics.median(seconds),
            f"{what}_per_processor_second": count / statistics.median(processor),
            "peak_memory_bytes": max(run["peak_memory_bytes"] for run in of_side),
            "runs": of_side,
        }
    [other] = set(runs) - {"hfcap"}
    return found | {
        f"ratio_{name}": value / found[other][name] for name, value in found["hfcap"].items() if name != "runs"
    }


def benchmark_parser(description: str | None, sides: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have; `--side` and `--family` are for child processes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["true", "small"], default="true")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--rounds", type=int, default=1, help="how often the two sides take turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    parser.add_argument("--family", help=argparse.SUPPRESS)
    return parser


def options_for_child(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Spell these options as arguments of a child process."""
    return [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]


def run_child(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run one side in a fresh process and return the JSON object on its last line."""
    command = [sys.executable, script, *arguments]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed ({result.returncode}):\n{result.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found
