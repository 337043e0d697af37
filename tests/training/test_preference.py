"""Training on pairs of captions: the loss is TRL's, the start is what it is held to, and runs resume."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from hfcap.captioners.base import Captioner
from hfcap.data.loading import CaptionBatch
from hfcap.data.packing import pack_captions
from hfcap.data.source import load_split
from hfcap.errors import StoppedError, UserError
from hfcap.files import read_json_lines
from hfcap.recipe.dpo import DpoOptions
from hfcap.recipe.loading import RecipeError, recipe_from_mapping
from hfcap.run.stages import Run
from hfcap.run_directory.paths import RunDirectory
from hfcap.training.objectives.preference import Pair, Preference, pairs_of_records, read_pairs
from tests.captioners.helpers import build, pixel_values, random_captions
from tests.training.harness import recipe_values, tiny_recipe

BETA = 0.3
COUNTS = (1, 3, 2)
"""Pairs of each image."""


def trl_sigmoid_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, ref_chosen: torch.Tensor, ref_rejected: torch.Tensor, beta: float
) -> torch.Tensor:
    """`dpo_loss` of TRL's DPOTrainer with loss_type="sigmoid", label_smoothing=0: log-probabilities of (N,) pairs."""
    logratios = chosen - rejected
    ref_logratios = ref_chosen - ref_rejected
    logits = logratios - ref_logratios
    return -functional.logsigmoid(beta * logits)


def log_probability(captioner: Captioner, state: torch.Tensor, ids: list[int], ended: bool) -> torch.Tensor:
    """Of one caption, word by word, by the family's plain forward with nothing packed."""
    start = captioner.start_token_ids()
    target = [*ids, *([captioner.end_token_id] if ended else [])]
    logits = captioner.plain_logits(state[None], torch.tensor([[*start, *ids]]))[0, len(start) - 1 :]
    return sum(logits[place].log_softmax(-1)[token] for place, token in enumerate(target))  # type: ignore[return-value]


def batch_of(captioner: Captioner, numbers: tuple[int, ...]) -> CaptionBatch:
    packed = pack_captions([[[7]]] * len(numbers), [captioner.start_token_id], captioner.end_token_id, 0)
    return CaptionBatch(pixel_values(captioner, 3)[list(numbers)], False, packed, len(numbers), numbers)


