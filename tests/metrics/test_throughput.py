"""Peaks and rates."""

import pytest

from maxlm.metrics import throughput
from maxlm.metrics.throughput import LapTimer, peak_flops, rates


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("TPU v4", 275e12, 275e12),
        ("TPU v5 lite", 197e12, 197e12),
        ("TPU v5e", 197e12, 197e12),
        ("TPU v5", 459e12, 459e12),
        ("TPU v5p", 459e12, 459e12),
        ("TPU v6 lite", 918e12, 918e12),
        ("TPU7x", 1153.5e12, 1153.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA H200", 989.4e12, 494.7e12),
        ("NVIDIA B200", 2250e12, 1125e12),
        ("NVIDIA GB200", 2500e12, 1250e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("NVIDIA A10", 125e12, 62.5e12),
    ],
)
def test_peak_flops(kind, bfloat16, float32):
    assert peak_flops(kind, "bfloat16") == bfloat16
    assert peak_flops(kind, "float32") == float32


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L40", "NVIDIA A10G", "NVIDIA H20", "Some New Thing"])
def test_unknown_devices_have_no_peak(kind):
    assert peak_flops(kind, "bfloat16") is None


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
