"""The compiled step on a mesh: spikes and what is not finite leave the state as it was, and a
roll-back is as if all steps since a checkpoint had been skipped.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxlm.checkpoint import Checkpointer, RunDirectory
from maxlm.checkpoint.leaves import flatten
from maxlm.config.errors import RunFailedError
from maxlm.data.token_hash import hexdigest
from maxlm.models.decoder import Decoder
from maxlm.sharding.parameters import map_parameters, with_value
from maxlm.train.faults.roll_back import first_skipped, roll_back
from maxlm.train.faults.skipped import Skipped
from maxlm.train.faults.spikes import new_window
from maxlm.train.loss.gradients import Sums
from maxlm.train.state import TrainState
from maxlm.train.step import make_train_step
from tests.train.faults.conftest import MODEL
from tests.train.program import make_config

LEARNED = ("decoder", "optimizer", "carried")


def shuffled(fields):
    """Give every token another's target."""
    np.random.default_rng(0).shuffle(fields["targets"].reshape(-1))


def poisoned(fields):
    """Let one row, which one of the copies works on, count nan."""
    fields["weights"][0] = np.nan


def host(state):
    return jax.device_get(flatten(state))


def learned(state):
    return {name: leaf for name, leaf in host(state).items() if name.startswith(LEARNED)}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture(scope="module")
def warmed(trainer):
    """State and metrics after eighty steps on one batch: its targets are half learnt."""
    state, told = trainer.steps(trainer.new_state(), [trainer.batch()] * 80)
    assert told[-1].sums.objective < 0.5 * told[0].sums.objective
    assert not any(metrics.spikes.spike for metrics in told)
    return state, told


