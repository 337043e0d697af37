"""`hfcap score` and `hfcap compare` on many images: processor time, time and peak memory, start-up included.

    python -m scripts.bench_scores [--images 10000 100000] [--against TREE] [--no-compare] [--folder DIR]

Human captions are those of COCO 2014 (annotations from the installed pycocoevalcap), up to five an image: validation
images first, then training images. Images beyond these 123,287 have the captions of one of them, each crossed with
another caption of COCO: what follows a word in one follows the same word in the other, twice, so that new n-grams keep
coming as they do in real captions. The first system's caption crosses two human captions of the image; the second has
the captions of other images for half of them. `score` computes BLEU, METEOR, ROUGE-L and CIDEr-D, without intervals and
with 1,000 resamples, and writes the score file; `compare` reads two of them and makes 10,000.

`--against` names another source tree of hfcap (`git worktree add TREE COMMIT`): both score the same files, one after
the other, and their score files must be the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hfcap.files import sha256_of, write_json
from hfcap.metrics.shared.document_frequencies import coco_captions

METRICS = "bleu,meteor,rouge_l,cider"
_GIBIBYTE = 2.0**30

_CHILD = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": code.returncode, "said": code.stderr[-2000:], "seconds": time.perf_counter() - start,
    "processor_seconds": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}))
"""


class Crossing:
    """Captions made of two others: up to a word of one, and what follows the same word in the other."""

    def __init__(self, captions: list[list[str]], draw: random.Random) -> None:
        self._captions, self._draw = captions, draw
        self._places: dict[str, list[tuple[int, int]]] = {}
        for number, words in enumerate(captions):
            for place, word in enumerate(words):
                self._places.setdefault(word, []).append((number, place))

    def of(self, caption: list[str]) -> list[str]:
        """Cross a caption with any one that has one of its words."""
        place = self._draw.randrange(len(caption))
        found = self._places.get(caption[place])
        if not found:
            return caption
        number, other_place = self._draw.choice(found)
        return caption[: place + 1] + self._captions[number][other_place + 1 :]


def crossed(first: list[str], second: list[str]) -> list[str]:
    """Return one caption up to the last word that both have, and what follows it in the other."""
    shared = [place for place, word in enumerate(first) if word in second]
    return first[: shared[-1] + 1] + second[second.index(first[shared[-1]]) + 1 :] if shared else first


def caption_groups(n_images: int, draw: random.Random) -> Iterator[list[list[str]]]:
    """Yield up to five captions of each image, as words."""
    known: list[list[list[str]]] = []
    for split in ("val", "train"):
        if len(known) < n_images:
            groups = coco_captions(split).values()
            known += [[line.split() for line in group if line.strip()][:5] for group in groups]
    yield from known[:n_images]
    if n_images > len(known):
        crossing = Crossing([words for group in known for words in group], draw)
        for _ in range(n_images - len(known)):
            yield [crossing.of(crossing.of(words)) for words in draw.choice(known)]


def write_captions(folder: Path, n_images: int) -> None:
    """Write human.jsonl, first.jsonl and second.jsonl."""
    draw = random.Random(0)
    other = ""
    files = [(folder / f"{name}.jsonl").open("w", encoding="utf-8") for name in ("human", "first", "second")]
    for number, group in enumerate(caption_groups(n_images, draw)):
        human = [" ".join(words) for words in group]
        caption = " ".join(crossed(group[0], group[-1]))
        second = other if other and draw.random() < 0.5 else caption
        rows: list[dict[str, Any]] = [{"captions": human}, {"caption": caption}, {"caption": second}]
        for file, row in zip(files, rows, strict=True):
            file.write(json.dumps({"image_id": number, **row}) + "\n")
        other = caption
    for file in files:
        file.close()


def run_hfcap(tree: Path, arguments: list[str]) -> dict[str, Any]:
    """Run one command with the hfcap of a source tree, in a process whose children are counted alone."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _CHILD, sys.executable, "-m", "hfcap", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tree)
    found: dict[str, Any] = json.loads(result.stdout)
    if found["code"]:
        raise SystemExit(f"hfcap {' '.join(arguments)}: {found['said']}")
    return found


def measure(
    folder: Path, trees: dict[str, Path], with_compare: bool, without_intervals: bool
) -> dict[str, dict[str, Any]]:
    """Return side -> command -> what it took; the score files of all sides must be the same."""
    found: dict[str, dict[str, Any]] = {side: {} for side in trees}
    hashes: dict[str, list[str]] = {}
    for side, tree in trees.items():
        names = ("first", "second") if with_compare else ("first",)
        files = [str(folder / f"{side}_{name}.json") for name in names]
        for name, file in zip(names, files, strict=True):
            captions = [str(folder / f"{name}.jsonl"), str(folder / "human.jsonl")]
            scoring = ["score", *captions, "--metrics", METRICS, "-o"]
            if without_intervals and name == "first":
                arguments = [*scoring, str(folder / f"{side}_without.json"), "--n-resamples", "0"]
                found[side]["score without intervals"] = run_hfcap(tree, arguments)
            found[side]["score"] = run_hfcap(tree, [*scoring, file])
        hashes[side] = [sha256_of(Path(file)) for file in files]
        if with_compare:
            found[side]["compare"] = run_hfcap(tree, ["compare", *files, "-o", str(folder / f"{side}_comparison")])
    if len({tuple(one) for one in hashes.values()}) > 1:
        raise SystemExit("the score files of both sides differ")
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 40_504, 100_000])
    parser.add_argument("--against", type=Path, help="another source tree of hfcap")
    parser.add_argument("--no-compare", action="store_true", help="leave compare out")
    parser.add_argument("--without-intervals", action="store_true", help="score without intervals as well")
    parser.add_argument("--folder", type=Path, help="where the files are written and stay; default: a temporary one")
    parser.add_argument("--output", type=Path, help="write the measurements as JSON")
    arguments = parser.parse_args()
    trees = {"this": Path(__file__).resolve().parents[1]}
    if arguments.against:
        trees = {"other": arguments.against.resolve(), **trees}
    table = Table("images", "command", "hfcap", "processor, s", "time, s", "peak, GiB", "times faster", "times smaller")
    rows = []
    for n_images in arguments.images:
        with tempfile.TemporaryDirectory() as name:
            folder = (arguments.folder or Path(name)) / str(n_images)
            folder.mkdir(parents=True, exist_ok=True)
            write_captions(folder, n_images)
            found = measure(folder, trees, not arguments.no_compare, arguments.without_intervals)
        rows.append({"n_images": n_images, **found})
        for command in found["this"]:
            for side in trees:
                took, theirs = found[side][command], found[next(iter(trees))][command]
                table.add_row(
                    f"{n_images:,}",
                    command,
                    side,
                    f"{took['processor_seconds']:.1f}",
                    f"{took['seconds']:.1f}",
                    f"{took['peak_bytes'] / _GIBIBYTE:.2f}",
                    f"{theirs['processor_seconds'] / took['processor_seconds']:.2f}",
                    f"{theirs['peak_bytes'] / took['peak_bytes']:.2f}",
                )
    Console(width=120).print(table)
    if arguments.output:
        write_json(arguments.output, rows)


if __name__ == "__main__":
    main()
