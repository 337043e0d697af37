"""Conversations about images: TRL's and LLaVA's forms, what they give as pairs, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hfcap.data.source import load_split
from hfcap.data.sources.folder import FolderOptions
from hfcap.data.sources.hub import HubOptions
from hfcap.data.sources.table import TableSourceOptions
from hfcap.data.tables.conversations import conversation_in
from hfcap.errors import UserError
from hfcap.schema import CaptionedImage
from tests.captioners.helpers import random_image, write_image

PAIRS = (("What is it?", "a red rose"), ("Which colour?\nOne word.", "red"))


def llava(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    turns = [[{"from": "human", "value": asked}, {"from": "gpt", "value": answer}] for asked, answer in pairs]
    turns[0][0]["value"] = f"<image>\n{turns[0][0]['value']}"
    return [turn for pair in turns for turn in pair]


def messages(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for number, (asked, answer) in enumerate(pairs):
        shown = [{"type": "image", "text": None}] if number == 0 else []
        turns += [
            {"role": "user", "content": [*shown, {"type": "text", "text": asked}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    return turns


@pytest.mark.parametrize(
    "cells",
    [
        {"conversations": llava(*PAIRS)},
        {"messages": messages(*PAIRS)},
        {"messages": [{**one, "content": one["content"][-1]["text"]} for one in messages(*PAIRS)], "images": ["a.png"]},
        {"messages": json.dumps(messages(*PAIRS))},
        {"prompt": messages(*PAIRS)[:3], "completion": messages(*PAIRS)[3:]},
    ],
    ids=["llava", "messages", "texts", "json", "completion"],
)
def test_each_turn_is_a_pair(cells: dict[str, Any]) -> None:
    found = conversation_in(cells, "row 1")
    assert found is not None and found.pairs == PAIRS and found.n_images <= 1 and not found.system


def test_what_else_a_conversation_holds() -> None:
    system = {"role": "system", "content": "Be brief."}
    found = conversation_in({"messages": [system, *messages(*PAIRS)]}, "row 1")
    assert found is not None and found.system and found.pairs == PAIRS
    two = conversation_in({"messages": messages(*PAIRS), "images": ["a.png", "b.png"]}, "row 1")
    assert two is not None and two.n_images == 2
    marks = conversation_in({"conversations": llava(("<image> and <image>: which?", "both"))}, "row 1")
    assert marks is not None and marks.n_images == 3 and marks.pairs == (("and  : which?", "both"),)
    assert conversation_in({"caption": "a rose"}, "row 1") is None
    assert conversation_in({"prompt": "a text", "completion": "another"}, "row 1") is None


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([{"role": "tool", "content": "x"}], "turn 0: is no turn of a conversation"),
        ([{"role": "user", "content": 7}], "turn 0: is no turn of a conversation"),
        ([{"role": "user", "content": "What?"}], "nothing is answered"),
        ([{"from": "human", "value": "What?"}, {"from": "gpt", "value": " "}], "nothing is answered"),
    ],
)
def test_turns_that_are_none_are_refused(turns: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=f"row 1: .*{said}"):
        conversation_in({"messages": turns}, "row 1")


def asked(records: Sequence[CaptionedImage]) -> list[tuple[tuple[str, str], ...]]:
    return [tuple(zip(one.asked, one.captions, strict=True)) for one in records]


@pytest.mark.parametrize("form", ["llava", "trl"])
def test_a_folder_gives_every_turn_its_prompt(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = []
    for number, split in enumerate(("train", "train", "val", "test")):
        write_image(tmp_path / f"{number}.png", number)
        pairs = PAIRS if number else (*PAIRS, ("And?", "thorns"))
        row = {"image": f"{number}.png", "conversations": llava(*pairs)}
        row = row if form == "llava" else {"images": [f"{number}.png"], "messages": messages(*pairs)}
        rows.append({**row, "split": split})
    several = {"images": ["0.png", "1.png"], "messages": messages(("Which?", "both"))}
    system = {"role": "system", "content": "Be brief."}
    if form == "trl":
        rows += [{**several, "split": "train"}]
        rows[1]["messages"] = [system, *rows[1]["messages"]]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    options = FolderOptions(source="folder", root=str(tmp_path), own_prompts=True)
    train, test = load_split(options, "train"), load_split(options, "test")
    assert asked(train) == [(*PAIRS, ("And?", "thorns")), PAIRS]
    assert asked(test) == [PAIRS[:1]], "one caption is generated of a scored image"
    assert not any(one.prompts for one in train)
    plain = load_split(options.model_copy(update={"own_prompts": False}), "test")
    assert not plain[0].asked and plain[0].prompts
    warned = " ".join(capsys.readouterr().err.split())
    assert ("1 row about several images, left out" in warned) == (form == "trl")
    assert ("1 conversation with a message of role system, which is left out" in warned) == (form == "trl")


def test_a_table_of_questions_and_answers(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(
        "file_name;q;answer;split\na.png;What?;a rose;train\na.png;Where?;in a vase;train\n"
    )
    options = TableSourceOptions(
        table=str(tmp_path / "t.csv"), caption_columns=["answer"], prompt_column="q", own_prompts=True
    )
    assert asked(load_split(options, "train")) == [(("What?", "a rose"), ("Where?", "in a vase"))]
    (tmp_path / "t.csv").write_text("file_name;q;answer;split\na.png;;a rose;train\n")
    with pytest.raises(UserError, match=r"t.csv: line 2 .*has no prompt \(data.own_prompts\)"):
        load_split(options, "train")


def test_a_dataset_of_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import datasets

    pictures = [[random_image(0)], [random_image(1)], [random_image(2), random_image(3)]]
    talks = [messages(*PAIRS), messages(PAIRS[1]), messages(PAIRS[0])]
    talks[2][0]["content"] += [{"type": "image", "text": None}]
    table = datasets.Dataset.from_dict(
        {"images": pictures, "messages": talks, "topic": ["a", "b", "c"]},
        features=datasets.Features(
            {
                "images": datasets.Sequence(datasets.Image()),
                "messages": [
                    {
                        "role": datasets.Value("string"),
                        "content": [{"type": datasets.Value("string"), "text": datasets.Value("string")}],
                    }
                ],
                "topic": datasets.Value("string"),
            }
        ),
    )
    datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(str(tmp_path / "saved"))
    options = HubOptions(dataset=str(tmp_path / "saved"), own_prompts=True)
    found = load_split(options, "train")
    assert asked(found) == [PAIRS, PAIRS[1:]] and found[1].columns["topic"] == "b"
    assert asked(load_split(options, "validation")) == [PAIRS[:1], PAIRS[1:]]
    assert "row 2 (about several images)" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match="keeps no prompts"):
        HubOptions(dataset="x", own_prompts=True, streaming=True, max_train_images=3)
