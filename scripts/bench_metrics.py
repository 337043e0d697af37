"""Compare values, time and memory of hfcap's metrics with pycocoevalcap on COCO 2014 validation captions.

    python scripts/bench_metrics.py [--images 5000] [--no-meteor] [--output bench_metrics.json]

One human caption of each image is the candidate, the others are the references. Needs the package pycocoevalcap and
`java`. Each side runs in its own process; the table shows both in one run. All 40,504 images take pycocoevalcap
minutes, most of them METEOR's.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hfcap.files import write_json

Captions = tuple[dict[str, str], dict[str, list[str]]]


def held_out(n_images: int) -> Captions:
    """Return candidates (the first caption) and references (the others) of the first so many validation images."""
    import pycocoevalcap.spice

    with zipfile.ZipFile(Path(pycocoevalcap.spice.__path__[0]) / "spice-1.0.jar") as jar:
        rows = json.loads(jar.read("coco/annotations/captions_val2014.json"))["annotations"]
    captions: dict[str, list[str]] = {}
    for row in rows:
        captions.setdefault(str(row["image_id"]), []).append(row["caption"].replace("\n", " "))
    chosen = list(captions)[:n_images]
    return {key: captions[key][0] for key in chosen}, {key: captions[key][1:] for key in chosen}


def _timed(times: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = work()
    times[name] = time.perf_counter() - start
    return result


def _reward_batch(candidates: dict[str, str], references: dict[str, list[str]]) -> tuple[list[str], list[list[str]]]:
    """64 images with 5 candidates each: their own and four of other images."""
    ids = list(references)
    batch = ids[:64]
    return batch, [[candidates[ids[(number + 7 * shift) % len(ids)]] for shift in range(5)] for number in range(64)]


def measure_hfcap(n_images: int, with_meteor: bool) -> dict[str, Any]:
    """Values, seconds and peak memory of our side; run in a fresh process."""
    from hfcap.metrics.base import CaptionSet, ReferenceSet
    from hfcap.metrics.cider import CiderReward
    from hfcap.metrics.suite import build_metric

    candidates, references = held_out(n_images)
    times: dict[str, float] = {}
    captions = CaptionSet(candidates, ReferenceSet(references))
    _timed(times, "tokenizer", lambda: (captions.candidate_tokens, captions.reference_tokens))
    values: dict[str, float] = {}
    for name in ("bleu", "rouge_l", "cider", *(["meteor"] if with_meteor else [])):
        metric = build_metric(name)
        statistics = _timed(times, name, partial(metric.statistics, captions))
        values |= dict(zip(metric.outputs, metric.values(captions, statistics).tolist(), strict=True))
    small = {key: references[key] for key in list(references)[: min(5000, n_images)]}
    reward = CiderReward(small, end_word=False)
    ids, groups = _reward_batch(candidates, small)
    reward.scores(ids, groups)
    scores = _timed(times, "reward, 64 x 5", lambda: reward.scores(ids, groups))
    return {"values": values, "times": times, "reward": scores.tolist(), "memory": _peak_memory()}


def measure_pycocoevalcap(n_images: int, with_meteor: bool) -> dict[str, Any]:
    """Values, seconds and peak memory of the other side, tokenising itself; run in a fresh process."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    candidates, references = held_out(n_images)
    times: dict[str, float] = {}
    tokenizer = PTBTokenizer()

    def tokenised() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        return (
            tokenizer.tokenize({key: [{"caption": line}] for key, line in candidates.items()}),
            tokenizer.tokenize({key: [{"caption": line} for line in lines] for key, lines in references.items()}),
        )

    theirs, human = _timed(times, "tokenizer", tokenised)
    values: dict[str, float] = {}
    bleu, _ = _timed(times, "bleu", lambda: Bleu(4).compute_score(human, theirs))
    values |= {f"bleu_{order}": float(value) for order, value in enumerate(bleu, start=1)}
    values["rouge_l"] = float(_timed(times, "rouge_l", lambda: Rouge().compute_score(human, theirs))[0])
    values["cider"] = float(_timed(times, "cider", lambda: Cider().compute_score(human, theirs))[0])
    if with_meteor:
        from pycocoevalcap.meteor.meteor import Meteor

        values["meteor"] = float(_timed(times, "meteor", lambda: Meteor().compute_score(human, theirs))[0])
    small = {key: human[key] for key in list(human)[: min(5000, n_images)]}
    ids, groups = _reward_batch({key: lines[0] for key, lines in theirs.items()}, small)
    batch_references = {f"{key}/{number}": small[key] for key in ids for number in range(5)}
    batch = {
        f"{key}/{number}": [line] for key, group in zip(ids, groups, strict=True) for number, line in enumerate(group)
    }
    _timed(times, "reward, 64 x 5", lambda: Cider().compute_score(batch_references, batch))
    return {"values": values, "times": times, "memory": _peak_memory()}


