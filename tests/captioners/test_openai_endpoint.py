"""Served models as captioners: what is sent, what becomes of the answers, and each kind of failure."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

import hfcap
from hfcap.captioners.asking.thinking import thinks_at_end, without_thinking
from hfcap.captioners.loading import load_captioner
from hfcap.captioners.openai_endpoint import OpenAIEndpoint, OpenAIEndpointOptions
from hfcap.captioning import caption_images
from hfcap.errors import OptionError, UserError, WorkError
from hfcap.files import read_json_lines
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.loading import RecipeError, recipe_from_mapping
from hfcap.served.client import Client
from tests.captioners.chat_server import COLOURS, ChatServer, Fault, chatting
from tests.training.harness import recipe_values

KEY = "key-that-nobody-may-see-0123456789"
PLAIN = GenerateOptions(num_beams=1, max_new_tokens=20)


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with chatting() as server:
        yield server


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcap.served.client._FIRST_PAUSE", 0.01)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three images: red, green, blue; one of them as a camera wrote it, on its side."""
    paths = []
    for number, colour in enumerate(((200, 20, 20), (20, 200, 20), (20, 20, 200))):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (60 + 10 * number, 40), colour).save(paths[-1])
    return paths


def saved(folder: Path, chat: ChatServer, **model: Any) -> Path:
    options = OpenAIEndpointOptions(base_url=chat.base_url, **{"model": "colours", "max_retries": 3, **model})
    folder.mkdir(parents=True, exist_ok=True)
    OpenAIEndpoint.build(options, []).save(folder, PLAIN)
    return folder


def captioner_of(folder: Path, chat: ChatServer, **model: Any) -> hfcap.ImageCaptioner:
    return hfcap.load_captioner(saved(folder / "served", chat, **model))


def test_images_and_prompt_are_sent_and_answers_are_captions(
    chat: ChatServer, images: list[Path], tmp_path: Path
) -> None:
    captioner = captioner_of(tmp_path, chat, image_format="png", prompt="What is it?")
    found = captioner.caption(images)
    assert [one.text for one in found] == [f"a {colour} image" for colour in COLOURS]
    assert [one.usage for one in found] == [{"prompt_tokens": 100, "completion_tokens": 7}] * 3
    assert all(one.score is None and not one.cut for one in found)
    body = chat.asked[0]
    assert body["model"] == "colours" and body["max_tokens"] == 20 and body["temperature"] == 0.0
    assert "seed" not in body and "stream" not in body
    assert body["messages"][0]["content"][1] == {"type": "text", "text": "What is it?"}
    assert {image.size for image in chat.images} == {(60, 40), (70, 40), (80, 40)}
    for path, sent in zip(images, sorted(chat.images, key=lambda image: image.size), strict=True):
        assert sent.convert("RGB").tobytes() == Image.open(path).tobytes()
    assert chat.keys == [None] * 3
    captioner.caption(images[0], "")
    assert [part["type"] for part in chat.asked[-1]["messages"][0]["content"]] == ["image_url"]


def test_photos_are_sent_upright_small_and_without_metadata(chat: ChatServer, tmp_path: Path) -> None:
    path, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera of somebody"  # lies on its side
    Image.new("RGB", (400, 200), (200, 20, 20)).save(path, exif=exif)
    captioner_of(tmp_path, chat, max_side=100).caption(path)
    (sent,) = chat.images
    assert sent.size == (50, 100) and sent.format == "JPEG" and not dict(sent.getexif())


def test_samples_are_drawn_with_seeds_that_stay(chat: ChatServer, images: list[Path], tmp_path: Path) -> None:
    captioner = captioner_of(tmp_path, chat)
    drawn: dict[str, Any] = {"do_sample": True, "num_return_sequences": 2, "temperature": 0.7, "top_p": 0.9, "seed": 3}
    (caption,) = captioner.caption(images[:1], **drawn)
    assert len(caption.candidates) == 2 and caption.usage == {"prompt_tokens": 200, "completion_tokens": 14}
    seeds = {body["seed"] for body in chat.asked}
    assert len(seeds) == 2 and all(body["temperature"] == 0.7 and body["top_p"] == 0.9 for body in chat.asked)
    captioner.caption(images[:1], **drawn)
    assert {body["seed"] for body in chat.asked[2:]} == seeds


