"""Numbers of a published model that were raised, mixed up or edited are found; honest ones pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hfcap.card.example_images import RECORD
from hfcap.errors import UserError, WorkError
from hfcap.publishing.staging import stage_files
from hfcap.publishing.verify import Verification
from hfcap.publishing.verify_scores import MANIFEST, check_numbers, write_manifest
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.run.stages import Run
from hfcap.run_directory.paths import RunDirectory
from hfcap.scoring import score_files
from tests.training.harness import forget_accelerator, recipe_values

CHECKS = ["file hashes", "weights", "scores on the card", "scores", "predictions", "scores computed again"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A real run of generated scenes, staged."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    forget_accelerator()
    values = recipe_values("vit_gpt2", tmp_path_factory.mktemp("published"), data={"n_test": 12})
    values["score"] |= {"find_slices": True, "n_resamples": 20}
    recipe = recipe_from_mapping(values, "test")
    run = Run(recipe)
    run.execute("publish")
    torch.set_num_threads(threads)
    return run.directory


@pytest.fixture
def folder(published: RunDirectory, tmp_path: Path) -> Path:
    shutil.copytree(published.publish, tmp_path / "repository")
    return tmp_path / "repository"


def outcomes(folder: Path, **arguments: Any) -> dict[str, str]:
    return {name: outcome for name, outcome, _ in check_numbers(folder, {}, **arguments)}


def found(folder: Path, name: str, **arguments: Any) -> str:
    return next(text for check, _, text in check_numbers(folder, {}, **arguments) if check == name)


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_an_honest_model_passes(folder: Path, published: RunDirectory) -> None:
    assert outcomes(folder) == dict.fromkeys(CHECKS, "passed")
    assert "of all 12." in (folder / "README.md").read_text(), "the card says that too few images are there for groups"
    assert "bleu_1, bleu_2, bleu_3, bleu_4, cider, rouge_l" in found(folder, "scores computed again")
    assert outcomes(folder, references=published.references("test")) == dict.fromkeys(CHECKS, "passed")


def raise_the_card(folder: Path) -> None:
    """CIDEr 0 made 150."""
    card = folder / "README.md"
    text = card.read_text()
    assert text.count("type: cider\n") == 1
    head, tail = text.split("type: cider\n")
    value = next(line for line in tail.splitlines() if "value:" in line)
    card.write_text(head + "type: cider\n" + tail.replace(value, value.split(":")[0] + ": 150.0", 1))


def raise_the_table(folder: Path) -> None:
    card = folder / "README.md"
    row = next(line for line in card.read_text().splitlines() if line.startswith("| CIDEr-D"))
    cells = row.split("|")
    cells[2] = " **150.0** "
    card.write_text(card.read_text().replace(row, "|".join(cells)))


def raise_the_scores(folder: Path) -> None:
    edit_json(folder / "scores" / "test.json", lambda scores: scores["metrics"].update(cider=1.5))


def raise_an_interval(folder: Path) -> None:
    edit_json(folder / "scores" / "test.json", lambda scores: scores["intervals"].update(rouge_l=[0.5, 0.6]))


def raise_the_rows(folder: Path) -> None:
    def change(scores: Any) -> None:
        for row in scores["per_image"].values():
            row["rouge_l"] = 0.9
        scores["metrics"]["rouge_l"] = 0.9
        scores["intervals"]["rouge_l"] = [0.9, 0.9]

    edit_json(folder / "scores" / "test.json", change)


def lower_a_baseline(folder: Path) -> None:
    path = folder / "scores" / "test.most_frequent_caption.json"
    edit_json(path, lambda scores: scores["metrics"].update(bleu_1=0.0))


def edit_predictions(folder: Path) -> None:
    path = folder / "predictions" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["caption"] = "two red circles above a blue square"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


FORGERIES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "the card's metadata": (raise_the_card, {"scores on the card"}),
    "the card's table": (raise_the_table, {"scores on the card"}),
    "a score": (raise_the_scores, {"file hashes", "scores on the card", "scores", "scores computed again"}),
    "an interval": (raise_an_interval, {"file hashes", "scores"}),
    "score and rows": (raise_the_rows, {"file hashes", "scores on the card", "scores computed again"}),
    "a baseline": (lower_a_baseline, {"file hashes", "scores", "scores computed again"}),
    "captions": (edit_predictions, {"file hashes", "predictions", "scores computed again"}),
    "weights": (other_weights, {"file hashes", "weights"}),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_what_was_changed_fails(kind: str, folder: Path) -> None:
    change, expected = FORGERIES[kind]
    change(folder)
    assert {name for name, outcome in outcomes(folder).items() if outcome == "failed"} == expected
    # Who forges the record of files as well is found by the numbers, where they do not agree.
    write_manifest(folder)
    assert {name for name, outcome in outcomes(folder).items() if outcome == "failed"} == expected - {"file hashes"}


def test_the_message_says_which_number(folder: Path) -> None:
    raise_the_scores(folder)
    assert "scores/test.json says cider 1.5, its rows give" in found(folder, "scores")
    assert "scores/test.json says cider 1.5, its captions score" in found(folder, "scores computed again")
    assert "score file 150.0" in found(folder, "scores on the card")


def test_weights_on_the_hub_are_compared_by_its_own_hash(folder: Path) -> None:
    noted = json.loads((folder / MANIFEST).read_text())["model.safetensors"]
    (folder / "model.safetensors").unlink()  # as after `download_small`
    assert check_numbers(folder, {"model.safetensors": noted})[0][1] == "passed"
    assert check_numbers(folder, {"model.safetensors": "0" * 64})[0][1] == "failed"
    assert check_numbers(folder, {})[0][1:] == ("failed", "model.safetensors is missing")


def test_other_weights_with_a_new_record_of_files_are_not_those_that_were_scored(folder: Path) -> None:
    other_weights(folder)
    write_manifest(folder)
    found = {name: (outcome, text) for name, outcome, text in check_numbers(folder, {})}
    assert found["file hashes"][0] == "passed"
    assert found["weights"] == ("failed", "model.safetensors is not the file whose captions were scored")
    scored = json.loads((folder / RECORD).read_text())["weights"]
    (folder / "model.safetensors").unlink()
    assert outcomes_of(folder, {"model.safetensors": "0" * 64})["weights"] == "failed"
    assert outcomes_of(folder, scored)["weights"] == "passed"
    assert outcomes_of(folder, {"model-00001-of-00002.safetensors": "0" * 64})["weights"] == "not checked"


def outcomes_of(folder: Path, hashes: dict[str, str]) -> dict[str, str]:
    return {name: outcome for name, outcome, _ in check_numbers(folder, hashes)}


def test_weights_that_changed_after_they_were_scored_are_not_published(published: RunDirectory, tmp_path: Path) -> None:
    """Ten numbers of a hundred thousand: no caption need change."""
    shutil.copytree(published.path, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    path = run.model / "model.safetensors"
    weights = load_file(path)
    name = next(name for name, value in weights.items() if value.ndim == 2)
    weights[name].view(-1)[:10] += 1e-4
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"model\.safetensors: is not the file that captioned and was scored; put it back"
    ):
        stage_files(run)


def test_other_references_are_not_taken_for_the_scored_ones(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "others.json"
    path.write_text(json.dumps({f"test-{number:06d}": ["something else"] for number in range(12)}))
    assert outcomes(folder, references=path)["scores computed again"] == "not checked"
    (folder / "recipe.yaml").unlink()
    assert "--references FILE" in found(folder, "scores computed again")


def test_what_an_earlier_hfcap_published_is_not_failed_for_it(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    for path in (folder / "scores").iterdir():
        edit_json(path, lambda scores: scores.pop("predictions_sha256"))
    found_outcomes = outcomes(folder)
    assert found_outcomes["file hashes"] == found_outcomes["predictions"] == "not checked"
    assert "failed" not in found_outcomes.values()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scores/test.json", "[]"),
        ("scores/test.json", "[" * 20_000),
        ("scores/test.json", '{"metrics": {"cider": 1' + "0" * 5000 + "}}"),
        ("scores/test.json", '{"schema_version": 1, "metrics": {}, "signature": {"metrics": [1]}}'),
        (MANIFEST, "[]"),
        (MANIFEST, '{"../../secret": "0"}'),
        ("README.md", "---\n" + "a: [" * 20_000 + "\n---\n"),
        ("predictions/test.jsonl", "\0\0\0"),
        ("recipe.yaml", "[]"),
    ],
)
def test_hostile_files_are_found_wanting_and_nothing_more(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content)
    assert "failed" in outcomes(folder).values()


def test_a_card_of_strange_metadata_shows_no_scores(folder: Path) -> None:
    (folder / "README.md").write_text("---\nmodel-index: [1, {results: {}}, {results: [{metrics: [2]}]}]\n---\n")
    assert outcomes(folder)["scores on the card"] == "not checked"


@pytest.mark.parametrize(
    ("commit", "said"),
    [
        ("before the push", "alice/tiny before the push: card: gone"),
        ("0a" * 20, "alice/tiny at 0a0a0a0a0a0a: card: gone"),
    ],
)
def test_what_failed_is_said_with_its_commit(commit: str, said: str) -> None:
    verification = Verification("alice/tiny", commit)
    verification.add("card", False, "gone")
    with pytest.raises(WorkError) as caught:
        verification.require()
    assert str(caught.value) == said


def test_captions_in_other_languages_are_scored_again_with_their_words(tmp_path: Path) -> None:
    """Read as English "l'été" is one word, in French there are two."""
    human = {"1": ["l'été à la plage", "la plage"], "2": ["un chien, l'hiver", "le chien de l'hôtel"]}
    captions = {"1": "l'hiver à la plage", "2": "un chien de l'hôtel"}
    references = tmp_path / "references.json"
    references.write_text(json.dumps(human), encoding="utf-8")
    (tmp_path / "predictions").mkdir()
    rows = [json.dumps({"image_id": key, "caption": text}) for key, text in captions.items()]
    (tmp_path / "predictions" / "test.jsonl").write_text("\n".join(rows), encoding="utf-8")
    path = tmp_path / "scores" / "test.json"
    report = score_files(captions, human, language="fr", output=path, n_resamples=0, warn=lambda message: None)
    english = score_files(captions, human, language="en", n_resamples=0, warn=lambda message: None)
    assert report.metrics["bleu_1"] != pytest.approx(english.metrics["bleu_1"])
    assert outcomes(tmp_path, references=references)["scores computed again"] == "passed"
    edit_json(path, lambda value: value["metrics"].update(bleu_1=english.metrics["bleu_1"]))
    assert outcomes(tmp_path, references=references)["scores computed again"] == "failed"
