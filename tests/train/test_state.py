"""What a run has consumed, over changes of its batch size and beyond 32 bits."""

from types import SimpleNamespace

from maxlm.checkpoint import Restored
from maxlm.models.cost import flops_per_token
from maxlm.train import initial
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


def test_what_was_consumed_is_in_the_record(monkeypatch):
    monkeypatch.setattr(initial, "_random_state", lambda program, config: "random")
    monkeypatch.setattr(initial, "with_own_window", lambda saved, program: saved)
    program, config = SimpleNamespace(state=None), make_config()
    fresh = initial.start_of(None, None, program, config)
    assert (fresh.state, fresh.step, fresh.consumed) == ("random", 0, (0, 0, 0))
    record = {"consumed": {"rows": 1, "tokens": 2, "flops": 3}}
    resumed = initial.start_of(Restored(6, "saved", record), None, program, config)
    assert (resumed.state, resumed.step, resumed.consumed) == ("saved", 6, (1, 2, 3))