def copy(state):
    """Return the same state in buffers of its own: a step takes its state away."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), leaf.sharding), state)


@pytest.mark.parametrize(("change", "spikes"), [(shuffled, 3), (poisoned, 0)])
def test_three_bad_batches_leave_no_trace(trainer, warmed, change, spikes):
    before = host(warmed[0])
    state, told = trainer.steps(copy(warmed[0]), [trainer.batch(change=change)] * 3)
    assert [metrics.skipped_in_row for metrics in told] == [1, 2, 3]
    assert [bool(metrics.spikes.spike) for metrics in told] == [bool(spikes)] * 3
    after = host(state)
    for name, value in before.items():
        if name.startswith(LEARNED) or name in ("spikes/losses", "spikes/log_norms"):
            np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert (after["step"], after["skipped"], after["spikes/spikes"]) == (83, 3, spikes)
    # It goes on as if nothing had been.
    _, (told,) = trainer.steps(state, [trainer.batch()])
    _, (expected,) = trainer.steps(copy(warmed[0]), [trainer.batch()])
    assert told.sums.objective == expected.sums.objective
    assert told.skipped_in_row == 0


def test_one_number_of_one_leaf_that_is_not_finite_is_enough():
    config = make_config(model=MODEL)
    decoder = map_parameters(
        lambda p: with_value(p, jnp.ones(p.get_value().shape)), Decoder(config.model)
    )

    def gradients(decoder, batch, carried):
        leaves, tree = jax.tree.flatten(decoder)
        for number, leaf in enumerate(leaves):
            value = jnp.where(batch["leaf"] == number, batch["value"], 1.0)
            leaves[number] = leaf.reshape(-1).at[-1].set(value).reshape(leaf.shape)
        one = jnp.float32(1)
        sums = Sums(one, one, {}, jnp.zeros((2,), jnp.uint32), [[{}]], carried)
        return jax.tree.unflatten(tree, leaves), sums

    optimizer, zero = optax.adam(1.0), jnp.zeros((), jnp.int32)
    counters = (jnp.zeros((2,), jnp.uint32), zero, zero, [], new_window(8))
    state = TrainState(zero, decoder, optimizer.init(decoder), *counters)
    step = jax.jit(make_train_step(gradients, optimizer, lambda step: 0.1))
    count = len(jax.tree.leaves(decoder))
    assert count > 5
    for leaf in range(count):
        for value in (np.nan, np.inf):
            after, metrics = step(state, {"leaf": leaf, "value": value})
            assert (metrics.skipped_in_row, metrics.spikes.spike) == (1, False)
            assert_equal(learned(after), learned(state))
    after, metrics = step(state, {"leaf": 0, "value": 1.0})
    assert metrics.skipped_in_row == 0
    assert not np.array_equal(*(jax.tree.leaves(x.decoder)[0] for x in (after, state)))


def test_a_roll_back_is_the_clock_of_now_and_all_else_of_then(trainer, warmed, tmp_path):
    config = trainer.config.model_copy(update={"run_dir": str(tmp_path)})
    folder = RunDirectory(tmp_path).checkpoints
    record = {
        "config": config.model_dump(mode="json"),
        **trainer.program.execution.layout.record(),
        "token_hash": hexdigest(jax.device_get(warmed[0].token_hash)),
    }
    saved = host(warmed[0])
    with Checkpointer(folder, config.checkpoint) as checkpointer:
        checkpointer.save(80, warmed[0], record)
    good, bad = trainer.batch(), trainer.batch(change=shuffled)
    # The third one is in flight when what the second did is read.
    state, told = trainer.steps(copy(warmed[0]), [good, bad, bad, good])
    back = roll_back(state, 83, told[2], program=trainer.program, config=config)
    after = host(back)
    assert_equal(learned(back), {n: x for n, x in saved.items() if n.startswith(LEARNED)})
    assert after["step"] == 83
    np.testing.assert_array_equal(after["token_hash"], told[2].token_hash)
    assert (after["skipped"], after["skipped_in_row"]) == (3, 0)
    assert (after["spikes/spikes"], after["spikes/roll_backs"]) == (2, 1)
    assert not after["spikes/skips"].any()
    # The compiled step takes it, and the tokens are those of a run without a roll-back.
    _, (next_told,) = trainer.steps(back, [good])
    np.testing.assert_array_equal(next_told.token_hash, told[3].token_hash)
    # The first bad step is the 82nd: nothing saved from then on is gone back to.
    with Checkpointer(tmp_path / "late" / "checkpoints", config.checkpoint) as checkpointer:
        state = copy(warmed[0])
        checkpointer.save(82, state._replace(step=state.step + 2), record)
    late = config.model_copy(update={"run_dir": str(tmp_path / "late")})
    state, told = trainer.steps(copy(warmed[0]), [good, bad, bad])
    assert roll_back(state, 83, told[2], program=trainer.program, config=late) is None
    host(state)  # it was not given away


@pytest.mark.parametrize("in_flight", [False, True])
def test_the_first_of_the_skipped_steps_is_found_in_the_ring(in_flight):
    for step in (5, 100, 103):
        for first in range(max(step - 7, 0), step + 1):
            ring = np.zeros(8, int)
            for number in range(max(step - 7, 0), step + in_flight):
                ring[number % 8] = number >= first
            if in_flight:
                ring[step % 8] = 1  # it has taken the place of the oldest
            assert first_skipped(ring, step) == first


def test_spikes_that_nothing_is_done_about_are_told_once_a_window(trainer, warmed, caplog):
    rule = trainer.config.train.spikes.model_copy(update={"kind": "watch", "window": 16})
    train = trainer.config.train.model_copy(update={"spikes": rule})
    told = Skipped(train, lambda step, values: None, saved_before=str)
    spikes = warmed[1][-1].spikes._replace(spike=np.bool_(True))
    spike = warmed[1][-1]._replace(spikes=spikes)
    for step in (100, 101, 107, 115, 116, 117):
        assert not told.read(step, spike, None)
    events = [record.maxlm_event for record in caplog.records]
    assert [(one.step, one.values["untold"]) for one in events] == [(100, 0), (116, 3)]
    assert caplog.messages[-1].endswith("; 3 more since step 100")


def test_what_is_skipped_is_told_and_too_much_of_it_ends_the_run(trainer, warmed, caplog):
    dumps = []
    rule = trainer.config.train.spikes.model_copy(update={"then": "stop"})
    train = trainer.config.train.model_copy(update={"spikes": rule, "max_skipped_steps": 3})
    told = Skipped(train, lambda step, values: dumps.append((step, values)), saved_before=str)
    state, metrics = trainer.steps(copy(warmed[0]), [trainer.batch(change=shuffled)] * 3)
    assert not told.read(81, metrics[0], state.spikes)
    assert "step 81 is a spike and was skipped: loss " in caplog.text
    (event,) = [record.maxlm_event for record in caplog.records]
    assert (event.kind, event.step, event.values["skipped"]) == ("spike", 81, True)
    assert event.values["loss"] > event.values["loss_limit"]
    assert not told.read(82, metrics[1], state.spikes)
    with pytest.raises(RunFailedError, match=r"the last 3 steps, up to step 83, .*spike"):
        told.read(83, metrics[2], state.spikes)
    ((step, values),) = dumps
    assert step == 83
    assert [each["step"] for each in values["steps"]] == [81, 82, 83]
    assert len(values["window"]["losses"]) == 16
    # By how many of the window, whether or not they are in a row; and first it is rolled back.
    train = trainer.config.train.model_copy(update={"max_skipped_steps": 10})
    told = Skipped(train, lambda step, values: None, saved_before=str)
    few = train.spikes.max_skipped
    often = metrics[2]._replace(spikes=metrics[2].spikes._replace(recent=np.int32(few)))
    assert told.read(30, often, state.spikes)
    done = often._replace(skipped_in_row=np.int32(0))
    assert not told.read(31, done, state.spikes)
    used_up = often._replace(spikes=often.spikes._replace(roll_backs=np.int32(3)))
    with pytest.raises(RunFailedError, match="rolled back 3 times"):
        told.read(32, used_up, state.spikes)
