"""Rates."""

from maxlm.metrics.throughput import rates


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
