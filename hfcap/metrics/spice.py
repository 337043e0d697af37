"""SPICE (Anderson et al. 2016): only through its authors' Java program, which the user brings along.

Nothing here imitates SPICE, and nothing runs it unless a person asks for the metric 'spice' by name.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfcap.children import run_program
from hfcap.errors import UserError, WorkError
from hfcap.files import read_json
from hfcap.metrics.base import CaptionMetric, CaptionSet, MetricOptions
from hfcap.places import LocalPath, Place, Program

_OPENED_PACKAGES = (
    *("java.base/java.lang", "java.base/java.util", "java.base/java.util.concurrent", "java.base/java.math"),
    *("java.base/java.net", "java.base/java.text", "java.sql/java.sql"),
)
"""SPICE's cache serialises objects of these by reflection, which Java 16 and later refuse otherwise."""

_MODELS = "lib/stanford-corenlp-3.6.0-models.jar"
_HOW = (
    "name spice-1.0.jar (pycocoevalcap brings it) with its option jar or the environment variable HFCAP_SPICE_JAR; "
    "next to it in lib/ must lie stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar from Stanford "
    "CoreNLP 3.6.0"
)
_LINES_OF_JAVA_SHOWN = 5


def spice_command(java: str, jar: Path, files: tuple[Path, Path], cache: Path, memory_gigabytes: int) -> list[str]:
    """Return the command that scores the first file (JSON) into the second; Java 9 or later."""
    return [
        java,
        *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENED_PACKAGES),
        f"-Xmx{memory_gigabytes}G",
        "-jar",
        str(jar),
        str(files[0]),
        *("-cache", str(cache), "-out", str(files[1]), "-subset", "-silent"),
    ]


def parse_spice(path: Path, image_ids: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the F value of each image from the program's result file, (N,) float64.

    Raises:
        WorkError: the file has another layout, or an image is missing.
    """
    try:
        found = {str(row["image_id"]): float(row["scores"]["All"]["f"]) for row in read_json(path, "result of SPICE")}
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise WorkError(f"{path}: SPICE's result cannot be read ({error}); try again, or leave spice out") from None
    missing = [image_id for image_id in image_ids if image_id not in found]
    if missing:
        raise WorkError(
            f"{path}: SPICE gave no score for {len(missing):,} images, for example {missing[0]!r}; try again, "
            "or leave spice out"
        )
    # The program writes NaN where neither side has a proposition; pycocoevalcap counts that as 0 in the mean.
    return np.asarray([0.0 if math.isnan(found[image_id]) else found[image_id] for image_id in image_ids])


class SpiceOptions(MetricOptions):
    """Options of SPICE."""

    jar: Annotated[str, Place(program=True)] | Path | None = Field(
        None, description="spice-1.0.jar; default: the environment variable HFCAP_SPICE_JAR"
    )
    java: Program = Field("java", description="the Java program")
    cache: LocalPath | Path | None = Field(None, description="folder for parsed captions; default: a temporary one")
    memory_gigabytes: Annotated[int, Field(gt=0)] = Field(8, description="largest heap of Java")
    timeout_seconds: Annotated[float, Field(gt=0)] | None = Field(None, description="when to give up; null = never")


class Spice(CaptionMetric):
    """SPICE F value, mean over images, by the authors' program.

    Raises:
        UserError: no jar, no models next to it, or no Java.
    """

    name = "spice"
    outputs = ("spice",)
    english_only = True
    summary = "SPICE (Anderson et al. 2016) by its authors' Java program, which you bring along"
    citation = "Anderson et al. (2016): SPICE: Semantic Propositional Image Caption Evaluation. ECCV"

    options_class = SpiceOptions

    def __init__(self, options: SpiceOptions | None = None) -> None:
        self._options = options or SpiceOptions()
        jar = self._options.jar or os.environ.get("HFCAP_SPICE_JAR")
        if not jar:
            raise UserError(f"metric 'spice' runs the authors' Java program, which hfcap does not contain: {_HOW}")
        # The program works next to its jar, where a relative path would mean something else.
        self._jar = Path(jar).expanduser().absolute()
        if not self._jar.is_file():
            raise UserError(f"{self._jar}: SPICE's jar not found; {_HOW}")
        if not (self._jar.parent / _MODELS).is_file():
            raise UserError(f"{self._jar.parent / _MODELS}: SPICE's language models not found; {_HOW}")
        found = shutil.which(self._options.java)
        if found is None:
            raise UserError(
                f"metric 'spice' needs Java, and there is no program {self._options.java!r}; install a Java runtime"
            )
        self._java = str(Path(found).absolute())

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return the F value of each image, (N, 1).

        Raises:
            WorkError: the program failed; the message shows its last words.
        """
        rows = zip(captions.image_ids, captions.tokenized_candidates, captions.tokenized_references, strict=True)
        request = [{"image_id": image_id, "test": line, "refs": references} for image_id, line, references in rows]
        with tempfile.TemporaryDirectory(prefix="hfcap-spice-") as name:
            folder = Path(name)
            question, answer = folder / "captions.json", folder / "scores.json"
            question.write_text(json.dumps(request), encoding="utf-8")
            cache = Path(self._options.cache or folder / "cache").expanduser().absolute()
            cache.mkdir(parents=True, exist_ok=True)
            self._run(spice_command(self._java, self._jar, (question, answer), cache, self._options.memory_gigabytes))
            return parse_spice(answer, captions.image_ids)[:, None]

    def _run(self, command: list[str]) -> None:
        try:
            done = run_program(command, folder=self._jar.parent, timeout=self._options.timeout_seconds)
        except subprocess.TimeoutExpired:
            raise WorkError(
                f"SPICE was not done after {self._options.timeout_seconds:g} seconds; raise its timeout_seconds"
            ) from None
        if done.returncode:
            last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_LINES_OF_JAVA_SHOWN:])
            raise WorkError(
                f"SPICE's Java program failed (exit code {done.returncode}); check Java and the memory, or "
                f"leave spice out:\n{last}"
            )

    def signature(self) -> dict[str, Any]:
        """Return which program did it."""
        return {"program": self._jar.name, "bytes": self._jar.stat().st_size}


REGISTERED = Spice
