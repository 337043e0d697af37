"""Which score files are one system in several languages: their names without the language."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hfcap.comparison.systems import System
from hfcap.scoring.signature import language_of


def named_by_files(systems: Sequence[System]) -> list[System]:
    """Return the systems under the names of their rows: those of one name are one system in several languages.

    A score file SYSTEM.LANGUAGE.json (or with _ or - in front of the language) and LANGUAGE.json in a folder SYSTEM are
    named SYSTEM; so is a run directory SYSTEM_LANGUAGE. Files whose names do not end with the language that they were
    scored in keep the whole name. Where that gives two files of one language one name, their folders come in front.
    """
    places = [_place(system) for system in systems]
    taken = Counter(
        (name, language_of(system.report.signature)) for (_, name), system in zip(places, systems, strict=True)
    )
    unclear = {name for (name, _), count in taken.items() if count > 1}
    return [
        replace(system, name=f"{folder.name}/{name}" if name in unclear else name)
        for (folder, name), system in zip(places, systems, strict=True)
    ]


def _place(system: System) -> tuple[Path, str]:
    """The folder that holds the system, and its name there without the language."""
    if system.run is not None:
        path = system.run.path.resolve()
        folder, name = path.parent, path.name
    else:
        folder, name = system.path.parent.resolve(), system.path.stem
    language = language_of(system.report.signature)
    if language is None:
        return folder, name
    if name.lower() == language and folder.name:
        return folder.parent, folder.name
    return folder, re.sub(rf"[._-]+{re.escape(language)}$", "", name, flags=re.IGNORECASE) or name
