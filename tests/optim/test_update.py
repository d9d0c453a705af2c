"""Slots in host memory: the same steps, and every array comes back to where it lay."""

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.checkpoint.rearrange import rearrange_layers
from maxlm.models.decoder import Decoder
from maxlm.optim.update import _turn_of, _turns, update
from maxlm.sharding.mesh import batch_sharding
from maxlm.sharding.stages import EMPTY, Layout, SegmentRows
from maxlm.train.setup import build_program, compile_step
from maxlm.train.state import create_state, declare_state
from tests.train.program import make_batch, make_config

MESH = {"fsdp": 2}


def config_with(*offload):
    return make_config(mesh=MESH, train={"offload": list(offload)})


def two_steps(config):
    """Return the state after two steps of the compiled step, and that step."""
    program = build_program(config, jax.devices()[:2])
    compiled = compile_step(config, program)
    state = create_state(program.state, program.optimizer, program.mesh, seed=0)
    for step in range(2):
        state, _ = compiled.run(
            state, jax.device_put(make_batch(config, step), batch_sharding(program.mesh))
        )
    return state, compiled.run


def memory_kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.ndim}


def assert_close(got, want):
    # Two compiled programs round differently, and Adam divides a gradient near zero by its own
    # size.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_steps_do_not_depend_on_where_slots_lie():
    (state, run), (plain, plain_run) = two_steps(config_with("optimizer")), two_steps(config_with())
    assert memory_kinds(state.optimizer) == {"pinned_host"}
    assert memory_kinds(state.decoder) == memory_kinds(plain.optimizer) == {"device"}
    jax.tree.map(assert_close, jax.device_get(state), jax.device_get(plain))
    # Every array of the state is updated in place.
    assert (
        run.memory_analysis().alias_size_in_bytes == plain_run.memory_analysis().alias_size_in_bytes
    )


def test_slots_stay_as_they_were_where_gradients_are_not_finite():
    program = build_program(config_with("optimizer"), jax.devices()[:2])
    state = create_state(program.state, program.optimizer, program.mesh, seed=0)
    gradients = jax.tree.map(jnp.ones_like, state.decoder)

    @jax.jit
    def slots(finite):
        return update(program.optimizer, gradients, state.optimizer, state.decoder, finite)[1]

    old, new = state.optimizer[1].mu.norm.scale[...], slots(True)[1].mu.norm.scale[...]
    assert (np.asarray(new) != np.asarray(old)).all()
    jax.tree.map(np.testing.assert_array_equal, slots(False), state.optimizer)


def test_turns_are_of_about_the_same_size_and_know_their_slots():
    program = build_program(config_with("optimizer"), jax.devices()[:2])
    turns = _turns(program.declared)
    assert sorted(set(turns.values())) == list(range(len(set(turns.values()))))
    assert 4 <= len(set(turns.values())) <= 16
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/"): path
        for path, _ in jax.tree_util.tree_leaves_with_path(program.state.optimizer)
    }
    numbers = {name: _turn_of(path, turns) for name, path in paths.items()}
    for owner, number in turns.items():
        assert {
            n for name, n in numbers.items() if name.removesuffix("/value").endswith(f"u/{owner}")
        } == {number}


def test_slots_of_a_turn_wait_for_those_of_the_turn_before():
    """Each fetch is behind a barrier: of the gradients in the first turn, then of what was sent
    back.
    """
    program = build_program(config_with("optimizer"), jax.devices()[:2])
    state = program.state
    jaxpr = jax.make_jaxpr(lambda *a: update(program.optimizer, *a))(
        state.decoder, state.optimizer, state.decoder, jnp.bool_(True)
    )
    barriers = {e.outvars[0]: e for e in jaxpr.eqns if e.primitive.name == "optimization_barrier"}
    fetches = [e for e in jaxpr.eqns if e.primitive.name == "device_put" and on_host(e.invars[0])]
    sends = {
        e.outvars[0]
        for e in jaxpr.eqns
        if e.primitive.name == "device_put" and on_host(e.outvars[0])
    }
    num_slots, num_turns = (
        2 * len(_turns(program.declared)),
        max(_turns(program.declared).values()) + 1,
    )
    assert len(fetches) == num_slots * num_turns  # all but a turn's own are dead code
    for index, fetch in enumerate(fetches):
        waits_for = set(barriers[fetch.invars[0]].invars[1:])
        assert waits_for <= sends if index >= num_slots else not waits_for & sends


def on_host(variable):
    return variable.aval.memory_space == jax.memory.Space.Host


def test_restored_layers_stay_in_host_memory():
    config = config_with("optimizer")
    program = build_program(config, jax.devices()[:2])
    state = create_state(program.state, program.optimizer, program.mesh, seed=0)
    rows = jax.device_get(state.optimizer)[1].mu.stack[0][0].mixer.query[...]
    layout = Layout((SegmentRows((1, EMPTY, 0), 3),))
    other = declare_state(
        Decoder(config.model, layout), program.optimizer, program.mesh, offload=True
    )
    state = rearrange_layers(state, other)
    assert memory_kinds(state.optimizer) == {"pinned_host"}
    found = state.optimizer[1].mu.stack[0][0].mixer.query[...]
    np.testing.assert_array_equal(found, np.stack([rows[1], np.zeros_like(rows[0]), rows[0]]))
