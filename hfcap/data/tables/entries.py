"""From rows of tables to entries: the image that a row names, its captions, its split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hfcap.cells import JoinedLines, stands_for_nothing
from hfcap.data.checks import clean_caption
from hfcap.data.images import CheckableImage
from hfcap.data.tables.cell_paths import same_value, template_text, values_at
from hfcap.data.tables.columns import UnfitColumnsError, caption_columns, captions_in, image_column, split_column
from hfcap.data.tables.conversations import Conversation, conversation_in, warn_of_system
from hfcap.data.tables.layout import Layout, TableFile
from hfcap.data.tables.options import TableOptions
from hfcap.data.tables.reading import Row, read_rows
from hfcap.errors import UserError
from hfcap.metrics.shared.caption_files import warn_on_terminal
from hfcap.recipe.prompt_fields import values_of
from hfcap.registry import did_you_mean
from hfcap.schema import ImageBytes
from hfcap.text import counted, is_absolute

SEVERAL_IMAGES = "about several images"
JOINED_REMEDY = "; or say so with data.caption_separator"


@dataclass(frozen=True, slots=True)
class Entry:
    """What one row says; `image` is a name, an address, or the bytes; `listed_as` its name in lists of splits."""

    where: str
    image: str | ImageBytes
    captions: tuple[str, ...]
    split: str | None = None
    image_id: str | None = None
    group: str = ""
    listed_as: str | None = None
    prompt: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    asked: tuple[str, ...] = ()


@dataclass
class LeftOut:
    """Rows that give no entry, counted by reason (`without a caption`), for `hfcap data inspect`."""

    counts: Counter[str] = field(default_factory=Counter)
    systems: int = 0
    """Conversations whose instructions (role system) are left out."""

    def __str__(self) -> str:
        return "; ".join(self.sentences())

    def sentences(self) -> list[str]:
        """Return how many rows each reason left out."""
        return [f"{counted(count, 'row')} {reason}" for reason, count in self.counts.items()]

    def warn_of_conversations(self, where: str) -> None:
        """Say what training on conversations leaves out."""
        if count := self.counts[SEVERAL_IMAGES]:
            warn_on_terminal(f"{where}: {counted(count, 'row')} {SEVERAL_IMAGES}, left out")
        warn_of_system(where, self.systems)


class EntryReader:
    """Reads the entries of tables: the recipe's keys before what the layout says, before the names of columns.

    Args:
        lenient: rows without a caption are left out; otherwise they are errors.
        what: names the kind of file in errors.
        delimiter: between the cells of CSV; empty = as the layout or the header says.
    """

    def __init__(
        self, layout: Layout, options: TableOptions, lenient: bool, what: str = "table", delimiter: str = ""
    ) -> None:
        self.layout, self.options, self.what = layout, options, what
        self.lenient = lenient or layout.drops_captions
        self.form = replace(layout.form, delimiter=delimiter or layout.form.delimiter)
        self.left_out = LeftOut()
        self.prompts: Counter[str] = Counter()
        self.filter = {**layout.filter, **options.filter}
        self.images = (options.image_column,) if options.image_column else layout.image
        self.captions = tuple(options.caption_columns or layout.captions)

    def entries(self, table: TableFile) -> Iterator[Entry]:
        """Yield the entries of one table.

        Raises:
            UserError: with file and line: no image, no captions, an empty caption, or no valid table.
        """
        reader = self.layout.rows
        rows = reader(table.path) if reader else read_rows(table.path, self.form, self.what)
        joined = JoinedLines()
        for row in rows:
            if self._counts(row):
                entry = self._entry(row, table, joined)
                if entry is not None:
                    yield entry
        joined.refuse(str(table.path), JOINED_REMEDY)
        self.left_out.warn_of_conversations(str(table.path))

    def _counts(self, row: Row) -> bool:
        if passes(row.cells, self.filter):
            return True
        self.left_out.counts[f"by filter ({', '.join(self.filter)})"] += 1
        return False

    def _entry(self, row: Row, table: TableFile, joined: JoinedLines) -> Entry | None:
        image = self._image(row)
        if image is None:
            self.left_out.counts["without an image"] += 1
            return None
        if isinstance(image, str) and "://" not in image:
            image = image.replace("\\", "/")  # as Windows writes it
            image = image if is_absolute(image) else table.prefix + image
        where = f"{row.where} ({image})" if isinstance(image, str) else row.where
        prompt = _text(row, self.options.prompt_column or self.layout.prompt) or ""
        talk = conversation_in(row.cells, where) if self.options.own_prompts else None
        if talk is not None:
            if talk.n_images > 1:
                self.left_out.counts[SEVERAL_IMAGES] += 1
                return None
            self.left_out.systems += talk.system
        captions = self._captions(replace_where(row, where), joined) if talk is None else []
        if not captions and talk is None:
            self.left_out.counts["without a caption"] += 1
            return None
        if prompt and not self.options.own_prompts:
            self.prompts[prompt] += 1
        if self.options.prompt_column:
            captions = [without_prompt(one, prompt) for one in captions]
        pairs = (
            own_pairs(talk, captions, prompt, where) if self.options.own_prompts else [("", one) for one in captions]
        )
        return Entry(
            row.where,
            image,
            tuple(answer for _, answer in pairs),
            self._split(row, where) or table.split or self.layout.only_split or None,
            _text(row, self.options.image_id_column or self.layout.image_id),
            _text(row, self.layout.group) or "",
            _text(row, self.layout.listed_as),
            "" if self.options.own_prompts else prompt,
            values_of(row.cells, self.captions or caption_columns(row.cells)),
            tuple(question for question, _ in pairs) if self.options.own_prompts else (),
        )

    def _image(self, row: Row) -> str | ImageBytes | None:
        places = self.images or tuple(filter(None, [image_column(row.cells)]))
        for place in places:
            if "{" in place:
                values: list[Any] = [template_text(row.cells, place)]
            else:
                values = values_at(row.cells, place)
            values = [_image_value(value) for value in values if value not in (None, "")]
            if len(values) > 1:
                raise UserError(
                    f"{row.where} has {len(values)} images under {place!r}, and captions are about one; choose it with "
                    "data.image_column, such as images[0]"
                )
            if values and isinstance(values[0], int) and not isinstance(values[0], bool):
                values = [str(values[0])]
            if values and isinstance(values[0], str | CheckableImage):
                return values[0]
        if self.layout.drops_captions and not self.options.image_column:
            return None
        wanted = places[0] if places else "file_name"
        raise UnfitColumnsError(f"{row.where} has no text under {wanted!r}{did_you_mean(wanted, map(str, row.cells))}")

    def _captions(self, row: Row, joined: JoinedLines) -> list[str]:
        columns = self.captions or tuple(caption_columns(name for name in row.cells))
        if not self.captions and len(columns) > 1 and not _numbered(columns):
            raise UnfitColumnsError(
                f"{row.where}: cannot tell which columns hold captions ({', '.join(columns)}); name them with "
                "data.caption_columns"
            )
        found: list[str] = []
        seen = False
        for column in columns:
            for value in values_at(row.cells, column):
                seen = True
                if value is None or (self.lenient and isinstance(value, str) and _is_nothing(value)):
                    continue
                for caption in captions_in(value, column, row.where, self.options.caption_separator):
                    if not caption.strip():
                        raise UserError(f"{row.where}: empty caption in {column}; write one, or leave it out")
                    if self.options.caption_separator is None:
                        joined.add(caption)
                    found.append(clean_caption(caption))
        if not found and not self.lenient:
            if seen:
                raise UserError(f"{row.where}: the list of captions is empty; add one, or remove the row")
            wanted = ", ".join(columns) or "caption, captions, caption_0 or text"
            raise UnfitColumnsError(
                f"{row.where} has no captions (columns {wanted}); "
                "add captions, or name the columns with data.caption_columns"
            )
        return found

    def _split(self, row: Row, where: str) -> str | None:
        place = self.options.split_column or self.layout.split or split_column(row.cells)
        if not place:
            return None
        values = [value for value in values_at(row.cells, place) if value is not None]
        if not values and self.options.split_column:
            raise UnfitColumnsError(
                f"{where} has no {place!r} (data.split_column){did_you_mean(place, map(str, row.cells))}"
            )
        if values and not isinstance(values[0], str):
            raise UserError(f"{where}: {place} must be text, not {type(values[0]).__name__}")
        return values[0] if values else None


def own_pairs(talk: Conversation | None, captions: Sequence[str], prompt: str, where: str) -> Sequence[tuple[str, str]]:
    """Return the (prompt, caption) pairs of a row, with `data.own_prompts`.

    Raises:
        UserError: the row holds neither a conversation nor a prompt.
    """
    if talk is not None:
        return talk.pairs
    if not prompt.strip():
        raise UserError(
            f"{where}: has no prompt (data.own_prompts); name its column with data.prompt_column, or give messages or "
            "conversations"
        )
    return [(prompt, caption) for caption in captions]


def passes(cells: Mapping[str, Any], filters: Mapping[str, Any]) -> bool:
    """Whether a row has, at every place, the value or one of the values that are wanted there."""
    return all(
        any(same_value(value, one) for value in values_at(cells, place) for one in _several(wanted))
        for place, wanted in filters.items()
    )


def _several(wanted: Any) -> list[Any]:
    return list(wanted) if isinstance(wanted, list | tuple) else [wanted]


def without_prompt(caption: str, prompt: str) -> str:
    """Return a caption without the prompt that it begins with; one that is nothing else stays."""
    return clean_caption(caption.removeprefix(clean_caption(prompt))) or caption


def replace_where(row: Row, where: str) -> Row:
    """Return the row under another name for errors."""
    return row._replace(where=where)


def _is_nothing(text: str) -> bool:
    return not text.strip() or stands_for_nothing(text)


def _numbered(columns: tuple[str, ...]) -> bool:
    return all(name[-1:].isdigit() for name in columns)


def _image_value(value: Any) -> Any:
    """Return what an image cell holds; `datasets` keeps {bytes, path}, of which a path alone is a name."""
    if isinstance(value, Mapping) and value.get("bytes") is None and isinstance(value.get("path"), str):
        return value["path"]
    if isinstance(value, list) and len(value) == 1:
        return _image_value(value[0])
    return value


def _text(row: Row, place: str | None) -> str | None:
    """Return the text or number at a place; None where nothing is."""
    if not place:
        return None
    if "{" in place:
        return template_text(row.cells, place)
    values = [value for value in values_at(row.cells, place) if isinstance(value, str | int)]
    return str(values[0]) if values and str(values[0]).strip() else None
