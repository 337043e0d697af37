"""What a layout is: which files hold the captions of a dataset, and where in their rows things stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfcap.data.tables.reading import Row, TableForm


@dataclass(frozen=True)
class Layout:
    """One way to lay out images and captions; the layouts that hfcap knows are in `layouts.py`.

    Places in rows are written as `cell_paths.py` reads them.

    Attributes:
        name: value of the recipe's key `data.layout`.
        title: what people call it, for the documentation and `hfcap data inspect`.
        tables: patterns of the files with captions, in the folder or (with `*/`) one below it.
        one_kind: only the files of the first pattern that fits are read.
        shows: what the documentation shows of it: a line or an entry.
        needs: places that the first row has; others are not this layout.
        image: places or templates of the image's name, the first that is there; empty = found by the column's name.
        captions: places of captions; empty = found by the columns' names.
        split: place of the split; empty = a column `split`, else the table's name, `split_lists`, the folder, or drawn.
        image_id: place of the image's id; empty = its name.
        group: place of what scores are told apart by.
        prompt: place of the prompt.
        filter: place -> value of rows that count.
        form: what the files do not say themselves.
        split_lists: patterns of files that list the images of a split, one a line; their names say which. A JSON file
            is an object from splits to lists.
        listed_as: place of the name in those lists; empty = the image's.
        only_split: all there is, of what was published for evaluation alone.
        drops_captions: the places leave captions out (canned, rejected), and images may remain without any.
        whole_folder: somebody's own images, all of which are to have captions.
        automatic: recognised without being named.
        rows: reads the rows where no table holds them.
    """

    name: str
    title: str
    tables: tuple[str, ...] = ()
    one_kind: bool = False
    shows: str = ""
    needs: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    split: str = ""
    image_id: str = ""
    group: str = ""
    prompt: str = ""
    filter: Mapping[str, Any] = field(default_factory=dict)
    form: TableForm = field(default_factory=TableForm)
    split_lists: tuple[str, ...] = ()
    listed_as: str = ""
    only_split: str = ""
    drops_captions: bool = False
    whole_folder: bool = False
    automatic: bool = True
    rows: Callable[[Path], Iterator[Row]] | None = None

    @property
    def one_file_an_image(self) -> bool:
        """Whether there are as many tables as images, which are not all looked into to know the layout."""
        return self.form.one_row


@dataclass(frozen=True)
class TableFile:
    """One file with captions.

    Attributes:
        path: the file; for a layout without tables the folder.
        split: of all its rows, where its name or folder says so.
        prefix: what stands before its image names, relative to the folder of images; "" or ends with a slash.
    """

    path: Path
    split: str | None = None
    prefix: str = ""
