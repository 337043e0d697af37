"""Compare hfcap's tokeniser with the Java tool on all captions of COCO 2014.

    python scripts/conformance_tokenizer.py [--record]

Needs the package pycocoevalcap (it carries the captions and the tool) and `java`. Prints every differing caption;
--record writes tests/metrics/tokenizer_conformance.json, from which the tests repeat the comparison without Java.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from hfcap.files import write_json
from hfcap.metrics.shared.tokenizer import LINE_SEPARATORS, TOKENIZER_VERSION, tokenize

RECORD = Path(__file__).resolve().parents[1] / "tests" / "metrics" / "tokenizer_conformance.json"
_PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)


def package_folder() -> Path | None:
    """Return where pycocoevalcap is installed; None if it is not."""
    spec = importlib.util.find_spec("pycocoevalcap")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def coco_captions(package: Path) -> list[str]:
    """Return the 616,767 captions of COCO 2014, training first, line separators replaced by blanks."""
    captions = []
    with zipfile.ZipFile(package / "spice" / "spice-1.0.jar") as jar:
        for split in ("train", "val"):
            annotations = json.loads(jar.read(f"coco/annotations/captions_{split}2014.json"))["annotations"]
            captions += [LINE_SEPARATORS.sub(" ", row["caption"]) for row in annotations]
    return captions


def java_lines(package: Path, captions: Sequence[str]) -> list[str]:
    """Tokenise captions without line separators with the Java tool and the filter of the COCO evaluation.

    White space inside a token (the tool joins "1 1/2" by a no-break space) separates words, as it does for the scorers.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "captions.txt"
        source.write_text("\n".join(captions), encoding="utf-8")
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(package / "tokenizer" / "stanford-corenlp-3.4.1.jar")]
        command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", str(source)]
        output = subprocess.run(command, capture_output=True, check=True).stdout.decode("utf-8")
    lines = output.removesuffix("\n").split("\n")
    assert len(lines) == len(captions), f"{len(lines)} lines for {len(captions)} captions"
    kept = (" ".join(word for word in line.rstrip().split(" ") if word not in _PUNCTUATION) for line in lines)
    return [" ".join(line.split()) for line in kept]


def hash_of(lines: Iterable[str]) -> str:
    """SHA-256 of lines, each ended by a line feed."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8") + b"\n")
    return digest.hexdigest()


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name} for the tests")
    arguments = parser.parse_args()
    package = package_folder()
    if package is None:
        raise SystemExit("pip install pycocoevalcap")
    captions = coco_captions(package)
    start = time.perf_counter()
    theirs = java_lines(package, captions)
    java_done = time.perf_counter()
    ours = [" ".join(tokenize(caption)) for caption in captions]
    done = time.perf_counter()
    different = [number for number, line in enumerate(ours) if line != theirs[number]]
    for number in different:
        print(f"{captions[number]!r}\n  java  {theirs[number]}\n  hfcap {ours[number]}")
    print(f"{len(different)} of {len(captions):,} captions differ ({len(different) / len(captions):.5%})")
    print(f"java {java_done - start:.1f} s, hfcap {done - java_done:.1f} s")
    if arguments.record:
        record = {
            "tokenizer": TOKENIZER_VERSION,
            "n_captions": len(captions),
            "captions_sha256": hash_of(captions),
            "java_sha256": hash_of(theirs),
            "different": [
                {"line": number, "caption": captions[number], "java": theirs[number], "hfcap": ours[number]}
                for number in different
            ],
        }
        write_json(RECORD, record)
        print(f"wrote {RECORD}")


if __name__ == "__main__":
    main()
