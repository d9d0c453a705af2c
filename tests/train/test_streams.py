"""What mixers share along the stack and carry from step to step, by a toy that does both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from maxlm.checkpoint import Checkpointer
from maxlm.config.schema import CheckpointConfig
from maxlm.data.token_hash import hexdigest
from maxlm.layers import mixers
from maxlm.layers.layer import Beside
from maxlm.layers.mixers.attention import Attention
from maxlm.sharding.mesh import BATCH_AXES
from maxlm.sharding.parameters import Constant, weight, with_value
from maxlm.train.setup import build_program, compile_step
from maxlm.train.state import create_state
from tests.train.program import assert_same, make_batch, make_config, run


class Toy(Attention):
    """Attention that adds what the first layer was given, and the mean vector of the sequence in
    the step before.
    """

    takes_beside = True
    carries = True

    def shared_at_start(self, x_BTD):
        return jnp.zeros_like(x_BTD)

    def carried_state(self, batch_size):
        shape = (batch_size, self.out.get_value().shape[-1])
        return (
            weight(shape, P(BATCH_AXES, None), Constant(0.0), role="state", fp32=True)
            if self.carries
            else ()
        )

    def __call__(self, x_BTD, info, beside):
        y_BTD, report = super().__call__(x_BTD, info)
        shared = jnp.where(jnp.all(beside.shared == 0), x_BTD, beside.shared)
        y_BTD += 0.5 * shared
        if not self.carries:
            return y_BTD, report, Beside(shared)
        y_BTD += beside.carried[:, None].astype(y_BTD.dtype)
        mean_BD = lax.pmean(x_BTD.astype(jnp.float32).mean(axis=1), ("tensor", "context"))
        return y_BTD, report, Beside(shared, 0.5 * beside.carried + mean_BD)


class Forgetful(Toy):
    carries = False


MODEL = {"num_layers": 3}


@pytest.fixture(scope="module")
def one_device():
    patch = pytest.MonkeyPatch()
    patch.setitem(mixers.MIXERS, "attention", Toy)
    yield run(make_config(model=MODEL, train={"microbatches": 4}))
    patch.undo()


@pytest.mark.parametrize(
    ("mesh", "gather"),
    [
        ({"fsdp": 2, "tensor": 2, "context": 2}, "layer"),
        ({"stage": 2, "fsdp": 2, "tensor": 2}, "microbatch"),
        ({"stage": 2, "data": 2}, "step"),
    ],
    ids=["tensor_context", "stage_tensor", "stage_data"],
)
def test_same_as_one_device(mesh, gather, one_device):
    config = make_config(
        model=MODEL, mesh=mesh, train={"microbatches": 4, "gather": gather, "remat": "full"}
    )
    assert_same(run(config), one_device)


def test_something_is_shared_and_carried(one_device, monkeypatch):
    config = make_config(model=MODEL, train={"microbatches": 4})
    monkeypatch.setitem(mixers.MIXERS, "attention", Forgetful)
    forgetful = run(config)
    monkeypatch.setitem(mixers.MIXERS, "attention", Attention)
    plain = run(config)
    # Nothing was carried yet.
    assert forgetful.losses[0] == pytest.approx(one_device.losses[0], rel=1e-6)
    assert abs(forgetful.losses[1] - one_device.losses[1]) > 1e-4
    assert abs(plain.losses[0] - forgetful.losses[0]) > 1e-4


def test_what_is_carried_is_in_the_checkpoint(one_device, tmp_path):
    config = make_config(model=MODEL, mesh={"fsdp": 2})
    program = build_program(config, jax.devices()[:2])
    fresh = functools.partial(
        create_state, program.state, program.optimizer, program.mesh, seed=0, batch_size=16
    )
    state, _ = compile_step(config, program).run(fresh(), make_batch(config, 0))
    carried = jax.tree.leaves(state.carried)
    assert [leaf.shape for leaf in carried] == [(3, 16, 32)]
    assert all(np.abs(leaf).max() > 0 for leaf in carried)
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        token_hash = hexdigest(jax.device_get(state.token_hash))
        checkpointer.save(1, state, {"token_hash": token_hash})
        checkpointer.wait()
        restored = checkpointer.restore(program.state)
    np.testing.assert_array_equal(jax.tree.leaves(restored.state.carried)[0], carried[0])


def test_a_skipped_step_carries_nothing_on(one_device):
    config = make_config(model=MODEL)
    program = build_program(config, jax.devices()[:1])
    state = create_state(program.state, program.optimizer, program.mesh, seed=0, batch_size=16)
    norm = state.decoder.norm
    norm.scale = with_value(norm.scale, norm.scale[...] * jnp.nan)
    state, metrics = compile_step(config, program).run(state, make_batch(config, 0))
    assert int(metrics.skipped) == 1
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(state.carried))
