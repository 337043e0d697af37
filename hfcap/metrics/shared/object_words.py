"""Which words of a caption name which objects: a vocabulary of objects with their synonyms, and a finder for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hfcap.errors import UserError, shown
from hfcap.files import read_json_object, read_text
from hfcap.metrics.shared.tokenizer import tokenize

NO_OBJECT = "-"
"""In the place of an object's name: phrases that hold the word of an object and mean none ("train station")."""

Phrase = tuple[str, ...]


@dataclass(frozen=True)
class ObjectVocabulary:
    """Objects and the phrases that name them.

    Attributes:
        source: where it comes from, for signatures and messages.
        names: of the objects.
        meanings: words of a phrase -> the objects that it may name, the likeliest first; none = it names no object.
    """

    source: str
    names: tuple[str, ...]
    meanings: Mapping[Phrase, tuple[str, ...]]

    @cached_property
    def longest(self) -> int:
        """Words of the longest phrase."""
        return max(map(len, self.meanings), default=0)

    def mentions(self, words: Sequence[str]) -> list[tuple[str, ...]]:
        """Return for each phrase of a tokenised caption the objects that it may name; the longest phrase wins."""
        found: list[tuple[str, ...]] = []
        position = 0
        while position < len(words):
            for length in range(min(self.longest, len(words) - position), 0, -1):
                objects = self.meanings.get(tuple(words[position : position + length]))
                if objects is not None:
                    found += [objects] if objects else []
                    position += length
                    break
            else:
                position += 1
        return found

    def object_called(self, name: str) -> str | None:
        """Return the object of a name or synonym; None where there is none."""
        if name in self.names:
            return name
        return next(iter(self.meanings.get(tuple(tokenize(name.replace("_", " "))), ())), None)

    def sha256(self) -> str:
        """Return a hash of what the phrases mean, 16 hexadecimal digits."""
        pairs = sorted((" ".join(phrase), list(objects)) for phrase, objects in self.meanings.items())
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]


def plurals(word: str) -> tuple[str, ...]:
    """Return the regular plural of an English noun."""
    if word.endswith(("s", "x", "ch", "sh")):
        return (f"{word}es",)
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return (f"{word[:-1]}ies",)
    return (f"{word}s",)


def read_vocabulary(path: Path) -> ObjectVocabulary:
    """Read objects with their synonyms; regular plurals of the last word are added.

    A text file has an object a line, its name and its synonyms with commas between them (`cup, mug, coffee cup`, or
    `cup: mug, coffee cup`); # begins a comment. A .json file maps names to lists of synonyms. The name - stands before
    phrases that mean none of the objects. A phrase of several objects may mean each of them.

    Raises:
        UserError: the file is missing or malformed, names an object twice, or holds a synonym without words.
    """
    entries = _entries_of_json(path) if path.suffix == ".json" else _entries_of_text(path)
    objects: dict[str, tuple[str, ...]] = {}
    for where, name, synonyms in entries:
        if name in objects:
            raise UserError(f"{where}: the object {shown(name)} is there already; put its synonyms into one entry")
        objects[name] = synonyms
    names = tuple(name for name in objects if name != NO_OBJECT)
    if not names:
        raise UserError(f"{path}: no objects in this vocabulary; write one a line: its name, then its synonyms")
    meanings: dict[Phrase, tuple[str, ...]] = {_words(name, path): (name,) for name in names}
    for name in names:
        for synonym in objects[name]:
            words = _words(synonym, path)
            meanings[words] = tuple(dict.fromkeys([*meanings.get(words, ()), name]))
    meanings |= {_words(phrase, path): () for phrase in objects.get(NO_OBJECT, ())}
    return ObjectVocabulary(path.name, names, with_plurals(meanings))


def with_plurals(meanings: Mapping[Phrase, tuple[str, ...]]) -> dict[Phrase, tuple[str, ...]]:
    """Return the phrases and those whose last word is in the plural; what is there already keeps its meaning."""
    found = dict(meanings)
    for phrase, objects in meanings.items():
        for last in plurals(phrase[-1]):
            plural = (*phrase[:-1], last)
            if plural not in meanings:
                found[plural] = tuple(dict.fromkeys([*found.get(plural, ()), *objects]))
    return found


def _words(phrase: str, path: Path) -> Phrase:
    words = tuple(tokenize(phrase.replace("_", " ")))
    if not words:
        raise UserError(f"{path}: {shown(phrase)} has no word; remove it from the vocabulary")
    return words


def _entries_of_text(path: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for number, line in enumerate(read_text(path, "vocabulary of objects").splitlines(), start=1):
        text = line.split("#", 1)[0].strip()
        if text:
            name, _, rest = text.partition(":") if ":" in text else text.partition(",")
            where = f"{path}: line {number}"
            if not name.strip():
                raise UserError(f"{where}: no name of an object in front; write it as in: cup, mug, coffee cup")
            yield where, name.strip(), tuple(part.strip() for part in rest.split(",") if part.strip())


def _entries_of_json(path: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for name, synonyms in read_json_object(path, "vocabulary of objects").items():
        where = f"{path}: key {shown(name)}"
        if not name.strip():
            raise UserError(f"{where}: no name of an object; write one, with the list of its synonyms")
        if not isinstance(synonyms, list) or not all(isinstance(synonym, str) for synonym in synonyms):
            raise UserError(f"{where} must be the list of the object's synonyms, not {shown(synonyms)}")
        yield where, name.strip(), tuple(synonyms)
