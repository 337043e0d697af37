"""The arithmetic of scripts/bench_scaling.py, and the tables of docs/scaling.md that were made with it."""

from __future__ import annotations

import re
import shlex

import pytest

from scripts import bench_scaling
from scripts.bench_scaling import Training, between, communication_share, hours_and_cost, training_speed_up
from tests.test_documentation import ROOT, code_blocks

PAGE = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


def test_an_update_is_told_from_the_computing_before_it() -> None:
    """A micro-batch computes 90 ms, an exchange with its update takes 30 ms."""
    often, seldom = 0.120, (8 * 0.090 + 0.030) / 8
    assert between(often, seldom) == pytest.approx((0.120, 0.090))
    one, two = Training(1, 0.100, 0.090), Training(2, *between(often, seldom))
    # 30 ms of which 10 are the update that one process makes, too.
    assert communication_share(two, one) == pytest.approx(0.020 / 0.120)
    assert communication_share(one, one) == 0


def test_time_and_cost_are_those_of_counting() -> None:
    """Two GPUs that caption 10 images a second in half of the time: 36,000 images in an hour, at 3 each."""
    assert hours_and_cost(36_000, 10, 2, price=3.0, busy=0.5) == pytest.approx((1.0, 6.0))


def test_a_ring_of_two_sends_each_gradient_once() -> None:
    """1 GB at 1 GB/s is a second next to a second of computing; hidden by half it is half a second."""
    assert training_speed_up(1.0, 1e9, 1e9, gpus=2, hidden=0.0) == pytest.approx(2 / 2)
    assert training_speed_up(1.0, 1e9, 1e9, gpus=2, hidden=0.5) == pytest.approx(2 / 1.5)
    assert training_speed_up(1.0, 1e9, 1e9, gpus=1, hidden=0.0) == 1


def cells(line: str) -> list[float]:
    return [float(one.replace(",", "")) for one in re.findall(r"[\d,]+(?:\.\d+)?", line)]


def test_the_projections_of_the_page_are_those_of_the_formulas() -> None:
    rows = [cells(line) for line in PAGE.splitlines() if re.match(r"\| (10 million|1 billion) \|", line)]
    assert len(rows) == 4
    for count, per_second, gpus, days, cost in rows:
        images = 1e7 if count == 10 else 1e9
        hours, whole = hours_and_cost(images, per_second, int(gpus), price=2.5, busy=0.95)
        assert days == pytest.approx(hours / 24, abs=0.06) and cost == pytest.approx(whole, rel=1e-3, abs=0.51)
    speeds = [cells(line) for line in PAGE.splitlines() if re.match(r"\| \d+ Gbit/s \|", line)]
    assert len(speeds) == 3
    for gigabits, full, adapter in speeds:
        rate = gigabits / 8 * 1e9
        for shown, parameters in ((full, 247e6), (adapter, 2e6)):
            expected = training_speed_up(0.25, 4 * parameters, rate, gpus=8, hidden=0.5)
            assert shown == pytest.approx(expected, abs=0.051)


def test_the_command_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for block in code_blocks(ROOT / "docs/scaling.md", "bash") for line in block.splitlines()]
    [projected] = [line for line in lines if "bench_scaling project" in line]
    bench_scaling.main(shlex.split(projected)[3:])
    said = capsys.readouterr().out.strip()
    assert said in PAGE and said.startswith("10,000,000 images on 8 GPUs: ")
