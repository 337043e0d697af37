"""Captioners before a judge: questions in both orders, ties, what is kept, and what the judge is worth."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hfcap
from hfcap.arena.duels import Outcome, pairwise_signature
from hfcap.arena.questions import PROMPT, PairwiseOptions, verdict_of
from hfcap.data.images import FileImage, decode_image
from hfcap.errors import UserError, WorkError
from hfcap.files import read_json, read_json_lines
from hfcap.metrics.judging.judge import JudgeOptions, Question
from hfcap.metrics.judging.local import LocalJudge
from hfcap.metrics.shared.images import DecodedImages
from tests.captioners.chat_server import ChatServer, Fault, chatting
from tests.data.sample_images import write_jpeg
from tests.metrics.judge_models import write_judge

COLOURS = ("red", "green", "blue", "black")
CAPTIONS = {
    "long": [f"a very {colour} and quiet image" for colour in COLOURS],
    "short": [f"a {colour} image" for colour in COLOURS[:3]] + ["a very black and quiet image"],
    "odd": ["an image", "a very green and quiet image", "it is blue, said everybody who saw it", "?"],
}


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with chatting() as server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for number, colour in enumerate(COLOURS):
        write_jpeg(tmp_path / "images" / f"{number}.jpg", colour)
    found = {}
    for name, captions in CAPTIONS.items():
        found[name] = tmp_path / f"{name}.json"
        found[name].write_text(json.dumps({str(number): caption for number, caption in enumerate(captions)}))
    return found


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """The two captions of a request."""
    text = body["messages"][0]["content"][1]["text"]
    found = re.search(r"Caption 1: (.*)\n\nCaption 2: (.*)\n\nAnswer", text)
    assert found is not None
    return found[1], found[2]


Rule = Callable[[str, str], str]


def longer(first: str, second: str) -> str:
    """The longer caption wins; those of about the same length are a tie."""
    if abs(len(first) - len(second)) < 3:
        return "Reason: the same.\nJudgment: Tie"
    return f"Reason: it says more.\nJudgment: Caption {1 if len(first) > len(second) else 2} is better"


def answering(chat: ChatServer, rule: Rule) -> None:
    chat.answer = lambda choice: {"message": {"content": rule(*shown(chat.asked[-1]))}, "finish_reason": "stop"}


def judged(chat: ChatServer, files: list[Path], rule: Rule = longer, **options: Any) -> Any:
    answering(chat, rule)
    images = files[0].parent / "images"
    return hfcap.judge(files, images=images, base_url=chat.base_url, max_concurrency=1, n_resamples=100, **options)


def test_both_orders_are_asked_and_wins_are_counted(chat: ChatServer, files: dict[str, Path]) -> None:
    ranking = judged(chat, [files["long"], files["short"]])
    (pair,) = ranking.pairs
    # The last captions are equal: a tie about which nobody is asked.
    assert (pair.wins, pair.ties, pair.losses, pair.unread) == (3, 1, 0, 0)
    asked = [shown(body) for body in chat.asked]
    pairs = list(zip(CAPTIONS["long"][:3], CAPTIONS["short"][:3], strict=True))
    assert asked == [order for one in pairs for order in (one, one[::-1])]
    assert [(one.name, one.wins, one.ties, one.losses) for one in ranking.systems] == [
        ("long", 3, 1, 0),
        ("short", 0, 1, 3),
    ]
    # Half wins for ties, one tie more: odds (3 + .5 + .5) / (.5 + .5).
    difference = 400 / math.log(10) * math.log(4 / 1)
    assert ranking.systems[0].rating - ranking.systems[1].rating == pytest.approx(difference, abs=1e-6)
    assert ranking.systems[1].to_best[0] == pytest.approx(-difference, abs=1e-6)
    assert sum(one.rating for one in ranking.systems) == pytest.approx(2000)
    assert (ranking.orders_agree, ranking.first_preferred, ranking.n_duels, ranking.n_images) == (1.0, 0.5, 3, 4)
    body = chat.asked[0]
    assert body["temperature"] == 0.0 and body["max_tokens"] == 256 and "logprobs" not in body
    assert ranking.signature["metrics"]["judge"]["model"] == "colours"
    lower, upper = ranking.systems[0].interval
    assert lower < ranking.systems[0].rating < upper


def test_a_judge_that_likes_what_comes_first_makes_ties(chat: ChatServer, files: dict[str, Path]) -> None:
    ranking = judged(chat, [files["long"], files["short"]], lambda first, second: "Judgment: **Caption 1 is better**.")
    (pair,) = ranking.pairs
    assert (pair.wins, pair.ties, pair.losses) == (0, 4, 0)
    assert (ranking.orders_agree, ranking.first_preferred) == (0.0, 1.0)
    assert [one.rating for one in ranking.systems] == pytest.approx([1000, 1000])


def test_one_order_a_tie_is_no_agreement() -> None:
    assert Outcome(("first", "second")).points == 1.0 and Outcome(("second", "first")).points == 0.0
    for verdicts in (("first", "tie"), ("tie", "second"), ("first", "first"), ("tie", "tie")):
        assert Outcome(verdicts).points == 0.5
    assert Outcome(("tie", "tie")).agree and not Outcome(("first", "tie")).agree
    assert not Outcome(("first", None)).is_read


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Reason: x\nJudgment: Caption 1 is better", "first"),
        ("Reason: Caption 1 is better in detail\nJudgment: Caption 2 is better.", "second"),
        ("**Judgement:** Tie", "tie"),
        ("judgment: caption 2", "second"),
        ("Judgment: 1", "first"),
        ("2", "second"),
        ("Caption 1 is slightly better, because it is precise.", "first"),
        ("It is a tie.", "tie"),
        ("<think>Caption 1 is better</think>Judgment: Caption 2 is better", "second"),
        ("<think>Caption 1 is better", None),
        ("Judgment: Caption 1 is better than caption 2", "first"),
        ("Judgment: Caption 1 is better / Caption 2 is better", None),
        ("Caption 1 is better. Caption 2 is better.", None),
        ("Caption 1 mentions a dog, caption 2 a cat.", None),
        ("Judgment: Caption 1 is better or Tie", None),
        ("", None),
    ],
)
def test_what_answers_mean(answer: str, verdict: str | None) -> None:
    assert verdict_of(answer) == verdict


def test_a_stopped_comparison_goes_on_where_it_was(chat: ChatServer, files: dict[str, Path], tmp_path: Path) -> None:
    systems, out = [files["long"], files["short"], files["odd"]], tmp_path / "arena"
    whole = judged(chat, systems, output=tmp_path / "whole")
    n_asked = len(chat.asked)

    def until_the_fourth(first: str, second: str) -> str:
        if len(chat.asked) == 4:
            chat.faults.append(Fault(status=400, body="{}"))
        return longer(first, second)

    chat.asked.clear()
    with pytest.raises(UserError, match=r"refuses the request: HTTP 400 .*; check judge\.model"):
        judged(chat, systems, until_the_fourth, output=out)
    answers = out / "answers.jsonl"
    assert len(list(read_json_lines(answers, ""))) == 4 and not (out / "ranking.json").exists()
    with answers.open("ab") as handle:
        handle.write(b'{"key": "half a li')
    chat.asked.clear()
    ranking = judged(chat, systems, output=out)
    assert len(chat.asked) == n_asked - 4 and ranking == whole
    for name in ("ranking.json", "ranking.md", "answers.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    chat.asked.clear()
    assert judged(chat, systems, output=out) == whole and chat.asked == []


def test_a_later_comparison_asks_what_is_new(chat: ChatServer, files: dict[str, Path], tmp_path: Path) -> None:
    judged(chat, [files["long"], files["short"]], output=tmp_path / "arena")
    chat.asked.clear()
    ranking = judged(chat, [files["long"], files["short"], files["odd"]], output=tmp_path / "arena")
    assert all(set(shown(body)) & set(CAPTIONS["odd"]) for body in chat.asked)
    assert len(ranking.pairs) == 3 and {one.name for one in ranking.systems} == set(CAPTIONS)
    chat.asked.clear()
    judged(chat, [files["long"], files["short"]], output=tmp_path / "arena", prompt=PROMPT + " Go.")
    assert len(chat.asked) == 6  # another question


def test_answers_that_say_nothing_do_not_count(chat: ChatServer, files: dict[str, Path]) -> None:
    def mumbling(first: str, second: str) -> str:
        return "I cannot see it." if "red" in first + second else longer(first, second)

    ranking = judged(chat, [files["long"], files["short"]], mumbling)
    (pair,) = ranking.pairs
    assert (pair.wins, pair.ties, pair.losses, pair.unread) == (2, 1, 0, 1) and ranking.n_unread == 1
    with pytest.raises(WorkError, match=r"judge: 6 of 6 answers say neither .* example 'Well\.'; choose a model"):
        judged(chat, [files["long"], files["short"]], lambda first, second: "Well.")


def test_a_sample_of_images_is_drawn_by_the_seed(chat: ChatServer, files: dict[str, Path]) -> None:
    systems = [files["long"], files["odd"]]
    drawn = []
    for seed in (0, 0, 1):
        chat.asked.clear()
        assert judged(chat, systems, n_images=2, seed=seed).n_images == 2
        drawn.append([shown(body) for body in chat.asked])
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2]


def test_what_a_judge_is_worth_stands_next_to_its_ranking(
    chat: ChatServer, files: dict[str, Path], tmp_path: Path
) -> None:
    """People preferred the longer caption twice, the shorter one once, and one of the same length."""
    rows = [
        ("a very red image", "red"),
        ("a green image", "?"),
        ("blue", "a blue image"),
        ("a black dog", "a black cat"),
    ]
    people = tmp_path / "people.json"
    people.write_text(
        json.dumps(
            [
                {"image_id": f"{number}.jpg", "better": better, "worse": worse, "references": ["x"]}
                for number, (better, worse) in enumerate(rows)
            ]
        )
    )
    answering(chat, longer)
    common: dict[str, Any] = {"base_url": chat.base_url, "max_concurrency": 1, "n_resamples": 100}
    report = hfcap.measure_judge(people, images=tmp_path / "images", output=tmp_path / "worth", **common)
    assert report.metrics[0].values == {"accuracy": (1 + 1 + 0 + 0.5) / 4} and report.n_judgments == 4
    found = read_json(tmp_path / "worth" / "agreement.json", "")
    assert found["metrics"][0]["metric"] == "judge" and len(found["metrics"][0]["intervals"]["accuracy"]) == 2
    systems = [files["long"], files["short"]]
    assert judged(chat, systems).agreement.startswith("not measured: hfcap judge --people")
    known = judged(chat, systems, agreement=tmp_path / "worth" / "agreement.json")
    assert re.match(r"accuracy 62\.5 \(.* to .*\) on 4 judgments of preferences", known.agreement), known.agreement
    other = judged(chat, systems, agreement=tmp_path / "worth" / "agreement.json", max_new_tokens=9)
    assert "is of another judge (max_new_tokens is 256 there)" in other.agreement


def test_answers_of_a_model_here_are_those_of_transformers(files: dict[str, Path], tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    folder = write_judge(tmp_path / "tiny")
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor: Any = LlavaProcessor.from_pretrained(folder)
    images = {str(number): FileImage(tmp_path / "images" / f"{number}.jpg") for number in range(3)}
    source = DecodedImages(images, decode_image)
    questions = [Question("0", "which?"), Question("1", "which of the two captions is better?"), Question("2", "tie")]
    expected = []
    for question in questions:
        text = f"USER: <image>\n{question.text} ASSISTANT:"
        inputs = processor(images=source.decoded(question.image_id), text=text, return_tensors="pt")
        with torch.no_grad():
            written = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.tokenizer.decode(written, skip_special_tokens=True))
    judge = LocalJudge(JudgeOptions(model=folder, device="cpu", batch_size=2), "judge")
    assert list(judge.answers(questions, source, 12)) == expected and len(set(expected)) > 1
    with pytest.raises(WorkError, match=r"judge: 6 of 6 answers say neither which caption is better"):
        hfcap.judge(
            [files["long"], files["short"]], images=tmp_path / "images", model=folder, device="cpu", max_new_tokens=8
        )


def test_answers_about_smaller_images_are_other_answers() -> None:
    base: dict[str, Any] = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "images_may_leave": True}
    found = [
        pairwise_signature(PairwiseOptions(**base, **more))
        for more in ({}, {"max_side": 64}, {"image_format": "png"}, {"image_format": "jpeg"})
    ]
    assert found[1] != found[0] and found[2] != found[3]
