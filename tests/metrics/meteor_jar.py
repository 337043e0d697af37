"""METEOR's jar as a black box, and the recording of what it says about our own sentences.

    python -m tests.metrics.meteor_jar          needs Java and pycocoevalcap; rewrites meteor_golden.json

The captions and words to ask for stand in meteor_golden.json. Run it after adding some; the diff must show new lines
only, because METEOR 1.5 does not change.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

from hfcap.files import write_text
from hfcap.metrics.meteor_parts.resources import MeteorResources

GOLDEN = Path(__file__).with_name("meteor_golden.json")

HAS_JAR = shutil.which("java") is not None and util.find_spec("pycocoevalcap") is not None

# Snowball's public interface; the class is in METEOR's jar.
_STEMMER = """
public class Stems {
    public static void main(String[] words) throws Exception {
        var stemmer = (org.tartarus.snowball.SnowballStemmer)
            Class.forName("org.tartarus.snowball.ext.englishStemmer").getDeclaredConstructor().newInstance();
        for (String word : words) {
            stemmer.setCurrent(word);
            stemmer.stem();
            System.out.println(stemmer.getCurrent());
        }
    }
}
"""


def java_command(*arguments: str) -> list[str]:
    """Return the command that starts the jar; its files are UTF-8 whatever the locale says."""
    return ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", str(MeteorResources.installed().jar), *arguments]


def jar_scores(pairs: Sequence[tuple[str, Sequence[str]]]) -> tuple[list[float], float]:
    """Return the jar's segment scores and corpus score for (candidate, references), given as they are.

    The jar's protocol needs the statistics of all segments before it scores any, hence an answered line before EVAL.
    """
    command = java_command("-", "-", "-stdio", "-l", "en", "-norm")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8") as jar:
        assert jar.stdin is not None and jar.stdout is not None
        statistics = []
        for candidate, references in pairs:
            jar.stdin.write(" ||| ".join(("SCORE", *references, candidate)) + "\n")
            jar.stdin.flush()
            statistics.append(jar.stdout.readline().strip())
        jar.stdin.write(" ||| ".join(("EVAL", *statistics)) + "\n")
        jar.stdin.flush()
        scores = [float(jar.stdout.readline()) for _ in range(len(pairs) + 1)]
        jar.stdin.close()
    return scores[:-1], scores[-1]


def jar_words(captions: Sequence[str]) -> list[str]:
    """Return the captions as the jar normalises them, words joined by one space."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "candidates").write_text("\n".join(captions) + "\n", encoding="utf-8")
        (folder / "references").write_text("x\n" * len(captions), encoding="utf-8")
        options = ["-l", "en", "-norm", "-q", "-writeAlignments", "-f", "out"]
        command = java_command("candidates", "references", *options)
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        blocks = (folder / "out-align.out").read_text(encoding="utf-8").split("Alignment\t")[1:]
    return [block.split("\n")[1] for block in blocks]


def jar_stems(words: Sequence[str]) -> list[str]:
    """Return the stems that the Snowball class in the jar gives."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "Stems.java"
        source.write_text(_STEMMER)
        command = ["java", "-cp", str(MeteorResources.installed().jar), str(source), *words]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()


def main() -> None:
    """Fill in what the jar says."""
    golden: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    captions = [row["caption"] for row in golden["normalization"]]
    for row, words in zip(golden["normalization"], jar_words(captions), strict=True):
        row["words"] = words
    golden["stems"] = dict(zip(golden["stems"], jar_stems(list(golden["stems"])), strict=True))
    scores, golden["corpus"] = jar_scores([(row["candidate"], row["references"]) for row in golden["segments"]])
    for row, score in zip(golden["segments"], scores, strict=True):
        row["score"] = score
    write_text(GOLDEN, json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
