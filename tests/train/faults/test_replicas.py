"""Copies that differ: one flipped bit in one device's copy of any array is found, with its name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from maxlm.checkpoint.leaves import flatten, unflatten
from maxlm.config.errors import RunFailedError
from maxlm.sharding.mesh import AXES
from maxlm.train.faults.replicas import Replicas, find_differences, fingerprint


@pytest.fixture(scope="module")
def replicas(trainer):
    return Replicas(trainer.program.state, trainer.program.mesh, every=3)


@pytest.fixture(scope="module")
def state(trainer):
    return trainer.steps(trainer.new_state(), [trainer.batch(0), trainer.batch(1)])[0]


def flipped(state, leaf, place, bit, elements=1):
    """Return the state with one bit flipped in elements of what the device at a place holds of a
    leaf.
    """
    leaves = flatten(state)
    array = leaves[leaf]
    device = array.sharding.mesh.devices.ravel()[place]
    parts = []
    for shard in array.addressable_shards:
        data = np.array(shard.data)
        if shard.device == device:
            words = data.reshape(-1)[-elements:].view(np.uint32)
            words ^= np.uint32(1 << bit)
        parts.append(jax.device_put(data, shard.device))
    corrupt = jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)
    return unflatten(state, {**leaves, leaf: corrupt})


def test_copies_of_a_healthy_state_are_equal(replicas, state):
    replicas.check(2, state, now=True)


@pytest.mark.parametrize(("place", "bit"), [(0, 0), (3, 31), (2, 17)])
def test_one_bit_of_one_copy_is_found_and_named(replicas, state, place, bit, caplog):
    names = [name for name, leaf in flatten(state).items() if leaf.dtype == np.float32]
    embedding = next(name for name in names if "embed" in name)
    slot = next(name for name in names if name.startswith("optimizer"))
    for name in (embedding, slot, "spikes/losses"):
        with pytest.raises(RunFailedError, match=r"after step 4 devices hold copies") as caught:
            replicas.check(4, flipped(state, name, place, bit), now=True)
        assert f"device {place} (cpu) of process 0 on " in str(caught.value)
        assert name in str(caught.value)
        told = caplog.records[-1].maxlm_event
        assert (told.kind, told.step, told.values["leaves"]) == ("replicas_differ", 4, [name])
    # Every device has the window: three of four are right. Of a part of the embedding two have one.
    assert f"device {place} differs from 3 others" in str(caught.value)


def test_sign_bits_do_not_cancel(replicas, state):
    for elements in (2, 4):
        with pytest.raises(RunFailedError):
            replicas.check(4, flipped(state, "spikes/losses", 1, 31, elements), now=True)


def test_one_changed_element_and_two_exchanged_ones_change_a_fingerprint():
    rng, number = np.random.default_rng(0), jax.jit(fingerprint)
    for dtype in (np.float32, jnp.bfloat16, np.int32, np.bool_):
        values = np.asarray(
            rng.integers(0, 2, (7, 5)) if dtype == np.bool_ else rng.normal(size=(7, 5)), dtype
        )
        whole = int(number(jnp.asarray(values)))
        for place in range(values.size):
            other = values.copy().reshape(-1)
            other[place] = not other[place] if dtype == np.bool_ else other[place] + 1
            assert int(number(jnp.asarray(other.reshape(7, 5)))) != whole
    exchanged = np.arange(35, dtype=np.float32)
    exchanged[[3, 30]] = exchanged[[30, 3]]
    numbers = [number(jnp.asarray(x)) for x in (exchanged, np.arange(35, dtype=np.float32))]
    assert int(numbers[0]) != int(numbers[1])


def test_between_saves_it_is_found_a_step_late_where_it_is_due(replicas, state):
    corrupt = flipped(state, "spikes/losses", 1, 5)
    replicas.check(4, corrupt, now=False)  # not due
    replicas.check(6, corrupt, now=False)  # due, and read at the next call
    with pytest.raises(RunFailedError, match="after step 6"):
        replicas.check(7, state, now=False)
    replicas.check(8, state, now=True)


def test_a_step_keeps_a_corrupt_copy_corrupt(trainer, replicas, state):
    """What the run must not go on with: the step moves both copies alike, and neither is mended."""
    names = [name for name in flatten(state) if "embed" in name and name.startswith("decoder")]
    corrupt = flipped(state, names[0], 1, 3)
    corrupt, _ = trainer.steps(corrupt, [trainer.batch(2), trainer.batch(3)])
    with pytest.raises(RunFailedError):
        replicas.check(9, corrupt, now=True)


def test_the_fewer_are_the_suspects():
    mesh = Mesh(np.arange(8).reshape(4, 1, 2, 1, 1, 1), AXES)
    numbers = np.array([5, 7] * 4)
    assert list(find_differences("a", numbers, mesh, ("data",))) == []
    numbers[4] = 6
    ((leaf, suspects, others),) = find_differences("a", numbers, mesh, ("data",))
    assert (leaf, suspects, others) == ("a", (4,), 3)
    # Of two copies neither is right for sure.
    pairs = np.array([1, 1, 1, 2, 1, 1, 3, 3])
    ((_, suspects, others),) = find_differences("a", pairs, mesh, ("fsdp",))
    assert (suspects, others) == ((2, 3), 0)
    ((_, suspects, _),) = find_differences("a", np.array([1, 9, 1, 9, 1, 9, 2, 9]), mesh, ("data",))
    assert suspects == (6,)
