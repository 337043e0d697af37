"""What a cell of the matrix found (scripts/matrix.sh): counts, versions, the quick start's captions; and the table.

python scripts/matrix_results.py cell FOLDER NAME SECONDS
python scripts/matrix_results.py table FOLDER FILE
"""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from hfcap.captioners.loading import load_captioner
from hfcap.data.loading import PixelInputs
from hfcap.data.source import load_split
from hfcap.decoding import DecodingJob, caption_batches
from hfcap.files import read_json, write_json, write_text
from hfcap.metrics.suite import score_captions
from hfcap.recipe.loading import load_recipe

ORDER = ("pinned", "lowest", "newest", "vision", "python3.12")
HEAD = """# Tested versions

Written by `bash scripts/matrix.sh`. The pinned cell runs the whole test suite; the others run the contract suite
(captions equal to `generate`, loss equal to the plain forward, save and reload, publish and verify, pixels equal to the
model's processor), and the tests of what makes hfcap faster. Where one of those fails, hfcap says so once and takes the
plain way: slower, with the same results.
"""
FOOT = """Quick start: whether captions and scores of its trained model, on all images of its test split, are those of
the pinned cell.
"""
METRICS = ("bleu", "cider", "rouge_l")
PACKAGES = (
    "transformers",
    "torch",
    "torchvision",
    "peft",
    "accelerate",
    "datasets",
    "huggingface-hub",
    "pillow",
    "timm",
)


def counts(path: Path) -> dict[str, int]:
    """Return passed, failed and skipped tests of a JUnit file."""
    if not path.is_file():
        return {"passed": 0, "failed": 1, "skipped": 0}
    suites = ElementTree.parse(path).getroot().iter("testsuite")
    total = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for name in total:
            total[name] += int(suite.get(name, 0))
    failed = total["failures"] + total["errors"]
    return {"passed": total["tests"] - failed - total["skipped"], "failed": failed, "skipped": total["skipped"]}


def quickstart(run: Path) -> dict[str, Any]:
    """Caption and score the quick start's test split with its trained model, as this environment does."""
    recipe = load_recipe(run / "recipe.yaml", [])
    records = load_split(recipe.data, "test")
    captioner = load_captioner(str(run))
    job = DecodingJob(records, PixelInputs(records, captioner.image_processor), recipe.generate, 50, 0)
    rows = [row for batch in caption_batches(captioner, job, list(range(len(records)))) for row in batch]
    captions = {row.image_id: row.caption for row in rows}
    references = {record.image_id: list(record.captions) for record in records}
    scores = score_captions(captions, references, METRICS)
    return {"captions": captions, "scores": scores}


def write_cell(folder: Path, name: str, seconds: int) -> int:
    """Write `<name>.json`; 1 where captions or scores of the quick start are not those of the pinned cell."""
    found: dict[str, Any] = {
        "cell": name,
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "seconds": seconds,
        "versions": {package: _version(package) for package in PACKAGES},
        "tests": counts(folder / f"{name}.xml"),
    }
    speed = folder / f"{name}-speed.xml"
    if speed.is_file():
        found["speed"] = counts(speed)
    run = folder / "runs" / "quickstart"
    if (run / "recipe.yaml").is_file():
        found["quickstart"] = quickstart(run)
    write_json(folder / f"{name}.json", found)
    pinned = folder / "pinned.json"
    expected = read_json(pinned, "results of the pinned cell").get("quickstart") if pinned.is_file() else None
    ours = found.get("quickstart")
    if expected is None or ours is None or _equal(ours, expected):
        return 0
    different = sum(ours["captions"][key] != caption for key, caption in expected["captions"].items())
    print(f"{name}: {different} captions of the quick start differ from the pinned cell's", file=sys.stderr)
    return 1


def _equal(ours: dict[str, Any], expected: dict[str, Any]) -> bool:
    scores, wanted = ours["scores"], expected["scores"]
    close = all(abs(scores[name] - value) <= 1e-9 for name, value in wanted.items())
    return ours["captions"] == expected["captions"] and close


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_table(folder: Path, path: Path) -> None:
    """Write the table of all cells that have results."""
    found = {
        name: read_json(folder / f"{name}.json", "results") for name in ORDER if (folder / f"{name}.json").exists()
    }
    expected = found.get("pinned", {}).get("quickstart")
    lines = [
        *HEAD.splitlines(),
        "",
        "| cell | date | Python | "
        + " | ".join(PACKAGES)
        + " | passed | failed | skipped | faster ways | quick start |",
        "|" + "---|" * (8 + len(PACKAGES)),
    ]
    for name, cell in found.items():
        versions = [cell["versions"][package] or "-" for package in PACKAGES]
        speed = cell.get("speed")
        faster = "in the suite" if speed is None else f"{speed['passed']} of {speed['passed'] + speed['failed']}"
        ours = cell.get("quickstart")
        same = "-" if ours is None or expected is None else "same" if _equal(ours, expected) else "differs"
        tests = [str(cell["tests"][key]) for key in ("passed", "failed", "skipped")]
        lines.append("| " + " | ".join([name, cell["date"], cell["python"], *versions, *tests, faster, same]) + " |")
    lines += ["", *FOOT.splitlines()]
    write_text(path, "\n".join(lines) + "\n")
    print(path.read_text(encoding="utf-8"))


def main(arguments: list[str]) -> int:
    """Run one of the two commands."""
    if arguments[0] == "cell":
        return write_cell(Path(arguments[1]), arguments[2], int(arguments[3]))
    write_table(Path(arguments[1]), Path(arguments[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