def test_several_are_asked_at_a_time(chat: ChatServer, images: list[Path], tmp_path: Path) -> None:
    chat.seconds = 0.2
    captioner = captioner_of(tmp_path, chat, max_concurrency=2)
    assert [one.text for one in captioner.caption(images * 2)] == [f"a {colour} image" for colour in COLOURS * 2]
    assert chat.at_once == 2


def test_the_only_model_needs_no_name(chat: ChatServer, images: list[Path], tmp_path: Path) -> None:
    captioner = captioner_of(tmp_path, chat, model=None)
    assert captioner.caption(images[0]).text == "a red image" and chat.asked[0]["model"] == "colours"
    chat.models = ["one", "two"]
    with pytest.raises(UserError, match=r"has one, two; set model\.model"):
        captioner_of(tmp_path / "again", chat, model=None).caption(images[0])


def test_fields_of_requests_can_be_added_and_taken_out(chat: ChatServer, images: list[Path], tmp_path: Path) -> None:
    extra = {"max_tokens": None, "max_completion_tokens": 50, "chat_template_kwargs": {"enable_thinking": False}}
    captioner_of(tmp_path, chat, extra_body=extra).caption(images[0])
    (body,) = chat.asked
    assert "max_tokens" not in body and body["max_completion_tokens"] == 50
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


# ---- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "finish", "text", "cut"),
    [
        ({"content": "a dog on"}, "length", "a dog on", True),
        ({"content": " a\n dog "}, "stop", "a dog", False),
        ({"content": "<think>a cat? no</think>\n\na dog"}, "stop", "a dog", False),
        ({"content": "a cat? no</think>a dog"}, "stop", "a dog", False),
        ({"content": "<think>a cat? perhaps"}, "length", "", True),
        ({"content": "a dog", "reasoning_content": "a cat? no"}, "stop", "a dog", False),
        ({"content": None, "reasoning_content": "a cat?"}, "length", "", True),
        ({"content": [{"type": "text", "text": "a dog"}]}, "stop", "a dog", False),
    ],
)
def test_thinking_is_no_caption_and_cuts_are_marked(
    message: dict[str, Any], finish: str, text: str, cut: bool, chat: ChatServer, images: list[Path], tmp_path: Path
) -> None:
    chat.answer = lambda choice: {"message": {"role": "assistant", **message}, "finish_reason": finish}
    caption = captioner_of(tmp_path, chat).caption(images[0])
    assert (caption.text, caption.cut) == (text, cut)


@pytest.mark.parametrize(
    ("text", "caption", "unended"),
    [
        ("a dog", "a dog", False),
        ("<think>a<think>b</think>c</think>a dog", "a dog", False),
        ("<THINKING>a</THINKING> a dog <think>b", "a dog", True),
        ("◁think▷a◁/think▷a dog", "a dog", False),
        ("[THINK]a[/THINK]a dog", "a dog", False),
        ("<|channel>thought\na<channel|>a dog", "a dog", False),
        ("<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>a dog", "a dog", False),
        ("<think>a</think><answer>a dog</answer>", "a dog", False),
        ("1 < 2 and a <b> thinks", "1 < 2 and a <b> thinks", False),
    ],
)
def test_marks_of_thinking(text: str, caption: str, unended: bool) -> None:
    said, open_end = without_thinking(text)
    assert (" ".join(said.split()), open_end) == (caption, unended)
    assert thinks_at_end("<|im_start|>assistant\n<think>\n") and not thinks_at_end("<think>\n\n</think>\n\n")


# ---- failures -------------------------------------------------------------------------------------------------------

BUSY = (Fault(429, '{"error": {"message": "slow down"}}', {"Retry-After": "0"}), Fault(503), Fault(hang_up=True))


