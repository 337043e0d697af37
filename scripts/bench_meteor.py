"""METEOR here and in pycocoevalcap: the same numbers, time and memory, both sides in one run.

    python scripts/bench_meteor.py [--images 500 5000] [--output bench.json]

Each image of COCO val2014 (annotations from the installed pycocoevalcap) gives its first caption as candidate and the
others as references. Both sides get the same tokenised captions in a fresh process; the times include starting Python
or the Java machine and reading METEOR's resources, not the tokeniser. Our index is built beforehand (timed by itself).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_metrics import held_out, peak_bytes  # type: ignore[import-not-found]  # next to this script, which runs as a file

TOLERANCE = 1e-9


def _coco(n_images: int) -> tuple[list[str], list[list[str]]]:
    """Tokenised candidates and references of the first images."""
    from hfcap.metrics.base import CaptionSet, ReferenceSet

    candidates, references = held_out(n_images)
    captions = CaptionSet(candidates, ReferenceSet(references))
    return captions.tokenized_candidates, captions.tokenized_references


def _score_here(candidates: list[str], references: list[list[str]]) -> tuple[list[float], float, float]:
    from hfcap.metrics.meteor import meteor_statistics
    from hfcap.metrics.meteor_parts.index import open_index
    from hfcap.metrics.meteor_parts.score import scores_of

    statistics = meteor_statistics(open_index(), candidates, references)
    return scores_of(statistics).tolist(), float(scores_of(statistics.sum(axis=0))), peak_bytes() / 2**20


def _score_there(candidates: list[str], references: list[list[str]]) -> tuple[list[float], float, float]:
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    numbered = dict(enumerate(references))
    corpus, scores = meteor.compute_score(numbered, {key: [line] for key, line in enumerate(candidates)})
    return scores, corpus, peak_bytes(meteor.meteor_p.pid) / 2**20


def _one_side(side: str, question: Path, answer: Path) -> None:
    candidates, references = json.loads(question.read_text(encoding="utf-8"))
    scores, corpus, peak = (_score_here if side == "hfcap" else _score_there)(candidates, references)
    answer.write_text(json.dumps({"scores": scores, "corpus": corpus, "peak_mb": peak}))


def _measured(side: str, folder: Path) -> dict[str, Any]:
    answer = folder / f"{side}.json"
    # The Java side would read captions in the locale's encoding.
    environment = os.environ | {"JAVA_TOOL_OPTIONS": "-Dfile.encoding=UTF-8"}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, __file__, "--side", side, str(folder / "captions.json"), str(answer)],
        env=environment,
        check=True,
        stderr=subprocess.DEVNULL if side != "hfcap" else None,
    )
    seconds = time.perf_counter() - start
    return json.loads(answer.read_text()) | {"seconds": seconds}


def _compare(n_images: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "captions.json").write_text(json.dumps(_coco(n_images)), encoding="utf-8")
        ours, theirs = _measured("hfcap", folder), _measured("pycocoevalcap", folder)
    differences = [abs(a - b) for a, b in zip(ours["scores"], theirs["scores"], strict=True)]
    return {
        "images": len(differences),
        "largest_difference": max(differences),
        "segments_beyond_tolerance": sum(difference > TOLERANCE for difference in differences),
        "corpus": [ours["corpus"], theirs["corpus"]],
        "seconds": [ours["seconds"], theirs["seconds"]],
        "peak_mb": [ours["peak_mb"], theirs["peak_mb"]],
    }


def main() -> None:
    """Print the table; exit 1 when a segment differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--output", type=Path, help="also write the table as JSON")
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "CAPTIONS", "ANSWER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, question, answer = arguments.side
        _one_side(side, Path(question), Path(answer))
        return
    from hfcap.metrics.meteor_parts.index import open_index

    start = time.perf_counter()
    open_index()
    print(f"opening the index (building it, if the cache had none): {time.perf_counter() - start:.2f} s")
    titles = ("largest diff", "hfcap s", "pycoco s", "faster", "hfcap MB", "Java MB", "smaller")
    print(f"{'images':>7} {titles[0]:>13} " + " ".join(f"{title:>8}" for title in titles[1:]))
    rows = []
    for n_images in arguments.images:
        row = _compare(n_images)
        rows.append(row)
        (ours, theirs), (our_memory, their_memory) = row["seconds"], row["peak_mb"]
        print(
            f"{row['images']:>7} {row['largest_difference']:>13.1e} {ours:>8.2f} {theirs:>8.2f} {theirs / ours:>8.1f} "
            f"{our_memory:>8.0f} {their_memory:>8.0f} {their_memory / our_memory:>8.1f}"
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n")
    if any(row["segments_beyond_tolerance"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
