"""YAML as recipes use it: the core schema of YAML 1.2, nothing that can surprise or explode."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hfcap.recipe import strict_yaml
from hfcap.recipe.strict_yaml import YamlProblem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 0.00001),
        ("1E5", 100000.0),
        ("-.5", -0.5),
        ("12", 12),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("true", True),
        ("~", None),
        ("", None),
        ("'1e-5'", "1e-5"),
        ("1e999", "1e999"),
        (".nan", ".nan"),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: Any) -> None:
    got = strict_yaml.parse(f"key: {text}").value["key"]
    assert got == value
    assert type(got) is type(value)


def test_lines_of_nested_keys() -> None:
    document = strict_yaml.parse("a: 1\nb:\n  c: 2\n  d: [x,\n    y]\n")
    assert document.lines == {("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "d"): 4, ("b", "d", 0): 4, ("b", "d", 1): 5}


def test_duplicate_key_names_both_lines_and_the_rest_is_still_read() -> None:
    document = strict_yaml.parse("a: 1\nb: 2\na: 3\nc: {d: 1, d: 2}\n")
    assert document.problems == [
        (("a",), "given twice, on line 1 and on line 3; delete one"),
        (("c", "d"), "given twice, both on line 4; delete one"),
    ]
    assert document.value["b"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", "line 1, column 4: anchors and aliases"),
        ("a: 1\nb: *x\n", "line 2, column 4: anchors and aliases"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1, column 4: tags are not allowed"),
        ("a: !!float 1\n", "tags are not allowed"),
        ("a: " + "[" * 500, "nested more than 30 levels"),
        ("a: [1\nb: 2\n", "line 2, column 2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: not valid YAML"),
        ("a: \x01\n", "not valid YAML (character 4"),
        ("a: '" + "x" * 1_000_000 + "'", "longer than 1000000 characters"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(YamlProblem, match=re.escape(message)):
        strict_yaml.parse(text)


def test_keys_that_are_no_text_and_half_characters_are_problems() -> None:
    document = strict_yaml.parse('1: a\n[x]: b\nc: "\\ud800"\nd: "\\0"\n')
    assert [problem for _, problem in document.problems] == [
        "line 1: a key must be text; write it in quotes",
        "line 2: a key must be text; write it in quotes",
        "contains half a character (an unpaired UTF-16 surrogate)",
        "contains the character NUL",
    ]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30) | st.sampled_from(
    [
        "no",
        "1e5",
        "1e-5",
        "0o17",
        "null",
        "~",
        "",
        " a",
        "a ",
        "- a",
        "a: b",
        "#",
        "2024-01-01",
        "1_0",
        "\n",
        "a\n",
        ".inf",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_dump_comes_back_equal_and_other_yaml_readers_agree(value: dict[str, Any]) -> None:
    text = strict_yaml.dump(value)
    assert strict_yaml.parse(text).value == value
    assert yaml.safe_load(text) == value
