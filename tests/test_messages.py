"""Error messages: each says where, what, and what to do (docs/style.md). Every place that raises one is read here."""

from __future__ import annotations

import ast
import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hfcap.errors import LONGEST_MESSAGE, MissingPackageError, UserError, WorkError, shown
from hfcap.metrics.shared.caption_files import read_references

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "hfcap").rglob("*.py"))

KINDS = {"UserError", "UnfitColumnsError", "WorkError", "OptionError", "RecipeError", "TransientError", "ValueError"}
SAID_ELSEWHERE = {
    "ChangedError": "the review page says it (review/page.py)",
    "MissingPackageError": "its constructor says what to install",
    "NoSuchSplitError": "its constructor names the splits that exist",
    "PrecisionError": "its constructor takes a problem and a remedy",
    "RefusedByServerError": "an UnreadableImageError",
    "StoppedError": "nothing is wrong; it says how to go on",
    "UnreadableImageError": "says where and what; who collects them (data/checks.py, hfcap caption) says what to do",
    "DamagedTableError": "the file is made again, or becomes part of a warning (data/kept/keeping.py)",
    "UnsettledError": "nothing is kept, and data are read each time (data/kept/keeping.py)",
    "_ElsewhereError": "nothing is kept, and data are read each time (data/kept/table.py)",
    "YamlProblem": "becomes part of a RecipeError, with file and line",
    "_DamagedError": "becomes a UserError with the name of the file (judgments/layouts/mat_file.py)",
    "_LostClaimError": "nobody is told: another worker has taken the shard over (captioning/sharded/work.py)",
    "_NotCheckedError": "a finding of hfcap verify, no error",
    "_OtherLayoutError": "nobody is told: the file is read as a whole, which says more (scoring/score_lines.py)",
}
"""Kinds of errors whose messages are not complete where they are raised, and why."""

WHOLE_MESSAGES = re.compile(
    r"""^\{(?:
        message\((?:error|fault)\) | problems\[0\] | str\(busy\) | str\(error\)
        | (?:nothing_readable|_not_understood|no_file|no_folder)\(.*\)
        | problems
        | \[f'\{path\}:\ \{error\}'\]
        | '\\n'\.join\(.*\)
    )\}$""",
    re.VERBOSE | re.DOTALL,
)
"""Messages that were made elsewhere: by a function `message` (which is read here, too), or lists of problems."""

HANDED_ON = re.compile(
    r"(?:: |^)\{(?:error|lines|problem|reason|(?:no_file|no_folder|missing_package)\(.*\)|'; '\.join\(problems\))\}$"
)
"""Messages that end with another one, which has its remedy."""

VERBS = (
    "accept|add|allow|ask|build|caption|cast|change|check|choose|clear|close|compare|convert|copy|correct|create|cut|"
    "delete|download|edit|end|enter|export|extract|fetch|fill|find|finish|fit|free|give|halve|increase|"
    "install|keep|leave|load|look|lower|make|merge|move|name|open|pack|pass|pip|point|publish|put|raise|read|"
    "reduce|reinstall|remove|rename|repair|replace|report|restore|run|save|say|scan|score|search|see|set|"
    "sign|spell|split|start|take|train|try|turn|update|upload|use|verify|wait|write"
)

REMEDY = re.compile(
    rf"""
    (?:^|[\n(]|[;:.,]\s+|\b(?:or|and|or\ else|and\ then|otherwise|then|instead|first|please|,)\ )
        (?:first\ |else\ |then\ )?(?:'?(?:hfcap|pip|hf|git)\ |(?:{VERBS})\b)
    | \bdid\ you\ mean | \bmust\b | \bneeds?\b | \binstead\b | \bexpected\b
    | \{{[^{{}}]*(?:remedy|hint|advice|meant|did_you_mean|known|_HOW|_suggestion|look_at)[^{{}}]*\}}
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""An imperative at the beginning of a clause, a demand, or a field that holds one."""

PLACE = re.compile(r"\{|--\w|\b\w+\.\w+\b|^[A-Za-z_ ]+: |^metric '|^[A-Z]\w+'s ")
"""A field, an option, a key, or a name in front of a colon."""


@dataclass(frozen=True)
class Message:
    """One place that raises an error; `text` has its fields in braces."""

    file: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.kind}: {self.text[:160]!r}"


