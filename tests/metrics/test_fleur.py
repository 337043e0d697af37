"""FLEUR with a tiny random judge against its formula, computed token by token from the judge's own logits."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hfcap.errors import UserError, WorkError
from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.fleur import PROMPT, PROMPT_WITH_REFERENCES
from hfcap.metrics.judging.digits import digit_tokens
from hfcap.metrics.judging.served import grade_of
from hfcap.metrics.shared.images import DecodedImages
from hfcap.metrics.suite import CaptionSuite, build_metric
from tests.captioners.chat_server import ChatServer, chatting
from tests.captioners.clip_folder import write_clip
from tests.captioners.itt_models import paligemma
from tests.metrics.judge_models import write_judge

torch = pytest.importorskip("torch")


@dataclass(frozen=True)
class _Image:
    seed: int

    def read(self) -> bytes:
        pixels = np.random.default_rng(self.seed).integers(0, 256, size=(40, 50, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        return buffer.getvalue()

    def describe(self) -> str:
        return f"image {self.seed}"


CANDIDATES = {
    "1": "a dog",
    "2": "two cats sleep on a mat, one of them red",
    "3": "a man's hat {caption}",
    "4": "green grass",
    "5": "<image> three people",
    "6": "",
}
REFERENCES = {key: ["one dog", f"a picture {key}"] for key in CANDIDATES}
IMAGES = DecodedImages({key: _Image(int(key)) for key in CANDIDATES}, bar=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_judge(tmp_path_factory.mktemp("judge") / "tiny-judge")


def _captions(keys: tuple[str, ...] = tuple(CANDIDATES)) -> CaptionSet:
    return CaptionSet({k: CANDIDATES[k] for k in keys}, ReferenceSet({k: REFERENCES[k] for k in keys}))


def _fleur(folder: str, **options: Any) -> Any:
    return build_metric("fleur", {"model": folder, "image_source": IMAGES, "device": "cpu", **options})


class _Plain:
    """One question at a time, one forward of the whole text for each token."""

    def __init__(self, folder: str) -> None:
        from transformers import LlavaForConditionalGeneration, LlavaProcessor

        self.model: Any = LlavaForConditionalGeneration.from_pretrained(folder).eval()
        self.processor: Any = LlavaProcessor.from_pretrained(folder)
        self.ids = [self.processor.tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(10)]
        self.point = self.processor.tokenizer.convert_tokens_to_ids(".")
        vocabulary = self.processor.tokenizer.get_vocab()
        self.pairs = {token: int(text) for text, token in vocabulary.items() if re.fullmatch("[0-9]{2}", text)}
        assert self.pairs  # "12" is in the corpus
        self.blanks = [self.processor.tokenizer.convert_tokens_to_ids("Ġ")]

    def grade(self, image_id: str, text: str, decimals: int = 2) -> tuple[float, str]:
        asked = f"USER: <image>\n{text.replace('<image>', ' ')} ASSISTANT:"
        inputs = self.processor(images=IMAGES.decoded(image_id), text=asked, return_tensors="pt")

        def chances() -> Any:
            with torch.no_grad():
                return torch.softmax(self.model(**inputs).logits[0, -1].double(), dim=-1)

        def write(token: int) -> None:
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])

        found = chances()
        best = max([*self.ids[:2], *self.blanks], key=lambda token: float(found[token]))
        if best in self.blanks:
            write(best)
            found = chances()
            best = max(self.ids[:2], key=lambda token: float(found[token]))
        if best == self.ids[1]:
            return 0.9 * float(found[self.ids[0]]) + float(found[self.ids[1]]), "one"
        write(best)
        write(self.point)
        found = chances()
        score = sum(0.1 * digit * float(found[token]) for digit, token in enumerate(self.ids))
        score += sum(0.01 * value * float(found[token]) for token, value in self.pairs.items())
        write(max([*self.ids, *self.pairs], key=lambda token: float(found[token])))
        found = chances()
        if decimals == 1 or int(found.argmax()) not in self.ids:
            return score, "one decimal"
        return score + sum(0.01 * digit * float(found[token]) for digit, token in enumerate(self.ids)), "two decimals"


def _asked(image_id: str) -> tuple[str, str]:
    """The two questions, written out."""
    caption, references = CANDIDATES[image_id], "\n".join(REFERENCES[image_id])
    alone = PROMPT.partition("{caption}")
    shown = PROMPT_WITH_REFERENCES.partition("{references}")
    return f"{alone[0]}{caption}{alone[2]}", f"{shown[0]}{references}{shown[2].replace('{caption}', caption, 1)}"


@pytest.mark.parametrize(("batch_size", "decimals"), [(1, 2), (4, 2), (8, 1)])
def test_grades_are_the_formula_s(folder: str, batch_size: int, decimals: int) -> None:
    plain = _Plain(folder)
    expected = [[plain.grade(key, text, decimals) for text in _asked(key)] for key in CANDIDATES]
    kinds = {kind for row in expected for _, kind in row}
    assert len(kinds) >= 2, kinds
    found = _fleur(folder, batch_size=batch_size, decimals=decimals).statistics(_captions())
    np.testing.assert_allclose(found, [[score for score, _ in row] for row in expected], rtol=0, atol=1e-6)
    assert len(np.unique(found.round(4))) > 8


def test_the_signature_names_the_judge_and_what_it_is_asked(folder: str) -> None:
    suite = CaptionSuite(["fleur"], options={"fleur": {"model": folder, "image_source": IMAGES, "device": "cpu"}})
    result = suite.compute({"1": "a dog"}, {"1": ["one dog"]})
    signature = result.signature["metrics"]["fleur"]
    assert set(result.values) == {"fleur", "ref_fleur"}
    assert signature["model"] == "tiny-judge" and len(signature["weights"]) == 16
    assert signature["prompt"] == "FLEUR (Lee et al. 2024)" and signature["decimals"] == 2
    other = _fleur(folder, prompt="How good is\n{caption}?").signature()
    assert other["prompt"] == "How good is\\n{caption}?" and "\n" not in str(list(other.values()))
    hub = build_metric("fleur", {"model": "somebody/judge", "revision": "abc", "image_source": IMAGES}).signature()
    assert (hub["model"], hub["revision"]) == ("somebody/judge", "abc")
    served = {"base_url": "http://127.0.0.1:9/v1", "model": "served-judge", "image_source": IMAGES}
    assert build_metric("fleur", served).signature()["model"] == "served-judge"


def test_a_judge_that_does_not_grade_is_said_to_mean_nothing(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    _fleur(folder, prompt="{caption}").statistics(_captions(("1", "2")))
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"the judge gives only \d+ % of its probability to digits", said.replace("%", " %")), said


def test_a_model_without_chat_template_or_images_is_refused(folder: str, tmp_path: Path) -> None:
    captions = _captions(("1",))
    model, processor = paligemma()
    model.save_pretrained(tmp_path / "paligemma")
    processor.save_pretrained(tmp_path / "paligemma")
    with pytest.raises(
        UserError, match=r"fleur\.model: .*paligemma has no chat template, .*; choose a vision-language"
    ):
        _fleur(str(tmp_path / "paligemma")).statistics(captions)
    with pytest.raises(UserError, match=r"the judge \(fleur\.model\) cannot be loaded"):
        _fleur(write_clip(tmp_path / "clip")).statistics(captions)
    with pytest.raises(UserError, match=r"nowhere: the judge \(fleur\.model\) cannot be loaded"):
        _fleur(str(tmp_path / "nowhere")).statistics(captions)


class _Words:
    """A tokenizer whose only tokens are words."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [hash(word) % 1000 for word in text.split()]}

    def decode(self, ids: list[int]) -> str:
        return "".join(f"<{token}>" for token in ids)


