"""What is fuzzed: a small valid example on disk, and the entry point that reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from random import Random

from tests.fuzz.mutations import mutated


@dataclass(frozen=True)
class Target:
    """A reader of files.

    Attributes:
        make: writes a valid example into an empty folder.
        use: given the folder and the names of damaged files, reads the example: an input is right where it returns, and
            refused where it raises an error with a message.
        damaged: patterns of the files that are damaged, relative to the folder.
        writes: `use` changes the folder, which is made again for each input.
        names_file: what is refused must be so by the name of a damaged file, or of the folder.
        share: how many inputs it gets in relation to others, where inputs are counted; slow ones get fewer.
        seconds_share: how much time it gets in relation to others, where time is.
    """

    name: str
    make: Callable[[Path], None]
    use: Callable[[Path, Sequence[str]], object]
    damaged: tuple[str, ...] = ("*",)
    writes: bool = False
    share: float = 1.0
    seconds_share: float = 1.0
    names_file: bool = True


class Example:
    """A target's example on disk, damaged and made whole again."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        target.make(folder)
        self.whole = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        self.names = [name for name in sorted(self.whole) if any(fnmatch(name, p) for p in target.damaged)]
        assert self.names, f"{target.name}: no file to damage"

    def damage(self, draw: Random) -> dict[str, bytes | None]:
        """Damage one or two files; returns their new content by name, None where a file is gone."""
        changed: dict[str, bytes | None] = {}
        for name in draw.sample(self.names, k=min(len(self.names), draw.choice([1, 1, 1, 1, 2]))):
            gone = len(self.names) > 1 and draw.random() < 0.01
            changed[name] = None if gone else mutated(name, self.whole[name], draw)
        self.write(changed)
        return changed

    def write(self, changed: dict[str, bytes | None]) -> None:
        """Put damaged files in the place of whole ones."""
        for name, content in changed.items():
            if content is None:
                (self.folder / name).unlink()
            else:
                (self.folder / name).write_bytes(content)

    def repair(self, changed: dict[str, bytes | None]) -> None:
        """Make the example whole again."""
        if not self.target.writes:
            for name in changed:
                (self.folder / name).write_bytes(self.whole[name])
            return
        shutil.rmtree(self.folder)
        for name, content in self.whole.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
