"""Keys of recipes that name something on this machine: files, folders, programs.

A path in a recipe is written relative to where the command is given; `absolute` makes it mean the same later, from
every other folder: in a run directory, in the configuration of an adapter.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Block = TypeVar("Block", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Place:
    """Marks the type of such a key.

    Attributes:
        always: it is a path, whether something is there or not; otherwise it may also be a Hub id or a word, and is a
            path only where a file or folder of that name is there.
        words: values that are never paths.
        program: what is there is run.
    """

    always: bool = True
    words: tuple[str, ...] = ()
    program: bool = False


LocalPath = Annotated[str, Place()]
"""A file or folder on this machine."""

Location = Annotated[str, Place(always=False)]
"""A file or folder on this machine, or a Hub id."""

FrequencyFile = Annotated[str, Place(always=False, words=("corpus", "coco-train", "coco-val"))]
"""Document frequencies of CIDEr-D: a word or a file."""

Program = Annotated[str, Place(always=False, program=True)]
"""A program; a run directory, which somebody else may have made, cannot choose it."""

Change = Callable[[str, Place], Any]


def place_of(info: FieldInfo) -> Place | None:
    """Return how a field is marked, wherever in its type the mark stands."""
    found: list[Place] = []
    _changed(info.annotation, info.metadata, _Any(), lambda _, place: found.append(place))
    return found[0] if found else None


class _Any:
    """Stands for a value of every type, to look through an annotation."""


def with_changed_places(block: Block, change: Change) -> Block:
    """Return the block with every text that names a place changed, also in the blocks, lists and mappings inside it."""
    changed: dict[str, Any] = {}
    for name, info in type(block).model_fields.items():
        value = getattr(block, name)
        new = changed_place(info, value, change)
        if new is not value:
            changed[name] = new
    return block.model_copy(update=changed) if changed else block


def changed_place(info: FieldInfo, value: Any, change: Change) -> Any:
    """Return the value of one field with every text in it that names a place changed."""
    return _changed(info.annotation, info.metadata, value, change)


def _changed(annotation: Any, marks: typing.Sequence[Any], value: Any, change: Change) -> Any:
    place = next((mark for mark in marks if isinstance(mark, Place)), None)
    if place is not None and isinstance(value, str | _Any):
        return change("" if isinstance(value, _Any) else value, place)
    if isinstance(value, BaseModel):
        return with_changed_places(value, change)
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _changed(parts[0], parts[1:], value, change)
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            new = _changed(part, (), value, change)
            if new is not value:
                return new
    if origin in (list, tuple) and isinstance(value, list | tuple | _Any):
        items = [value] if isinstance(value, _Any) else value
        new = [_changed(parts[0], (), item, change) for item in items]
        return value if all(map(lambda a, b: a is b, new, items)) else new
    if origin is dict and isinstance(value, Mapping | _Any):
        pairs = {"": value} if isinstance(value, _Any) else value
        new = {key: _changed(parts[1], (), item, change) for key, item in pairs.items()}
        return value if all(new[key] is pairs[key] for key in new) else new
    return value


def absolute(text: str, place: Place, folder: Path) -> str:
    """Return a place as it is named from everywhere.

    Args:
        folder: what a relative path is relative to.
    """
    path = Path(text).expanduser()
    if not text or text in place.words or "://" in text:
        return text
    if place.program and not place.always and "/" not in text:
        return text
    if path.is_absolute():
        return text if path == Path(text) else str(path)
    return str(folder / path) if place.always or (folder / path).exists() else text
