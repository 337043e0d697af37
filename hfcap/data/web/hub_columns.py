"""Finding the columns of images, captions and ids in a dataset that nobody described."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from hfcap.data.tables.columns import ADDRESS_NAMES, CAPTION_NAME, TEXT_KEYS, UnfitColumnsError, numbered_alike, plain
from hfcap.data.tables.conversations import conversation_columns
from hfcap.registry import did_you_mean


class ColumnOptions(Protocol):
    """The keys of source hub that name columns."""

    dataset: str
    image_column: str | None
    caption_columns: list[str] | None
    image_id_column: str | None
    prompt_column: str | None
    own_prompts: bool


@dataclass(frozen=True)
class Columns:
    """Names of the columns in use, or places in their cells (`images[0]`, `sentences[].raw`).

    Attributes:
        bases: the columns of `captions`, and others whose text is read.
        talk: those of a conversation, whose answers are the captions.
    """

    image: str
    captions: tuple[str, ...]
    image_id: str | None
    image_base: str
    bases: tuple[str, ...]
    talk: tuple[str, ...] = ()

    @property
    def of_text(self) -> list[str]:
        """Columns besides the images, each once."""
        return list(dict.fromkeys([*self.bases, *([self.image_id] if self.image_id else [])]))


def column_of(place: str, features: Mapping[str, Any]) -> str:
    """Return the column that a place is in."""
    return place if place in features else place.partition(".")[0].partition("[")[0]


def find_columns(options: ColumnOptions, features: Mapping[str, Any]) -> Columns:
    """Take the columns that the recipe names, or those that can only be meant.

    Args:
        features: column name -> type, as `datasets` gives it.

    Raises:
        UserError: a named column doesn't exist, or none or several columns could be meant.
    """
    image = find_image_column(options.dataset, options.image_column, features)
    for name in options.caption_columns or []:
        _require(options.dataset, "data.caption_columns", name, features)
    _require(options.dataset, "data.image_id_column", options.image_id_column, features)
    _require(options.dataset, "data.prompt_column", options.prompt_column, features)
    base = column_of(image, features)
    if options.own_prompts and not options.caption_columns and (talk := conversation_columns(features)):
        return Columns(image, talk, options.image_id_column, base, talk, talk)
    captions = options.caption_columns or _caption_columns(options, features, base)
    texts = [*captions, *([options.prompt_column] if options.prompt_column else [])]
    bases = tuple(column_of(place, features) for place in texts)
    return Columns(image, tuple(captions), options.image_id_column, base, bases)


def find_image_column(
    dataset: str, named: str | None, features: Mapping[str, Any], key: str = "data.image_column"
) -> str:
    """Take the column of images that was named, or the only one.

    Args:
        key: where a person names it, for messages.

    Raises:
        UserError: the named column doesn't exist or holds no images, or none or several could be meant.
    """
    _require(dataset, key, named, features)
    if named is not None:
        feature = features[column_of(named, features)]
        if not _may_hold_images(feature):
            raise UnfitColumnsError(
                f"dataset {dataset}: column {named!r} ({key}) holds no images, but {feature}; choose another"
            )
        return named
    found = [name for name, feature in features.items() if _kind(feature) == "image"]
    found = found or [name for name, feature in features.items() if _kind(feature) == "images"]
    addresses = [name for name in features if plain(name) in ADDRESS_NAMES and _kind(features[name]) == "text"]
    found = found or addresses[:1]
    if len(found) == 1:
        return found[0]
    which = f"several columns of images ({', '.join(found)})" if found else "no column of images"
    raise UnfitColumnsError(f"dataset {dataset} has {which} among {', '.join(features)}; name one with {key}")


def _require(dataset: str, key: str, name: str | None, features: Mapping[str, Any]) -> None:
    if name is not None and column_of(name, features) not in features:
        raise UnfitColumnsError(f"dataset {dataset} has no column {name!r} ({key}){did_you_mean(name, features)}")


def text_columns(features: Mapping[str, Any], without: Iterable[str] = ()) -> list[str]:
    """Return the columns of texts, numbers and lists of texts, but for some."""
    hidden = set(without)
    plain_ones = {name for name, feature in features.items() if type(feature).__name__ == "Value"}
    of_bytes = {name for name in plain_ones if features[name].dtype in ("binary", "large_binary")}
    lists = {name for name, feature in features.items() if _kind(feature) == "text" and not isinstance(feature, dict)}
    return [name for name in features if name in (plain_ones | lists) - of_bytes - hidden]


def _may_hold_images(feature: Any) -> bool:
    """Whether `datasets` can read a column as images: they are stored as such, as bytes, or as file names."""
    if type(feature).__name__ == "Value":
        return feature.dtype in ("string", "large_string", "binary", "large_binary")
    return _kind(feature) in ("image", "images")


def _kind(feature: Any) -> str:
    """Return "image", "images", "text" or "other" for a column's type."""
    name = type(feature).__name__
    if name == "Image":
        return "image"
    if name == "Value":
        return "text" if feature.dtype in ("string", "large_string") else "other"
    if name in ("List", "LargeList", "Sequence"):
        inner = _kind(feature.feature)
        return "images" if inner == "image" else "text" if inner == "text" else "other"
    if isinstance(feature, list) and len(feature) == 1:
        return "text" if _kind(feature[0]) == "text" else "other"
    if isinstance(feature, dict):
        # Parquet files written without `datasets` store images as {bytes, path}.
        if set(feature) == {"bytes", "path"}:
            return "image"
        return "text" if any(key in feature and _kind(feature[key]) == "text" for key in TEXT_KEYS) else "other"
    return "other"


def _caption_columns(options: ColumnOptions, features: Mapping[str, Any], image: str) -> list[str]:
    texts = [
        name
        for name, kind in features.items()
        if _kind(kind) == "text" and name not in (image, options.image_id_column)
    ]
    named = [name for name in texts if CAPTION_NAME.fullmatch(name)]
    if len(numbered := numbered_alike(named)) == len(named) > 0:
        return numbered
    if len(named) == 1:
        return named
    if not named and len(texts) == 1:
        return texts
    candidates = ", ".join(named or texts) or "none"
    raise UnfitColumnsError(
        f"dataset {options.dataset}: cannot tell which columns hold captions (candidates: {candidates}; all columns: "
        f"{', '.join(features)}); name them with data.caption_columns"
    )