def text_of(node: ast.expr) -> str:
    """The text of an expression: constants as they are, everything else in braces."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            f"{{{ast.unparse(part.value)}}}" if isinstance(part, ast.FormattedValue) else text_of(part)
            for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return f"{{{ast.unparse(node)}}}"


def texts_of(node: ast.expr) -> list[str]:
    """The texts that an expression can have; a condition has two."""
    if isinstance(node, ast.IfExp):
        return [*texts_of(node.body), *texts_of(node.orelse)]
    return [text_of(node)]


def raised(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield line, kind and text of what is raised, and of what functions called `message` return."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func).rpartition(".")[2]
            for text in texts_of(node.exc.args[0]) if node.exc.args else [""]:
                yield node.lineno, name, text
        elif isinstance(node, ast.FunctionDef) and node.name in (
            "message",
            "_no_pixels",
            "no_file",
            "no_folder",
            "nothing_readable",
            "_not_understood",
        ):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    yield from ((inner.lineno, "message", text) for text in texts_of(inner.value))


def messages() -> list[Message]:
    found = []
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = path.relative_to(ROOT).as_posix()
        found += [Message(name, *one) for one in raised(tree) if one[1] in KINDS | {"message"}]
    return found


def is_complete(text: str) -> bool:
    return bool(WHOLE_MESSAGES.match(text) or HANDED_ON.search(text) or REMEDY.search(text))


def test_every_message_says_what_to_do() -> None:
    every = messages()
    assert len(every) > 450
    assert [str(message) for message in every if not is_complete(message.text)] == []


def test_every_message_says_where() -> None:
    """Validators of recipes are told apart: whoever collects their messages puts file, line and key in front."""
    without = [str(one) for one in messages() if one.kind != "ValueError" and not PLACE.search(one.text)]
    assert without == []


def test_every_kind_of_error_is_known() -> None:
    """A new class of errors is read here, or says why not."""
    classes = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                classes[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    known = {"UserError", "WorkError", "ValueError", "RuntimeError", "Exception"}
    while more := {name for name, bases in classes.items() if bases & known} - known:
        known |= more
    ours = {name for name in known if name in classes}
    assert ours - KINDS - SAID_ELSEWHERE.keys() == set()


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("{path}: is not empty; choose a new folder", True),
        ("{path}: must map words to lists", True),
        ("{path}: is no complete file; hfcap caption makes it", True),
        ("{path}: cannot be used{hint}", True),
        ("{message(error)}", True),
        ("{where}: {error}", True),
        ("{path}: is damaged", False),
        ("{path}: is damaged; nothing can be done", False),
        ("the encoder was set to None", False),
        ("{path}: is damaged ({error})", False),
    ],
)
def test_the_check_tells_messages_apart(text: str, complete: bool) -> None:
    assert is_complete(text) is complete


def test_messages_are_read_whole() -> None:
    source = """
def f(path, error):
    raise UserError(f"{path}: is {'a' if path else 'b'}; " + "give another") from error

def message(error):
    return "one" if error else f"two {error}"
"""
    assert sorted(raised(ast.parse(source))) == [
        (3, "UserError", "{path}: is {'a' if path else 'b'}; give another"),
        (6, "message", "one"),
        (6, "message", "two {error}"),
    ]
    assert "pip install" in str(MissingPackageError("gradio", "the demo"))


def test_values_are_shown_in_short(tmp_path: Path) -> None:
    """A file of another kind in the place of captions: its whole content stood in the message."""
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"references": {f"{number}.jpg": ["a dog"] * 5 for number in range(1000)}}))
    with pytest.raises(UserError, match=r"key 'references': the caption must be text, not \{'0\.jpg'") as found:
        read_references(path)
    assert len(str(found.value)) < len(str(path)) + 300
    assert shown("a dog") == "'a dog'" and shown(12) == "12" and shown(None) == "None"
    assert len(shown([["x" * 1000] * 10] * 10)) <= 200


@pytest.mark.parametrize("kind", [UserError, WorkError])
def test_a_message_is_never_longer_than_anybody_reads(kind: type[Exception]) -> None:
    short, said = kind("wrong"), str(kind("recipe.yaml: " + "x" * 100_000 + "; correct it"))
    assert str(short) == "wrong" and len(said) <= LONGEST_MESSAGE
    assert said.startswith("recipe.yaml: x") and said.endswith("x; correct it")
    assert str(pickle.loads(pickle.dumps(kind(said)))) == said  # a worker's error comes home