@pytest.mark.parametrize("family", ["blip", "clip_prefix", "vit_gpt2"])
@pytest.mark.parametrize("max_tokens", [40, 4])
def test_the_loss_is_trl_s(family: str, max_tokens: int) -> None:
    start = build(family)
    flat = random_captions(start, [2 * count for count in COUNTS])
    tokens = [list(zip(group[0::2], group[1::2], strict=True)) for group in flat]
    objective = Preference(start, DpoOptions(pairs="x", beta=BETA), tokens, max_tokens)
    reference = copy.deepcopy(start.model)
    with torch.no_grad():
        for weight in start.model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    objective.train()
    numbers = (2, 0, 1)
    loss = objective(batch_of(start, numbers))
    loss.backward()
    got = {name: weight.grad.clone() for name, weight in start.model.named_parameters() if weight.grad is not None}
    assert got and objective.units(batch_of(start, numbers)) == sum(COUNTS)

    start.model.zero_grad()
    start.model.eval()
    before = copy.copy(start)
    before.model = reference.eval()
    images = pixel_values(start, 3)
    expected, margins, gains = torch.zeros(()), [], []
    for number in numbers:
        for pair in tokens[number]:
            values = []
            for captioner in (start, before):
                state = captioner.encode(images[[number]])[0]
                values += [
                    log_probability(captioner, state, list(ids[:max_tokens]), len(ids) <= max_tokens) for ids in pair
                ]
            expected = expected + trl_sigmoid_loss(values[0], values[1], values[2], values[3], BETA)
            margins.append(float(values[0] - values[1] - values[2] + values[3]))
            gains.append(float(values[0] - values[2]))
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    for name, weight in start.model.named_parameters():
        if weight.grad is not None and name in got:
            torch.testing.assert_close(got[name], weight.grad, rtol=2e-3, atol=2e-5)
    report = objective.report(objective.sums, 1)
    assert report["reward_accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / len(margins))
    assert report["reward_margin"] == pytest.approx(BETA * sum(margins) / len(margins), rel=1e-3, abs=1e-5)
    both = report["reward_chosen"] - report["reward_rejected"]
    assert both == pytest.approx(report["reward_margin"], rel=1e-3, abs=1e-5)
    assert report["reward_chosen"] == pytest.approx(BETA * sum(gains) / len(gains), rel=1e-3, abs=1e-5)


def test_at_the_start_nothing_is_preferred() -> None:
    captioner = build("blip")
    tokens = [[(group[0], group[1])] for group in random_captions(captioner, [2, 2, 2])]
    objective = Preference(captioner, DpoOptions(pairs="x"), tokens, 40).train()
    loss = float(objective(batch_of(captioner, (0, 1, 2))).detach())
    assert loss == pytest.approx(3 * torch.log(torch.tensor(2.0)).item(), rel=1e-5)
    assert not any("start" in name for name, _ in objective.named_parameters())


def test_files_of_pairs(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    rows = [{"file_name": "a", "chosen": " x ", "rejected": "y"}, {"file_name": "b", "chosen": "x", "rejected": "z"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    assert read_pairs(path) == {"a": [Pair("x", "y")], "b": [Pair("x", "z")]}
    for row, message in (
        ({"file_name": "a", "chosen": "x"}, "line 1 lacks file_name, chosen or rejected"),
        ({"file_name": "a", "chosen": "x", "rejected": " x"}, "the same caption"),
    ):
        path.write_text(json.dumps(row))
        with pytest.raises(UserError, match=message):
            read_pairs(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no pairs"):
        read_pairs(path)
    records = load_split(tiny_recipe("blip", tmp_path).data, "train")
    with pytest.raises(UserError, match=r"dpo.pairs: none of its images \(a, ...\) is in the training split"):
        pairs_of_records(records, {"a": [Pair("x", "y")]}, "dpo.pairs")


def test_pairs_name_images_by_file_or_by_id(tmp_path: Path) -> None:
    records = load_split(tiny_recipe("blip", tmp_path).data, "train")[:3]
    records = [replace(record, image_id=f"id-{number}") for number, record in enumerate(records)]
    first, second = [Pair("x", "y")], [Pair("x", "z"), Pair("v", "w")]
    found = pairs_of_records(records, {"id-2": second, records[0].file_name: first}, "dpo.pairs")
    assert found == [(records[0], first), (records[2], second)]
    with pytest.raises(UserError) as caught:
        pairs_of_records(records, {"a": first, "b": second}, "edits.jsonl")
    assert str(caught.value) == (
        f"edits.jsonl: none of its images (a, ...) is in the training split ({records[0].file_name}, ...); name images "
        "as the data source does"
    )
    with pytest.raises(UserError, match=r"\bpairs of captions\b"):
        read_pairs(tmp_path / "missing.jsonl")


def test_stored_states_and_validation(tmp_path: Path) -> None:
    """States of a frozen encoder give the loss of their images; in evaluation it is that of the human captions."""
    captioner = build("vit_gpt2")
    tokens = [[(group[0], group[1])] for group in random_captions(captioner, [2, 2, 2])]
    objective = Preference(captioner, DpoOptions(pairs="x"), tokens, 40)
    batch = batch_of(captioner, (0, 2))
    with torch.no_grad():
        for weight in captioner.part_modules()["text"][0].parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
        stored = replace(batch, images=captioner.encode(batch.images), encoded=True)
        expected = float(objective.train()(batch))
        captioner.encode = lambda *_: pytest.fail("encoded again")  # type: ignore[method-assign]
        assert float(objective(stored)) == pytest.approx(expected, rel=1e-5) != pytest.approx(2 * math.log(2), rel=1e-3)
        validation = float(objective.eval()(stored))
        captioner.model.eval()
        by_hand = -sum(float(log_probability(captioner, state, [7], True)) for state in stored.images)
        assert validation == pytest.approx(by_hand, rel=1e-5)
    assert objective.report({}, 1) == {} and objective.report({"pairs": 1.0, "reward_margin": 3.0}, 2) == {
        "reward_margin": 3.0
    }


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_acts_on_the_update_only_where_asked(dropout: bool) -> None:
    captioner = build("vit_gpt2")
    tokens = [[(group[0], group[1])] for group in random_captions(captioner, [2, 2, 2])]
    objective = Preference(captioner, DpoOptions(pairs="x", dropout=dropout), tokens, 40).train()
    modes: list[bool] = []
    logits = captioner.logits

    def noted(*given: Any) -> torch.Tensor:
        modes.extend(module.training for module in captioner.model.decoder.modules())
        return logits(*given)

    captioner.logits = noted  # type: ignore[method-assign, assignment]
    objective(batch_of(captioner, (0, 1)))
    assert set(modes) == {dropout} and captioner.model.decoder.training


def test_a_pair_of_equals_is_not_told_apart() -> None:
    objective: Any = object.__new__(Preference)
    torch.nn.Module.__init__(objective)
    objective.restart_sums({})
    chosen, rejected = torch.tensor([1.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 5.0])
    objective._note(chosen, rejected, chosen - rejected)
    assert objective.sums == {
        "pairs": 3,
        "reward_accuracy": 1.0,
        "reward_margin": 0.0,
        "reward_chosen": 1.0 + 3.0 + 4.0,
        "reward_rejected": 1.0 + 2.0 + 5.0,
    }


def preferred_recipe(tmp_path: Path, **train: Any) -> dict[str, Any]:
    """A recipe that goes on from a run with pairs: of three images the captions start as others."""
    first = tiny_recipe("vit_gpt2", tmp_path, max_steps=2)
    Run(first).execute("train")
    records = load_split(first.data, "train")
    rows = [
        {"file_name": record.file_name, "chosen": record.captions[0], "rejected": "a dog of the other kind"}
        for record in [*records[:3], load_split(first.data, "test")[0]]
    ]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"metric_for_best_model": "cider", "max_steps": 12, "learning_rate": 1e-3, **train}
    values = recipe_values("vit_gpt2", tmp_path, dropout=0.0, **train)
    values |= {"name": "preferred", "model": {"pretrained": str(tmp_path / "tiny")}}
    return {**values, "dpo": {"pairs": str(tmp_path / "edits.jsonl"), "beta": 0.1}}


def test_a_run_learns_the_preference_and_resumes(
    tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    values = preferred_recipe(tmp_path)
    Run(recipe_from_mapping(values, "x")).execute("train")
    said = capsys.readouterr().err
    assert "Training on 3 pairs of captions of 3 images; 1 pairs are about images of other splits" in said
    rows = [row for _, row in read_json_lines(tmp_path / "preferred" / "log.jsonl", "log") if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["reward_accuracy"] == 1 and rows[-1]["reward_margin"] > 0
    # Stopped in the middle, it ends with the same weights.
    again = recipe_from_mapping({**values, "name": "stopped"}, "x")
    run = RunDirectory(tmp_path / "stopped")
    original, stop = Preference.forward, []

    def forward(self: Preference, batch: CaptionBatch) -> torch.Tensor:
        if self.training:
            stop.append(1)
            if len(stop) == 8:
                run.stop_request.touch()
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Preference, "forward", forward)
        Run(again).execute("train")
    Run(again).execute("train")
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("preferred", "stopped")]
    assert weights[0] == weights[1]


def test_what_does_not_go_together(tmp_path: Path) -> None:
    values = recipe_values("blip", tmp_path, metric_for_best_model="cider")
    from_nothing = values["model"]
    values |= {"model": {"pretrained": "x"}, "dpo": {"pairs": "edits.jsonl"}}
    assert recipe_from_mapping(values, "x").dpo is not None
    for change, message in (
        ({"scst": {}}, "scst and dpo: are two ways to train"),
        ({"model": from_nothing}, "dpo: sharpens a captioner"),
        ({"train": values["train"] | {"metric_for_best_model": "loss"}}, "dpo: makes captions better"),
        ({"train": values["train"] | {"label_smoothing_factor": 0.1}}, "dpo: has no labels to smooth"),
        ({"augment": {"word_dropout": 0.1}}, "dpo: trains on pairs of captions"),
        ({"augment": {"horizontal_flip": 0.5}}, "dpo: pairs are about"),
        ({"dpo": {"beta": 0.1}}, "dpo.pairs"),
        ({"dpo": {"pairs": "x", "beta": 0}}, "dpo.beta"),
    ):
        with pytest.raises(RecipeError, match=message):
            recipe_from_mapping({**values, **change}, "x")
