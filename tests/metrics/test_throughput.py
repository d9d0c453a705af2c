"""Rates."""

import pytest

from maxlm.metrics import throughput
from maxlm.metrics.throughput import LapTimer, SlowStep, SlowSteps, rates


def test_rates_against_hand_computed_values():
    # 1e6 tokens in 2 s on 4 devices: 125,000 tokens/s each; at 8 GFLOP per token 1e15 FLOP/s each.
    values = rates(tokens=1_000_000, seconds=2.0, num_devices=4, flops_per_token=8e9, peak=2e15)
    assert values == {
        "throughput/tokens_per_second": 500_000,
        "throughput/tokens_per_second_per_device": 125_000,
        "throughput/tflops_per_device": 1000,
        "throughput/mfu": 0.5,
    }


def test_no_mfu_without_a_peak():
    values = rates(tokens=10, seconds=1.0, num_devices=1, flops_per_token=1.0, peak=None)
    assert "throughput/mfu" not in values


def test_laps_leave_out_what_held_the_steps_up(monkeypatch):
    now = iter([100.0, 110.0, 130.0, 131.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(now))
    timer = LapTimer()
    # 10 s without anything else; 20 s of which 15 were an evaluation; 1 s of steps alone.
    assert [timer.lap(0.0), timer.lap(15.0), timer.lap(15.0)] == [10.0, 5.0, 1.0]


def test_slow_steps_are_found_once_in_a_row():
    slow = SlowSteps(window=16)
    told = [slow.look_at(seconds) for seconds in [1.0] * 12 + [9.0, 9.0] + [1.0] * 20 + [3.5]]
    found = {index: one for index, one in enumerate(told) if one is not None}
    assert found == {12: SlowStep(9.0, 1.0), 34: SlowStep(3.5, 1.0)}


@pytest.mark.parametrize(
    "seconds",
    [
        [9.0] * 3 + [1.0] * 4 + [9.0],  # too few to compare with
        [0.01] * 20 + [0.9] + [0.01] * 20,  # a tick of the machine
        [1.0] * 20 + [2.9],
        [1.01**step for step in range(100)],
    ],
)
def test_steps_that_vary_by_themselves_are_not_slow(seconds):
    slow = SlowSteps()
    assert not any(slow.look_at(one) for one in seconds)


def test_steps_that_stay_slow_become_the_measure():
    slow = SlowSteps(window=16)
    told = [slow.look_at(seconds) for seconds in [1.0] * 20 + [10.0] * 100]
    assert [index for index, one in enumerate(told) if one] == [20]
