"""Questions about objects: which are asked, what answers mean, and the whole way to a served model and back."""

from __future__ import annotations

from typing import Any

import pytest

from hfcap.captioning.options import decoding_options
from hfcap.errors import UserError
from hfcap.probes import KINDS, Question, object_questions, probe_values, says_yes
from hfcap.probes.asking import GREEDY

NAMES = ("apple", "bed", "cat", "dog", "egg", "fork", "glass")
OBJECTS = {
    "1": frozenset({"apple", "bed"}),
    "2": frozenset({"apple", "bed", "cat"}),
    "3": frozenset({"apple", "dog"}),
    "4": frozenset({"dog", "cat", "egg"}),
    "5": frozenset({"glass"}),
}


def asked(**options: Any) -> list[Question]:
    return object_questions(OBJECTS, NAMES, **{"n_questions": 2, **options})


def test_popular_and_adversarial_objects_are_counted_by_hand() -> None:
    """apple 3; bed, cat, dog 2; egg, glass 1; fork 0. With 1's apple and bed: cat twice, dog once, others never."""
    of_first = [one for one in asked() if one.image_id == "1"]
    absent = {kind: [one.object for one in of_first if not one.present and kind in one.kinds] for kind in KINDS}
    assert sorted(absent["popular"]) == ["cat", "dog"] and sorted(absent["adversarial"]) == ["cat", "dog"]
    of_third = [one for one in asked() if one.image_id == "3"]
    absent = {kind: [one.object for one in of_third if not one.present and kind in one.kinds] for kind in KINDS}
    # apple occurs with bed twice and with cat once, dog with cat and egg once each: bed 2, cat 2, egg 1.
    assert sorted(absent["popular"]) == sorted(absent["adversarial"]) == ["bed", "cat"]
    of_fourth = [one for one in asked() if one.image_id == "4"]
    absent = {kind: [one.object for one in of_fourth if not one.present and kind in one.kinds] for kind in KINDS}
    assert sorted(absent["adversarial"]) == ["apple", "bed"]


def test_questions_are_balanced_right_and_equal_for_equal_seeds() -> None:
    questions = asked(seed=3)
    assert {one.image_id for one in questions} == {"1", "2", "3", "4"}, "image 5 has one object"
    for image_id in ("1", "2", "3", "4"):
        for kind in KINDS:
            of_kind = [one for one in questions if one.image_id == image_id and kind in one.kinds]
            assert sum(one.present for one in of_kind) == sum(not one.present for one in of_kind) == 2
    assert all((one.object in OBJECTS[one.image_id]) is one.present for one in questions)
    assert len({one.key for one in questions}) == len(questions)
    assert asked(seed=3) == object_questions(dict(reversed(OBJECTS.items())), NAMES, n_questions=2, seed=3)
    assert asked(seed=3) != asked(seed=4)
    assert len({one.image_id for one in asked(n_images=2)}) == 2
    assert {one.text for one in asked() if one.object in ("apple", "dog")} == {
        "Is there an apple in the image? Please answer yes or no.",
        "Is there a dog in the image? Please answer yes or no.",
    }
    assert {kind for one in asked(kinds=("popular",)) for kind in one.kinds} == {"popular"}


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(UserError, match=r"question 'A dog\?': names no object; write \{object\}"):
        asked(template="A dog?")
    with pytest.raises(UserError, match="no image has 5 objects, and 5 that are not there; ask fewer"):
        asked(n_questions=5)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("yes, there is a dog.", True),
        ("No.", False),
        ("There isn\N{RIGHT SINGLE QUOTATION MARK}t any", False),
        ("There is no dog. Yes.", False),
        ("There is a dog. It is not black.", True),
        ("Nothing but a dog", True),
        ("  ", None),
        ("...", None),
    ],
)
def test_what_answers_say(answer: str, yes: bool | None) -> None:
    assert says_yes(answer) is yes


def test_values_are_counted_one_by_one() -> None:
    questions = asked()
    said = {one.key: "yes" if (number * 7) % 5 < 3 else "no" for number, one in enumerate(questions)}
    report = probe_values(questions, said, {"model": "m"}, n_resamples=200)
    for kind in KINDS:
        pairs = [(one.present, said[one.key] == "yes") for one in questions if kind in one.kinds]
        hits, alarms, misses = (pairs.count(pair) for pair in ((True, True), (False, True), (True, False)))
        precision, recall = hits / (hits + alarms), hits / (hits + misses)
        expected = {
            "accuracy": (hits + pairs.count((False, False))) / 16,
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
            "yes_ratio": (hits + alarms) / 16,
        }
        assert report.values[kind] == pytest.approx(expected) and report.n_questions[kind] == len(pairs) == 16
        lower, upper = report.intervals[kind]["accuracy"]
        assert lower <= expected["accuracy"] <= upper
    assert report.n_images == 4 and report.unanswered == 0 and report.signature["bootstrap"]["n_resamples"] == 200


def test_empty_answers_are_wrong_and_missing_ones_do_not_count() -> None:
    questions = [
        Question("1", "dog", "?", True, KINDS),
        Question("1", "cat", "?", False, KINDS),
        Question("2", "dog", "?", True, KINDS),
    ]
    report = probe_values(questions, {"1|dog": "", "1|cat": "No"}, {}, n_resamples=50)
    assert report.values["random"] == {"accuracy": 0.5, "precision": None, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0}
    assert report.n_images == 1 and report.unanswered == 1 and report.n_questions["popular"] == 2


def test_answers_are_greedy_whatever_decoding_is_saved_with_the_model() -> None:
    saved = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    options = decoding_options({**saved, "num_return_sequences": 2, **GREEDY, "max_new_tokens": 16})
    plain = decoding_options({"num_beams": 1, "max_new_tokens": 16})
    without_effect = {name: getattr(plain, name) for name in ("temperature", "top_p", "top_k")}
    assert options.model_copy(update=without_effect) == plain
