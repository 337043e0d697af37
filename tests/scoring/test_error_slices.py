"""Groups of images that score worse are found, and none where nothing is planted."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import hfcap
from hfcap.cli import app
from hfcap.errors import UserError
from hfcap.files import read_json, write_json
from hfcap.scoring import read_scores, score_files
from hfcap.scoring.error_slices import Group, groups_of_captions, worse_p_values

ANIMALS = ("dog", "cat", "horse", "zebra", "sheep", "bird")
COLOURS = ("red", "blue", "green", "black")
PLACES = ("grass", "sand", "snow", "road")


def silent(message: str) -> None:
    """Take a warning and say nothing."""


def captions(planted: str, n_images: int = 240) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Predictions that miss a random third of the animals, and all where a word is mentioned; three human captions."""
    generator = np.random.default_rng(3)
    predicted, human = {}, {}
    for number in range(n_images):
        animal, colour, place = (str(generator.choice(words)) for words in (ANIMALS, COLOURS, PLACES))
        plural = f"{animal}s" if number % 2 else animal
        human[str(number)] = [
            f"a {colour} {plural} next to the {place}",
            f"one {animal} on {place} with {colour} things",
            f"the {animal}",
        ]
        spoiled = (generator.random() < 0.3) | (planted in human[str(number)][1].split())
        predicted[str(number)] = f"a {colour} {'thing' if spoiled else animal} next to the {place}"
    return predicted, human


def found(planted: str, **options: Any) -> list[Any]:
    predicted, human = captions(planted)
    options = {"metrics": ["rouge_l"], "n_resamples": 300, **options}
    return score_files(predicted, human, find_slices=True, warn=silent, **options).error_slices or []


def test_a_planted_word_is_found() -> None:
    predicted, human = captions("zebra")
    (one,) = found("zebra")
    inside = {key for key, group in human.items() if "zebra" in group[1]}
    assert (one.kind, one.name, one.n_images, one.output) == ("word", "zebra", len(inside), "rouge_l")
    values = hfcap.score(predicted, human, metrics="rouge_l", n_resamples=0).per_image
    means = [np.mean([row["rouge_l"] for key, row in values.items() if (key in inside) == side]) for side in (1, 0)]
    assert [one.value, one.value_of_others] == pytest.approx(means) and one.value < one.value_of_others
    assert one.p_value < 0.05 and len(one.examples) == 3
    assert all(image_id in inside and predicted[image_id] == caption for image_id, caption in one.examples)
    worst = sorted(row["rouge_l"] or 0.0 for key, row in values.items() if key in inside)[:3]
    assert [values[image_id]["rouge_l"] for image_id, _ in one.examples] == worst


def test_nothing_is_found_where_nothing_is_planted() -> None:
    assert found("nothing of the kind") == []


def test_a_colour_is_called_one_and_errors_count_upwards() -> None:
    predicted, human = captions("green")
    ends = {key: f"{text} of" if "green" in text else text for key, text in predicted.items()}
    (one,) = (
        score_files(ends, human, metrics=["bad_endings"], n_resamples=300, find_slices=True, warn=silent).error_slices
        or []
    )
    assert (one.kind, one.name, one.value, one.value_of_others) == ("colour", "green", 1.0, 0.0)


def test_false_alarms_are_as_rare_as_promised() -> None:
    """Values that have nothing to do with images: some group is called worse in about 5 % of the cases."""
    generator = np.random.default_rng(0)
    members = [np.flatnonzero(generator.random(80) < 0.3) for _ in range(15)]
    alarms = [worse_p_values(generator.normal(size=80), members, 99, seed).min() <= 0.05 for seed in range(150)]
    assert 0 < sum(alarms) <= 17  # of 150; more than 17 has a probability below 0.0005 at 5 %


def test_p_values_are_those_of_all_permutations() -> None:
    """The definition of maxT, written out over all 720 orders of six images."""
    values = np.array([0.1, 0.9, 0.3, 0.8, 0.7, 0.2])
    members = [np.array([0, 2]), np.array([0, 1, 5]), np.array([3, 4])]

    def statistics(ordered: Any) -> list[float]:
        return [
            (np.delete(ordered, group).mean() - ordered[group].mean())
            / (values.std() * (1 / len(group) + 1 / (6 - len(group))) ** 0.5)
            for group in members
        ]

    largest = np.array([max(statistics(np.array(order))) for order in itertools.permutations(values)])
    exact = [float((largest >= one - 1e-9).mean()) for one in statistics(values)]
    assert worse_p_values(values, members, 4000, 1) == pytest.approx(exact, abs=0.03)


def test_groups_are_what_most_human_captions_say() -> None:
    human = {
        str(number): ["two dogs in front of a house", "a dog", "dogs at home"] if number < 12 else ["a cat", "a cat"]
        for number in range(30)
    }
    groups = {(group.kind, group.name): group.members.tolist() for group in groups_of_captions(human, None)}
    first = list(range(12))
    assert groups[("word", "dogs")] == first and ("word", "cat") not in groups and ("word", "house") not in groups
    assert ("relation", "in front of") not in groups, "one caption of three"
    assert groups[("length", "above 2, up to 4 words")] == first
    in_spanish = groups_of_captions({key: ["un perro"] if int(key) < 12 else ["un gato"] for key in human}, str.lower)
    assert [(group.kind, group.name) for group in in_spanish] == [("word", "perro")]
    assert isinstance(in_spanish[0], Group)


def test_what_cannot_be_found_is_said() -> None:
    with pytest.raises(UserError, match=r"find_slices needs permutations, and 19 are too few .*; give at least 20$"):
        found("zebra", n_resamples=19)
    assert [one.p_value for one in found("zebra", n_resamples=20)] == [1 / 21]
    with pytest.raises(UserError, match="no metric says which captions are better; add cider"):
        found("zebra", metrics=["length"])


def test_score_files_keep_them(tmp_path: Path) -> None:
    predicted, human = captions("zebra")
    path = tmp_path / "scores.json"
    report = score_files(
        predicted, human, metrics=["rouge_l"], n_resamples=300, find_slices=True, output=path, warn=silent
    )
    assert read_scores(path).error_slices == report.error_slices and len(report.error_slices or []) == 1
    for damaged in (3, [3], [{"kind": "word"}]):
        write_json(path, read_json(path, "scores") | {"error_slices": damaged})
        with pytest.raises(UserError, match=r"scores\.json: error_slices is damaged"):
            read_scores(path)


def test_the_command_shows_them(tmp_path: Path) -> None:
    for name, planted in (("planted", "zebra"), ("plain", "nothing of the kind")):
        predicted, human = captions(planted)
        (tmp_path / f"{name}.json").write_text(json.dumps(predicted))
        (tmp_path / "human.json").write_text(json.dumps(human))
    arguments = ["--metrics", "rouge_l", "--n-resamples", "300", "--find-slices"]
    shown = CliRunner().invoke(app, ["score", str(tmp_path / "planted.json"), str(tmp_path / "human.json"), *arguments])
    assert shown.exit_code == 0 and "word zebra" in shown.output and "maxT" in shown.output
    shown = CliRunner().invoke(app, ["score", str(tmp_path / "plain.json"), str(tmp_path / "human.json"), *arguments])
    assert shown.exit_code == 0 and "scores significantly worse than all others; with 240" in shown.output