def test_what_may_pass_is_tried_again(chat: ChatServer, images: list[Path], tmp_path: Path) -> None:
    chat.faults = list(BUSY)
    assert captioner_of(tmp_path, chat).caption(images[0]).text == "a red image"
    assert len(chat.paths) == 4


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fault(429, '{"error": {"message": "slow down"}}'), WorkError, r"HTTP 429 \(slow down\); wait until"),
        (Fault(500, '{"detail": "no memory"}'), WorkError, r"HTTP 500 \(no memory\)"),
        (Fault(hang_up=True), WorkError, r"cannot be reached \(.*\); start the server, or correct model\.base_url"),
        (
            Fault(200, "<html>hello</html>"),
            WorkError,
            r"no JSON object \('<html>hello</html>'\); check model\.base_url",
        ),
        (Fault(200, '{"hello": 1}'), WorkError, r"no chat completion .*; check model\.base_url"),
        (Fault(200, '{"choices": []}'), WorkError, r"no chat completion"),
        (
            Fault(404, '{"detail": "Not Found"}'),
            UserError,
            r"HTTP 404 \(Not Found\); check model\.base_url.*model\.model",
        ),
        (Fault(401, '{"error": "bad"}'), UserError, r"wants a key \(HTTP 401\); export the key.*model\.api_key_env"),
        (
            Fault(400, '{"error": {"message": "too\\u001b[31m long"}}'),
            UserError,
            r"refuses .*HTTP 400 \(too.\[31m long\)",
        ),
    ],
)
def test_each_failure_is_one_message(
    fault: Fault, kind: type[Exception], message: str, chat: ChatServer, images: list[Path], tmp_path: Path
) -> None:
    chat.faults = [fault] * 4
    with pytest.raises(kind, match=message) as caught:
        captioner_of(tmp_path, chat).caption(images[0])
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_server_that_is_not_there(images: list[Path], tmp_path: Path) -> None:
    with chatting() as gone:
        folder = saved(tmp_path / "served", gone, max_retries=50)
    before = time.monotonic()
    with pytest.raises(WorkError, match=r"cannot be reached \(.*refused\); start the server"):
        hfcap.load_captioner(folder).caption(images[0])
    assert time.monotonic() - before < 5


def test_a_server_that_takes_too_long(chat: ChatServer, images: list[Path], tmp_path: Path) -> None:
    chat.seconds = 1.0
    with pytest.raises(WorkError, match=r"no answer within 0\.2 s; raise model\.timeout"):
        captioner_of(tmp_path, chat, timeout=0.2, max_retries=1).caption(images[0])


def test_answers_without_text(chat: ChatServer, images: list[Path], tmp_path: Path) -> None:
    chat.answer = lambda choice: {"message": {"content": " "}, "finish_reason": "stop"}
    with pytest.raises(WorkError, match=r"answers without text; check that it reads images, and change model\.prompt"):
        captioner_of(tmp_path, chat).caption(images)


# ---- the key --------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_never_shown(
    chat: ChatServer,
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MY_SERVER", KEY)
    folder = saved(tmp_path / "served", chat, api_key_env="MY_SERVER")
    captioner = hfcap.load_captioner(folder)
    assert captioner.caption(images[0]).text == "a red image"
    assert chat.keys == [f"Bearer {KEY}"]
    assert KEY not in "".join(path.read_text() for path in folder.iterdir()) + repr(vars(captioner.captioner))
    for status in (400, 401, 404, 500):
        chat.faults = [Fault(status, json.dumps({"error": f"the key {KEY} is wrong"}))] * 4
        with pytest.raises((UserError, WorkError)) as caught:
            captioner.caption(images[0])
        assert KEY not in str(caught.value) and KEY[:12] not in str(caught.value)
    monkeypatch.setenv("MY_SERVER", f"{KEY}\nEvil: 1")
    with pytest.raises(UserError, match=r"MY_SERVER holds what cannot be sent; set it to the key alone") as caught:
        captioner.caption(images[0])
    assert KEY not in str(caught.value)
    monkeypatch.delenv("MY_SERVER")
    with pytest.raises(UserError, match=r"model\.api_key_env: .* MY_SERVER is not set; export it"):
        captioner.caption(images[0])
    shown = capfd.readouterr()
    assert KEY not in shown.out + shown.err


