"""METEOR's English word lists and paraphrase table, read from the user's installed package pycocoevalcap."""

from __future__ import annotations

import importlib.util
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hfcap.errors import MissingPackageError, UserError

_FUNCTION_WORDS = "function/english.words"
_PREFIXES = "nonbreaking/english.prefixes"
_SYNSETS = "synonym/english.synsets"
_EXCEPTIONS = "synonym/english.exceptions"
_NUMBERS_ONLY = "#NUMERIC_ONLY#"


@dataclass(frozen=True)
class NonBreakingPrefixes:
    """Words whose final dot ends no sentence.

    Attributes:
        always: whatever follows ("Mr").
        before_numbers: only in front of a digit ("No").
    """

    always: frozenset[str]
    before_numbers: frozenset[str]

    @classmethod
    def from_text(cls, text: str) -> NonBreakingPrefixes:
        """Read one prefix per line; a line that starts with # is a comment."""
        entries = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        numeric = frozenset(entry.split()[0] for entry in entries if _NUMBERS_ONLY in entry)
        return cls(frozenset(entry for entry in entries if _NUMBERS_ONLY not in entry), numeric)


def _pairs_of_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    lines = text.split("\n")
    for position in range(0, len(lines) - 1, 2):
        yield lines[position], lines[position + 1].split()


@dataclass(frozen=True)
class MeteorResources:
    """Where METEOR's English resources lie.

    Attributes:
        jar: meteor-1.5.jar; only its word lists are read, none of its code.
        paraphrases: the gzip file of phrase pairs, three lines each: probability, phrase, paraphrase.
    """

    jar: Path
    paraphrases: Path

    @classmethod
    def installed(cls) -> MeteorResources:
        """Find the resources in the installed package, without importing it.

        Raises:
            MissingPackageError: pycocoevalcap is not installed.
            UserError: it is installed without METEOR's files.
        """
        spec = importlib.util.find_spec("pycocoevalcap")
        if spec is None or not spec.submodule_search_locations:
            raise MissingPackageError("pycocoevalcap", "METEOR (its word lists and paraphrase table)")
        folder = Path(spec.submodule_search_locations[0]) / "meteor"
        found = cls(folder / "meteor-1.5.jar", folder / "data" / "paraphrase-en.gz")
        for path in (found.jar, found.paraphrases):
            if not path.is_file():
                raise UserError(
                    f"{path}: not found; reinstall METEOR's files with: pip install --force-reinstall pycocoevalcap"
                )
        return found

    def fingerprint(self) -> str:
        """Return the CRC-32 sums of the contents that count, as hexadecimal digits (read, not computed: no delay)."""
        try:
            with zipfile.ZipFile(self.jar) as archive:
                names = (_FUNCTION_WORDS, _PREFIXES, _SYNSETS, _EXCEPTIONS)
                sums = [archive.getinfo(name).CRC for name in names]
            with self.paraphrases.open("rb") as handle:
                handle.seek(-8, os.SEEK_END)
                sums.extend(struct.unpack("<II", handle.read()))  # gzip ends with the CRC-32 and length of its content
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise UserError(
                f"{self.jar.parent}: METEOR's files are damaged ({error}); reinstall pycocoevalcap"
            ) from None
        return "".join(f"{number:08x}" for number in sums)

    def _member(self, name: str) -> str:
        with zipfile.ZipFile(self.jar) as archive:
            return archive.read(name).decode("utf-8")

    def function_words(self) -> list[str]:
        """Return the words that count less than content words."""
        return self._member(_FUNCTION_WORDS).split()

    def prefixes_text(self) -> str:
        """Return the list of non-breaking prefixes, for NonBreakingPrefixes.from_text."""
        return self._member(_PREFIXES)

    def synsets(self) -> dict[str, list[str]]:
        """Return word -> WordNet synset numbers (8 digits each)."""
        return dict(_pairs_of_lines(self._member(_SYNSETS)))

    def irregular_forms(self) -> dict[str, list[str]]:
        """Return inflected form -> base forms, in the order of the list."""
        bases: dict[str, list[str]] = {}
        for base, forms in _pairs_of_lines(self._member(_EXCEPTIONS)):
            for form in forms:
                bases.setdefault(form, []).append(base)
        return bases