def test_a_tokenizer_without_digits_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"a-model: its tokenizer does not write digits as tokens of their own \('0\.0'"
    ):
        digit_tokens(_Words(), "a-model")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": "How good is it?"}, r"^fleur\.prompt: the prompt shows the judge no caption; write \{caption\}"),
        ({"prompt_with_references": "{caption}"}, r"^fleur\.prompt_with_references: .*no references"),
        (
            {"base_url": "http://example.com/v1"},
            r"^fleur\.base_url: images would leave this machine; set fleur\.",
        ),
        ({"base_url": "ftp://x"}, r"'base_url': is no web address"),
        ({"base_url": "http://127.0.0.1:9/v1", "api_key_env": "sk-12"}, "must be the name of an environment variable"),
        ({"base_url": "http://127.0.0.1:9/v1", "revision": "x"}, r"^fleur\.revision: has no effect"),
        ({"decimals": 3}, r"metric 'fleur': option 'decimals'"),
        ({"agreement": "missing.json"}, r"missing\.json: .* not found"),
    ],
)
def test_wrong_options_are_one_message(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_metric("fleur", {"model": "x", "image_source": IMAGES, **options})


@pytest.mark.parametrize("key", ["sk-" + "a" * 40, "hf_" + "a" * 34, "two words"])
def test_a_key_as_the_name_of_a_variable_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(UserError, match="'api_key_env': must be the name of an environment variable") as caught:
        build_metric("fleur", {"base_url": "http://127.0.0.1:9/v1", "api_key_env": key, "image_source": IMAGES})
    assert key not in str(caught.value)


def test_it_needs_images_and_a_judge() -> None:
    with pytest.raises(UserError, match="metric 'fleur' looks at the images: give its option images"):
        build_metric("fleur")
    with pytest.raises(UserError, match=r"^fleur\.model: name the model that judges, such as llava"):
        build_metric("fleur", {"image_source": IMAGES})


# ---- a judge that a server runs -------------------------------------------------------------------------------------


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with chatting() as server:
        yield server


def _place(token: str, **chances: float) -> dict[str, Any]:
    """A token of an answer with the probabilities of digits (d8=0.5) that could stand there."""
    others = {name.removeprefix("d"): chance for name, chance in chances.items()}
    rows = [{"token": text, "logprob": float(np.log(chance))} for text, chance in {token: 0.9, **others}.items()]
    return {"token": token, "logprob": rows[0]["logprob"], "top_logprobs": rows}


ANSWERS = {
    "one decimal": (
        [_place("0"), _place("."), _place("8", d8=0.5, d7=0.25, d9=0.125)],
        0.05 * 8 + 0.025 * 7 + 0.0125 * 9,
    ),
    "blank, two decimals": (
        [_place(" "), _place("0"), _place("."), _place("6", d6=0.5, d5=0.5), _place("5", d5=0.75, d0=0.25)],
        0.05 * 6 + 0.05 * 5 + 0.0075 * 5,
    ),
    "begins with one": ([_place("1", d1=0.75, d0=0.25), _place("."), _place("0")], 0.75 + 0.9 * 0.25),
    "after words": ([_place("Score"), _place(": "), _place("0"), _place("."), _place("2", d2=1.0)], 0.2),
    "two digits a token": ([_place("0"), _place("."), _place("85", **{"d85": 0.5, "d9": 0.5})], 0.425 + 0.45),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_grades_of_a_server_are_the_formula_s(name: str, chat: ChatServer) -> None:
    content, expected = ANSWERS[name]
    text = "".join(place["token"] for place in content)
    chat.answer = lambda choice: {"message": {"content": text}, "logprobs": {"content": content}}
    metric = build_metric("fleur", {"base_url": chat.base_url, "image_source": IMAGES})
    np.testing.assert_allclose(metric.statistics(_captions(("1", "2"))), np.full((2, 2), expected), atol=1e-12)
    assert metric.signature()["model"] == "colours" and len(chat.asked) == 4
    body = chat.asked[0]
    assert body["logprobs"] is True and body["top_logprobs"] == 20 and body["temperature"] == 0.0
    assert sorted(asked["messages"][0]["content"][1]["text"] for asked in chat.asked) == sorted(
        text for key in ("1", "2") for text in _asked(key)
    )


def test_answers_that_are_no_grade() -> None:
    for words in (["a", "dog"], ["0", " of", " 10"], ["2", ".", "5"], []):
        assert grade_of([(word, {word: -0.1}) for word in words], 2) is None


def test_a_server_without_probabilities_or_grades(chat: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    metric = build_metric("fleur", {"base_url": chat.base_url, "image_source": IMAGES, "max_concurrency": 1})
    with pytest.raises(UserError, match=r"fleur\.base_url: the server gives no probabilities of tokens \(logprobs\)"):
        metric.statistics(_captions(("1", "2")))
    words = [_place("a"), _place("dog")]
    chat.answer = lambda choice: {**choice, "logprobs": {"content": words}}
    with pytest.raises(
        WorkError, match=r"answers 2 of 2 questions with no grade .* example 'a .* image'; choose another"
    ):
        metric.statistics(_captions(("1", "2")))
    grade = ANSWERS["after words"][0]
    chat.asked.clear()
    chat.answer = lambda choice: {**choice, "logprobs": {"content": words if len(chat.asked) == 1 else grade}}
    found = metric.statistics(_captions(("1", "2", "3")))
    assert found[:, 0].tolist() == pytest.approx([0, 0.2, 0.2]) and found[:, 1].tolist() == pytest.approx([0.2] * 3)
    assert "1 of 3 answers are no grade and count as 0" in " ".join(capsys.readouterr().err.split())
    chat.models = ["one", "two"]
    with pytest.raises(UserError, match=r"has one, two; set fleur\.model to the one that is to judge"):
        build_metric("fleur", {"base_url": chat.base_url, "image_source": IMAGES}).statistics(_captions(("1",)))