def same_tokens(n_images: int, with_meteor: bool) -> dict[str, float]:
    """Largest difference per metric, corpus or single image, when both sides get hfcap's tokens (bench_meteor.py has
    METEOR's).
    """
    import numpy as np
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    from hfcap.metrics.base import CaptionSet, ReferenceSet
    from hfcap.metrics.suite import CaptionSuite

    candidates, references = held_out(n_images)
    captions = CaptionSet(candidates, ReferenceSet(references))
    result = CaptionSuite().compute(candidates, captions.reference_set)
    ours = result.per_image()
    theirs = {key: [line] for key, line in zip(captions.image_ids, captions.tokenized_candidates, strict=True)}
    human = dict(zip(captions.image_ids, captions.tokenized_references, strict=True))
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, bleu_each = Bleu(4).compute_score(human, theirs)
    rouge, rouge_each = Rouge().compute_score(human, theirs)
    cider, cider_each = Cider().compute_score(human, theirs)
    found = {f"bleu_{order}": (bleu[order - 1], bleu_each[order - 1]) for order in (1, 2, 3, 4)}
    found |= {"rouge_l": (rouge, rouge_each), "cider": (cider, cider_each)}
    return {
        output: float(max(abs(corpus - (result.values[output] or 0.0)), np.abs(np.asarray(each) - ours[output]).max()))
        for output, (corpus, each) in found.items()
    }


def peak_bytes(process: int | str = "self") -> int:
    """Peak resident memory of a running process; its children, and its parent before it started, do not count."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell the peak memory of a process; run the benchmark on Linux")


def _peak_memory() -> dict[str, int]:
    """Peak resident bytes of this process and of its largest child (the Java virtual machine)."""
    return {"python": peak_bytes(), "child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}


_SIDES: dict[str, Callable[[int, bool], Any]] = {
    "hfcap": measure_hfcap,
    "pycocoevalcap": measure_pycocoevalcap,
    "same-tokens": same_tokens,
}


def _in_fresh_process(side: str, n_images: int, with_meteor: bool) -> Any:
    command = [sys.executable, __file__, "--side", side, "--images", str(n_images)]
    command += [] if with_meteor else ["--no-meteor"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _print_tables(n_images: int, results: dict[str, Any]) -> None:
    ours, theirs, exact = results["hfcap"], results["pycocoevalcap"], results["same-tokens"]
    console = Console(width=120)
    values = Table("value", "pycocoevalcap", "hfcap", "difference", "same tokens", title=f"{n_images:,} images")
    for name, value in theirs["values"].items():
        own = ours["values"].get(name, float("nan"))
        same = f"{exact[name]:.1e}" if name in exact else "-"
        values.add_row(name, f"{value:.6f}", f"{own:.6f}", f"{abs(own - value):.1e}", same)
    console.print(values)
    times = Table("step", "pycocoevalcap, s", "hfcap, s", "ratio", title="time")
    core = [name for name in ("tokenizer", "bleu", "rouge_l", "cider") if name in theirs["times"]]
    rows = [(name, theirs["times"][name], ours["times"][name]) for name in theirs["times"] if name in ours["times"]]
    rows.append(("all but meteor", *(sum(side["times"][name] for name in core) for side in (theirs, ours))))
    for name, slow, fast in rows:
        times.add_row(name, f"{slow:.3f}", f"{fast:.4f}", f"{slow / fast:.1f}")
    console.print(times)
    gibibytes = 2.0**30
    console.print(
        f"peak memory: pycocoevalcap {theirs['memory']['python'] / gibibytes:.2f} GiB + Java "
        f"{theirs['memory']['child'] / gibibytes:.2f} GiB, hfcap {ours['memory']['python'] / gibibytes:.2f} GiB"
    )


def main() -> None:
    """Run both sides and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="validation images (at most 40504)")
    parser.add_argument("--no-meteor", action="store_true", help="leave METEOR out")
    parser.add_argument("--output", type=Path, help="write the measurements as JSON")
    parser.add_argument("--side", choices=sorted(_SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(_SIDES[arguments.side](arguments.images, not arguments.no_meteor)))
        return
    results = {side: _in_fresh_process(side, arguments.images, not arguments.no_meteor) for side in _SIDES}
    _print_tables(arguments.images, results)
    if arguments.output:
        write_json(arguments.output, {"n_images": arguments.images, **results})


if __name__ == "__main__":
    main()
