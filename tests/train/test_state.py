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
    assert consumption.at(1007) == (2**40 + 3 + 84, 2**60 + 1 + 84 * 16, 10**27 + 1 + 7 * round(12 * 16 * per_token))


def test_records_of_earlier_versions_had_one_batch_size():
    config = make_config(train={"batch_size": 4, "num_steps": 10}, length=16)
    record = {"config": {"train": {"batch_size": 8}}}
    assert loop._consumed(None, config) == (0, 0, 0)
    old = loop._consumed(Restored(6, None, record), config)
    assert (old.rows, old.tokens) == (48, 48 * 16)
    new = loop._consumed(Restored(6, None, record | {"consumed": {"rows": 1, "tokens": 2, "flops": 3}}), config)
    assert new == (1, 2, 3)
