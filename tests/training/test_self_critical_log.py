"""What self-critical training tells the log, and when it stops a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcap.errors import WorkError
from hfcap.recipe.scst import ScstOptions
from hfcap.training.objectives.self_critical import SampledCaptions, SelfCritical
from tests.training.test_self_critical import Recorder, tiny_batch


def test_the_log_gets_sums_over_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner, batch, records = tiny_batch("vit_gpt2", tmp_path)
    objective = Recorder(captioner, ScstOptions(num_samples=2), records, 4).train()
    texts = [["a man on a", "a man"], ["a dog in the", "dogs"], ["", "a cat with a"]]
    tokens = [[[5, 6, 7, 8], [5, 6]], [[9], [8, 9]], [[], [7, 7, 7]]]
    ended = np.array([[True, False], [True, False], [True, True]])
    objective._generated = lambda *_: SampledCaptions(tokens, texts, ended)  # type: ignore[method-assign]
    rewards = np.array([[0.5, 1.0], [2.0, 0.0], [0.25, 0.25]])
    objective.reward.scores = lambda *_: {"reward": rewards, "cider": rewards * 2}  # type: ignore[method-assign]
    clock = iter([10.0, 13.0, 18.0])
    monkeypatch.setattr("hfcap.training.objectives.self_critical.time.perf_counter", lambda: next(clock))
    objective(batch)
    assert objective.sums == {
        "samples": 6,
        "advantage": 0.5 + 0.5 + 2.0 + 2.0,
        "bad_endings": 4,  # one of them has no word
        "unfinished": 2,
        "words": 4 + 2 + 1 + 2 + 0 + 3,
        "sampling_seconds": 3.0,
        "reward_seconds": 5.0,
        "reward": 4.0,
        "cider": 8.0,
    }
    assert objective.units(batch) == 6


def test_report_gives_means_over_all_processes() -> None:
    objective: Any = object.__new__(SelfCritical)
    sums = {"samples": 40.0, "bad_endings": 4.0, "reward": 30.0, "sampling_seconds": 4.0, "reward_seconds": 2.0}
    report = objective.report(sums, 2)
    assert report == {
        "bad_endings": 0.1,
        "reward": 0.75,
        "samples_per_second": 20.0,
        "rewards_per_second": 40.0,
    }


def test_report_of_one_sample_and_of_none() -> None:
    objective: Any = object.__new__(SelfCritical)
    one = {"samples": 1.0, "reward": 3.0, "sampling_seconds": 0.5, "reward_seconds": 0.25}
    assert objective.report(one, 1) == {"reward": 3.0, "samples_per_second": 2.0, "rewards_per_second": 4.0}
    assert objective.report({"samples": 0.0, "reward": 0.0}, 1)["reward"] == 0.0


@pytest.mark.parametrize("name", ["bad_endings", "validation_bad_endings"])
@pytest.mark.parametrize("end_token", [True, False])
def test_guard_stops_when_captions_end_in_the_middle(name: str, end_token: bool, tmp_path: Path) -> None:
    captioner, _, records = tiny_batch("vit_gpt2", tmp_path)
    objective = SelfCritical(captioner, ScstOptions(max_bad_endings=0.2, end_token=end_token), records, 3)
    objective.check({"step": 7, name: 0.2})
    objective.check({"step": 7})
    with pytest.raises(WorkError) as caught:
        objective.check({"step": 7, name: 0.21})
    remedy = "lower train.learning_rate, set scst.kl_weight, or raise the limit"
    assert str(caught.value) == (
        "step 7: 21% of the captions end in the middle of a phrase ('a man on a'; scst.max_bad_endings: 0.2); "
        + (remedy if end_token else "set scst.end_token: true")
    )
