"""Writes the table of model types in docs/image_text_to_text.md from the tests: python -m scripts.kinds_table.

A type is tested where tests/captioners builds a small model of it, refused where hfcap says so, and else not tried.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hfcap.captioners.image_text_to_text import ADAPTERS
from hfcap.captioners.vlm.loading import REFUSED
from hfcap.captioners.vlm.prefix import Prefix
from hfcap.captioners.vlm.rows import Rows
from hfcap.files import write_text
from tests.captioners.itt_film_models import NEEDS, VISION_MODELS
from tests.captioners.itt_late_models import LATE_MODELS
from tests.captioners.itt_models import MODELS
from tests.captioners.itt_more_models import MORE_MODELS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "image_text_to_text.md"
BEGIN, END = "<!-- model types: written by scripts/kinds_table.py -->", "<!-- end of model types -->"

LOWEST, NEWEST = "5.23", "5.24"
"""Releases of transformers that the table is about: the lowest that hfcap takes, the newest that it was made with."""
SINCE_NEWEST = ("apertus1p5", "hy_v4_vl", "inkling2_loop")
"""Types that the lowest release does not know."""
OF_OTHER_FAMILIES = ("blip", "vision-encoder-decoder")
"""Types in transformers' list that have captioner families of their own."""
NOT_TRIED = (
    "cosmos3_omni",
    "dots3_note",
    "glm5_next",
    "hy_v4_vl",
    "inkling2_loop",
    "molmo2",
    "qwen3_omni_moe_thinker",
)
BUILT_UNDER_ANOTHER_NAME = {"paligemma2": "paligemma"}
"""Name of a small model -> its model type, where they differ."""


def built() -> dict[str, tuple[str, ...]]:
    """Return the model types that tests build, with the packages that they need besides the core ones."""
    names = ["git", *MODELS, *MORE_MODELS, *LATE_MODELS]
    found = {BUILT_UNDER_ANOTHER_NAME.get(name, name): () for name in names}
    return found | {name: tuple(NEEDS.get(name, ["torchvision"])) for name in VISION_MODELS}


def listed() -> set[str]:
    """Return all model types that the table names."""
    return {*built(), *REFUSED, *NOT_TRIED}


def _packs(model_type: str) -> bool:
    kind = next((kind for kind in ADAPTERS if model_type in kind.model_types), Rows)
    return issubclass(kind, Prefix) or not issubclass(kind, Rows)


def markdown_table() -> str:
    """Return counts and table."""
    types = built()
    rows = [("works, packed: the captions of an image in one row", _names(filter(_packs, types)))]
    one_row = [name for name in types if not _packs(name)]
    for packages in sorted({types[name] for name in one_row}):
        needs = f"; needs {' and '.join(packages)}" if packages else ""
        rows.append((f"works, one row per caption{needs}", _names(name for name in one_row if types[name] == packages)))
    rows.append(("not tried; those that take the image as the ones above do may work", _names(NOT_TRIED)))
    for reason in dict.fromkeys(REFUSED.values()):
        rows.append((f"refused: {reason}", _names(name for name in REFUSED if REFUSED[name] == reason)))
    apart = " and ".join(f"`{name}`" for name in OF_OTHER_FAMILIES)
    counts = (
        f"transformers {NEWEST} lists {len(listed()) + len(OF_OTHER_FAMILIES)} model types, of which {apart} have "
        f"families of their own. Of the others {len(types)} are tested and work, {len(NOT_TRIED)} are not tried, "
        f"{len(REFUSED)} are refused. transformers {LOWEST} does not know {_names(SINCE_NEWEST)}."
    )
    lines = [counts, "", "| | model types |", "|---|---|", *(f"| {what} | {names} |" for what, names in rows)]
    return "\n".join(lines)


def _names(types: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(types))


def with_table(page: str) -> str:
    """Return the page with the table of today."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown_table()}\n{END}{after}"


if __name__ == "__main__":
    write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8")))