def test_neither_key_nor_image_follows_a_redirect(
    chat: ChatServer, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SERVER", KEY)
    with chatting() as other:
        for status in (301, 302, 303, 307, 308):
            chat.faults = [Fault(status, headers={"Location": f"{other.base_url}/chat/completions"})]
            captioner = captioner_of(tmp_path, chat, api_key_env="MY_SERVER")
            with pytest.raises(UserError, match=rf"redirects to {other.address[7:]}.*set model\.base_url"):
                captioner.caption(images[0])
        assert other.paths == []


@pytest.mark.parametrize("key", ["sk-" + "a" * 40, "hf_" + "a" * 34, "two words"])
def test_a_key_in_the_recipe_is_refused_and_not_repeated(key: str, tmp_path: Path) -> None:
    values = recipe_values("blip", tmp_path) | {"captioner": "openai_endpoint", "lora": None}
    values["model"] = {**OpenAIEndpoint.tiny(), "api_key_env": key}
    with pytest.raises(RecipeError, match=r"api_key_env: must be the name of an environment variable") as caught:
        recipe_from_mapping(values, "test")
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of base_url and pretrained"),
        ({"base_url": "127.0.0.1:8000"}, "no web address; write it as http"),
        ({"base_url": "file:///etc/passwd"}, "no web address"),
        ({"base_url": "http://127.0.0.1/v1\u00e9"}, "no web address"),
        ({"base_url": "http://127.0.0.1/v 1"}, "no web address"),
        ({"base_url": "http://me:secret@127.0.0.1/v1"}, "must hold no user name, password or query"),
        ({"base_url": "http://127.0.0.1/v1?key=secret"}, "must hold no user name, password or query"),
        ({"base_url": "https://example.com/v1"}, "images would leave this machine; set trust_remote_code: true"),
        ({"base_url": "http://127.0.0.1/v1", "revision": "main"}, "revision: has no effect"),
        ({"base_url": "http://127.0.0.1/v1", "extra_body": {"messages": []}}, "extra_body: messages is set by hfcap"),
    ],
)
def test_wrong_keys(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OpenAIEndpointOptions(**values)


def test_images_leave_this_machine_only_where_somebody_says_so(tmp_path: Path) -> None:
    """A run directory may come from somebody else, who would get the images and, by its name, any key."""
    options = OpenAIEndpointOptions(base_url="https://example.com/v1", model="m", trust_remote_code=True)
    OpenAIEndpoint.build(options, []).save(tmp_path, PLAIN)
    with pytest.raises(UserError, match=r"sending images to https://example\.com/v1; give --trust-remote-code"):
        load_captioner(str(tmp_path))
    assert load_captioner(str(tmp_path), trust_remote_code=True).family == "openai_endpoint"


def test_this_machine_is_asked_without_a_proxy(
    chat: ChatServer, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert captioner_of(tmp_path, chat).caption(images[0]).text == "a red image"


def test_offline_mode_of_the_hub_does_not_concern_a_server(
    chat: ChatServer, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert captioner_of(tmp_path, chat).caption(images[0]).text == "a red image"


# ---- options and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 3}, r"num_beams=3: a served model has no beam search; set num_beams: 1"),
        ({"no_repeat_ngram_size": 2}, r"no_repeat_ngram_size: servers have no common field .* model\.extra_body"),
        ({"do_sample": True, "top_k": 5}, r"top_k: servers have no common field"),
    ],
)
def test_decoding_that_servers_do_not_share(
    options: dict[str, Any], message: str, chat: ChatServer, images: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        captioner_of(tmp_path, chat).caption(images[0], **options)
    assert chat.paths == []


def test_a_captioning_that_failed_goes_on_where_it_was(
    chat: ChatServer, images: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, output = saved(tmp_path / "served", chat), tmp_path / "captions.jsonl"

    def fail_from_the_third_on(choice: dict[str, Any]) -> dict[str, Any]:
        chat.faults = [Fault(500)] * 9 if len(chat.asked) == 2 else []
        return choice

    chat.answer = fail_from_the_third_on
    inputs = [str(path) for path in images]
    with pytest.raises(WorkError, match="HTTP 500"):
        caption_images(str(folder), inputs, output, batch_size=1)
    chat.faults, chat.answer = [], lambda choice: choice
    caption_images(str(folder), inputs, output, batch_size=1)
    assert "Resuming after 2 images" in capfd.readouterr().err
    assert len(chat.asked) == 3
    rows = [row for _, row in read_json_lines(output, "captions")]
    assert [row["caption"] for row in rows] == [f"a {colour} image" for colour in COLOURS]
    assert all(row["usage"] == {"prompt_tokens": 100, "completion_tokens": 7} for row in rows)


def test_another_model_of_the_server_begins_again(chat: ChatServer, images: list[Path], tmp_path: Path) -> None:
    """Nothing of a served model is here that would differ but its name."""
    one, two = (load_captioner(str(saved(tmp_path / name, chat, model=name))) for name in ("one", "two"))
    assert one.identity() != two.identity()


def test_retries_wait_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcap.served.client import _pause

    monkeypatch.setattr("hfcap.served.client._FIRST_PAUSE", 0.5)
    assert 0.3 < _pause(0, None) < 0.7 and 1.4 < _pause(2, None) < 2.6
    assert _pause(0, 7.0) == 7.0 and _pause(20, None) == 30.0 and _pause(0, 1e9) == 30.0


def test_the_client_knows_no_secret() -> None:
    client = Client("http://127.0.0.1:9/v1", "PATH", 1.0, 0)
    assert os.environ["PATH"] not in repr(vars(client))
