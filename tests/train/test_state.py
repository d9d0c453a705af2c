"""What a run has consumed, over changes of its batch size and beyond 32 bits."""

from maxlm.checkpoint import Restored
from maxlm.models.cost import flops_per_token
from maxlm.train import loop
from maxlm.train.state import Consumed, Consumption
from tests.train.program import make_config


def test_consumption_is_exact_beyond_what_devices_count():
    config = make_config(train={"batch_size": 12, "num_steps": 10}, length=16)
    start = Consumed(rows=2**40 + 3, tokens=2**60 + 1, flops=10**27 + 1)
    consumption = Consumption(start, 1000, config)
    assert consumption.at(1000) == start
    per_token = flops_per_token(config.model, 16)
    assert consumption.at(1007) == (
        2**40 + 3 + 84,
        2**60 + 1 + 84 * 16,
        10**27 + 1 + 7 * round(12 * 16 * per_token),
    )


def test_what_was_consumed_is_in_the_record():
    assert loop._consumed(None) == (0, 0, 0)
    record = {"consumed": {"rows": 1, "tokens": 2, "flops": 3}}
    assert loop._consumed(Restored(6, None, record)) == (1, 2, 3)
