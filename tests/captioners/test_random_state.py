"""Random numbers of the CPU and of the device in use: kept by probes, by validation and where a faster way fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hfcap.captioners import probe
from hfcap.generation import blip_attention
from hfcap.generation.random_state import own_randomness, random_states, restore_random_states
from hfcap.training.validation import Validator

CPU = torch.device("cpu")


class Device:
    """A device without hardware: its random state is how many numbers it drew, from the seed on."""

    def __init__(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = torch.device(kind)
        self.state = torch.tensor([7, 0], dtype=torch.uint8)
        for name, replacement in (
            ("get_rng_state", lambda *_: self.state.clone()),
            ("set_rng_state", self._set),
            ("manual_seed", self._seed),
            ("manual_seed_all", self._seed),
        ):
            monkeypatch.setattr(getattr(torch, kind), name, replacement, raising=False)

    def _set(self, state: torch.Tensor, *_: Any) -> None:
        self.state = state.clone()

    def _seed(self, seed: int) -> None:
        self.state = torch.tensor([seed, 0], dtype=torch.uint8)

    def draw(self) -> tuple[float, list[int]]:
        """A number of the CPU, and which one of the device."""
        self.state[1] += 1
        return float(torch.rand(())), self.state.tolist()


@pytest.fixture(params=["cuda", "mps"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(request.param, monkeypatch)


def draws_alike(device: Device, between: Any) -> bool:
    """Whether the same numbers are drawn with something in between as without."""
    states = random_states(device.device)
    expected = device.draw()
    restore_random_states(states, device.device)
    between()
    return device.draw() == expected


def test_both_states_come_back(device: Device) -> None:
    def inside() -> None:
        with own_randomness(device.device):
            torch.manual_seed(3)
            assert device.state.tolist() == [3, 0], "torch seeds the device as well"
            device.draw()

    def raising() -> None:
        with pytest.raises(ValueError, match="in the middle"), own_randomness(device.device):
            device.draw()
            raise ValueError("in the middle")

    assert draws_alike(device, inside)
    assert draws_alike(device, raising)
    assert not draws_alike(device, device.draw)


def test_the_other_device_is_left_alone(device: Device) -> None:
    other = torch.device("mps" if device.device.type == "cuda" else "cuda")
    states = random_states(device.device)
    assert set(states) == {"torch", device.device.type}
    assert set(random_states(CPU)) == {"torch"}
    for here in (CPU, other):
        device._seed(9)
        restore_random_states(states, here)
        assert device.state.tolist() == [9, 0]
    restore_random_states({"torch": states["torch"]}, device.device)  # of a checkpoint of an earlier version
    assert device.state.tolist() == [9, 0]
    with pytest.raises(KeyError):
        restore_random_states({}, device.device)


def test_where_the_faster_way_fails_the_plain_one_draws_the_same(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "may_generate_fast", lambda *_: True)
    monkeypatch.setattr(probe, "say_plain", lambda *_: None)

    def fails(*_: Any) -> None:
        device.draw()
        raise TypeError("generate() takes 3 arguments")

    captioner: Any = SimpleNamespace(
        generates_fast=True,
        fast_generate=fails,
        plain_generate=lambda *_: device.draw(),
        verdicts={"faster generation": True},
        model=nn.Linear(1, 1),
    )
    states: Any = SimpleNamespace(device=device.device)
    sampling: Any = SimpleNamespace(do_sample=True)
    before = random_states(device.device)
    expected = device.draw()
    restore_random_states(before, device.device)
    assert probe.generated(captioner, states, torch.zeros(1, 1), sampling) == expected
    assert captioner.verdicts == {"faster generation": False}


def test_validation_draws_nothing_that_training_would(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    validator: Any = object.__new__(Validator)
    validator.captioner, validator.scores, validator.n_samples = SimpleNamespace(model=nn.Linear(1, 1)), None, 0
    validator.accelerator = SimpleNamespace(device=device.device)

    def loss(*_: Any) -> float:
        torch.manual_seed(5)
        return device.draw()[0]

    monkeypatch.setattr(validator, "_loss", loss)
    objective = nn.Linear(1, 1)
    assert draws_alike(device, lambda: validator.values(objective, None))


def test_the_check_of_blip_s_attention_draws_for_itself(device: Device) -> None:
    assert draws_alike(device, blip_attention._replacements_agree)
