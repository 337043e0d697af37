"""The table of model types says what the tests build, and names every type of the installed transformers."""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from hfcap.captioners.vlm.loading import REFUSED
from scripts.kinds_table import (
    LOWEST,
    NEWEST,
    NOT_TRIED,
    OF_OTHER_FAMILIES,
    PAGE,
    SINCE_NEWEST,
    built,
    listed,
    with_table,
)

pytestmark = pytest.mark.contract

INSTALLED = Version(".".join(map(str, Version(transformers.__version__).release[:2])))


def test_documentation_shows_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run: python -m scripts.kinds_table"


def test_every_type_has_one_place() -> None:
    places = [*built(), *REFUSED, *NOT_TRIED, *OF_OTHER_FAMILIES]
    assert len(places) == len(set(places))
    assert len(built()) >= 60


def test_every_type_of_the_installed_release_is_listed() -> None:
    known, here = listed() | set(OF_OTHER_FAMILIES), set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    if Version(NEWEST) < INSTALLED:
        pytest.skip(f"newer than the table; not tried: {', '.join(sorted(here - known)) or 'none'}")
    assert here <= known, "add them to scripts/kinds_table.py, or build small models of them in tests/captioners"
    lacking = set(SINCE_NEWEST) if Version(LOWEST) == INSTALLED else set()
    assert known - here == lacking
