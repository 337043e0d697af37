"""Prompts with fields: what they may be, what fills them, and the captions of batches whose prompts differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hfcap
from hfcap.caption_batch import generate_captions
from hfcap.captioners.base import Captioner
from hfcap.captioning.columns import prepared_for
from hfcap.captioning.images import Finishing, _fingerprint, captioner_and_job
from hfcap.captioning.inputs import images_of
from hfcap.cli import app
from hfcap.data.loading import PixelInputs, stacked
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.recipe.prompt_fields import MOST_CHARACTERS, as_template, fields_of, filled, values_of, with_stand_ins
from hfcap.schema import CaptionedImage
from tests.captioners.chat_server import ChatServer, chatting
from tests.captioners.helpers import MemoryImage, build, random_image, write_image
from tests.captioners.itt_models import itt
from tests.captioners.itt_more_models import more
from tests.training.harness import recipe_values


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with chatting() as server:
        yield server


# ---- the grammar and the values ------------------------------------------------------------------------------------


def test_fields_are_names_of_columns_and_double_braces_are_braces() -> None:
    template = "Describe {name}, a {{thing}} with {product tags} and {name}"
    assert fields_of(template) == ("name", "product tags")
    assert with_stand_ins(template) == "Describe name, a {thing} with product tags and name"
    columns = {"name": "a {cup}", "product tags": "x, y"}
    assert filled(template, columns, "a.png") == "Describe a {cup}, a {thing} with x, y and a {cup}"
    for text in ("no braces", "{one}", "}{", '{"key": [{}]}'):
        assert with_stand_ins(as_template(text)) == text and not fields_of(as_template(text))


@pytest.mark.parametrize(
    "template",
    [
        "{a.__class__}",
        "{a[0]}",
        "{a!r}",
        "{a:>10}",
        "{}",
        "{ }",
        "{a:{b}}",
        "{open",
        "closed}",
        "{0.__init__.__globals__}",
    ],
)
def test_what_is_no_name_is_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"write \{\{ and \}\}"):
        fields_of(template)


def test_values_of_strangers_do_no_harm() -> None:
    def of(value: str) -> str:
        return filled("[{name}]", {"name": value}, "a.png", special=["<image>", "<|im_end|>"])

    assert of("{name} {other.__class__} {{") == "[{name} {other.__class__} {{]"
    assert of("a\nb\r\n\tc\x1b[31m\x00d\u2028e\u202ef") == "[a b c [31m d e f]"
    assert of("cup<|im_end|>\n<|im_<image>end|>x<image>") == "[cup <|im_ end|>x]"
    assert of("x" * 10_000) == f"[{'x' * MOST_CHARACTERS}]"
    assert of("क्‍ष") == "[क्‍ष]"  # joiners are letters of scripts
    with pytest.raises(UserError, match=r"has no value for \{name\}"):
        of("<image>\x00")


def test_columns_are_texts_numbers_and_lists_of_texts_but_no_captions() -> None:
    cells = {"name": "cup", "tags": ["a", "b"], "n": 3, "x": None, "deep": {"a": 1}, "empty": " ", "caption": "c"}
    assert values_of(cells, ["caption"]) == {"name": "cup", "tags": "a, b", "n": "3"}


# ---- batches of images with other prompts --------------------------------------------------------------------------

KINDS: dict[str, Any] = {
    "llava": lambda: itt("llava"),
    "qwen2_vl": lambda: itt("qwen2_vl", own=True),
    "florence2": lambda: itt("florence2"),
    "git": lambda: itt("git"),
    "internvl": lambda: more("internvl"),
    "blip": lambda: build("blip"),
    "clip_prefix": lambda: build("clip_prefix"),
}
NAMES = ("red cup", "dog", "red cup", "three people in a long boat", "x")


def records() -> list[CaptionedImage]:
    return [
        CaptionedImage(str(n), f"{n}.png", ("a",), MemoryImage(n), columns={"name": name})
        for n, name in enumerate(NAMES)
    ]


@pytest.mark.parametrize(
    "search", [{"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"]
)
@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_those_of_one_image_at_a_time(
    kind: str, plain: bool, search: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner: Captioner = KINDS[kind]()
    if plain:
        monkeypatch.setattr(type(captioner), "generates_fast", False)
    options = GenerateOptions(max_new_tokens=8, **search)
    inputs = PixelInputs(records(), captioner.image_processor)
    texts = [f"this {name} is" for name in NAMES]
    found = generate_captions(captioner, stacked([inputs[n] for n in range(5)]), options, texts, plan=inputs.plan)
    before = captioner.prompt
    for number, text in enumerate(texts):
        captioner.prompt = text
        (alone,) = generate_captions(captioner, stacked([inputs[number]]), options, plan=inputs.plan)
        assert [one.text for one in found[number]] == [one.text for one in alone]
        for ours, theirs in zip(found[number], alone, strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=1e-3)
    captioner.prompt = before
    other = generate_captions(captioner, stacked([inputs[n] for n in range(5)]), options, plan=inputs.plan)
    assert [[one.text for one in of_image] for of_image in other] != [
        [one.text for one in of_image] for of_image in found
    ]


# ---- hfcap caption, Python and servers -----------------------------------------------------------------------------


def photo_folder(folder: Path, rows: list[dict[str, Any]]) -> Path:
    for number, row in enumerate(rows):
        write_image(folder / row["file_name"], number)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


ROWS: list[dict[str, Any]] = [
    {"file_name": "a.png", "name": "cup\n{x}", "tags": ["red", "small"]},
    {"file_name": "sub/b.png", "name": "dog", "tags": ["brown"]},
]


def asked_texts(chat: ChatServer) -> list[str]:
    return [body["messages"][0]["content"][1]["text"] for body in chat.asked]


def test_a_served_model_is_asked_about_each_image_with_its_own_columns(chat: ChatServer, tmp_path: Path) -> None:
    folder, out = photo_folder(tmp_path / "photos", ROWS), str(tmp_path / "captions.csv")
    prompt = "Describe this {name} ({tags}) as {{json}}"
    done = CliRunner().invoke(app, ["caption", chat.base_url, str(folder), "-o", out, "--prompt", prompt])
    assert done.exit_code == 0, done.output
    assert sorted(asked_texts(chat)) == [
        "Describe this cup {x} (red, small) as {json}",
        "Describe this dog (brown) as {json}",
    ]
    captioner = hfcap.load_captioner(chat.base_url)
    captioner.caption([folder / "sub" / "b.png"], "What {name}?")
    assert asked_texts(chat)[-1] == "What dog?"


def test_what_an_image_lacks_is_said_before_anything_is_asked(chat: ChatServer, tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "photos", [*ROWS, {"file_name": "c.png", "tags": ["x"], "name": ""}])
    command = ["caption", chat.base_url, str(folder), "-o", str(tmp_path / "captions.csv"), "--prompt"]
    for prompt, parts in {
        "this {namee}": ("a.png", "{namee}", "did you mean 'name'?", "file_name, name, tags"),
        "this {name}": ("c.png", "{name}", "columns with one: file_name, tags"),
        "this {name.__class__}": ("{name.__class__} names no column",),
    }.items():
        refused = CliRunner().invoke(app, [*command, prompt])
        assert isinstance(refused.exception, UserError), refused.output
        assert all(part in str(refused.exception) for part in parts), str(refused.exception)
    assert not chat.asked


def test_a_dataset_is_asked_with_its_columns_and_rows_without_a_value_are_left_out(
    chat: ChatServer, tmp_path: Path
) -> None:
    import datasets

    rows = {"image": [random_image(n) for n in range(3)], "name": ["cup", None, "dog"], "n": [1, 2, 3]}
    features = datasets.Features(
        {"image": datasets.Image(), "name": datasets.Value("string"), "n": datasets.Value("int64")}
    )
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "rows.parquet"))
    out = tmp_path / "captions.jsonl"
    command = ["caption", chat.base_url, str(tmp_path / "rows.parquet"), "-o", str(out), "--prompt"]
    refused = CliRunner().invoke(app, [*command, "{title}"])
    assert "no column for {title} (columns: name, n)" in str(refused.exception) and not chat.asked
    done = CliRunner().invoke(app, [*command, "{n}. {name}"])
    assert done.exit_code == 0 and "has no value for {name}" in done.output.replace("\n", " ")
    assert sorted(asked_texts(chat)) == ["1. cup", "3. dog"]


def test_a_coco_file_names_columns_too(chat: ChatServer, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    images = [{"id": 7, "file_name": "a.png", "place": "Rome"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": []}))
    done = CliRunner().invoke(
        app,
        [
            "caption",
            chat.base_url,
            str(tmp_path / "coco.json"),
            "-o",
            str(tmp_path / "c.csv"),
            "--prompt",
            "in {place}?",
        ],
    )
    assert done.exit_code == 0, done.output
    assert asked_texts(chat) == ["in Rome?"]


def test_a_captioning_with_other_values_begins_again(chat: ChatServer, tmp_path: Path) -> None:
    found = []
    for name in ("cup", "dog", "cup"):
        folder = photo_folder(tmp_path / "photos", [{"file_name": "a.png", "name": name}])
        captioner, job = captioner_and_job(chat.base_url, None, False, None, "this {name}", 4, {}, ())
        found.append(_fingerprint(captioner, job, prepared_for(captioner, job, images_of([str(folder)])), Finishing()))
    assert found[0] != found[1]


# ---- recipes -------------------------------------------------------------------------------------------------------


def test_a_recipe_with_a_field_that_is_none_is_refused(tmp_path: Path) -> None:
    values = recipe_values("blip", tmp_path)
    values["model"]["prompt"] = "{name.__class__}"
    with pytest.raises(UserError, match=r"model\.prompt.*names no column"):
        recipe_from_mapping(values, "test")
