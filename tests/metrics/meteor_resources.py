"""METEOR's resources in miniature, in the files that the package pycocoevalcap has."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

from hfcap.metrics.meteor_parts.resources import MeteorResources

TABLE = (
    ("kite", "paper toy"),
    ("kite", "toy"),
    ("lamp", "light"),
    ("light", "lamp"),
    ("put off", "delay"),
    ("zzz", "un été"),
)
MEMBERS = {
    "function/english.words": "the\na\nof\n",
    "nonbreaking/english.prefixes": "# titles\nMr\nNo #NUMERIC_ONLY#\n",
    "synonym/english.synsets": "auto\n00000001\ncar\n00000001 00000002\nwagon\n00000002\n",
    "synonym/english.exceptions": "car\ncarses\nunlisted\nwagons\n",
}


def table_text(table: tuple[tuple[str, str], ...]) -> str:
    """The text of a paraphrase table: a probability, a phrase and its paraphrase, each on its line."""
    return "".join(f"0.5\n{phrase}\n{other}\n" for phrase, other in table)


def write_resources(folder: Path, text: str = table_text(TABLE), **members: str) -> MeteorResources:
    """Write the files into a folder; `members` replace words lists, by the last part of their name."""
    folder.mkdir(parents=True, exist_ok=True)
    found = MeteorResources(folder / "meteor-1.5.jar", folder / "paraphrase-en.gz")
    with zipfile.ZipFile(found.jar, "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, members.get(name.rpartition(".")[2], content))
    with gzip.open(found.paraphrases, "wb") as handle:
        handle.write(text.encode())
    return found
