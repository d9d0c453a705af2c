"""What is offloaded is not in a TPU's memory, by its compiler, which needs no TPU (scripts/setup
dev).
"""

import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from maxlm.optim.update import _turns, update
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import batch_shapes, build_program
from tests.train.program import make_config

pytestmark = [pytest.mark.slow, pytest.mark.tpu_aot]

MODEL = {
    "vocab_size": 512,
    "num_layers": 8,
    "embed_dim": 512,
    "num_heads": 4,
    "head_dim": 128,
    "mlp_dim": 1024,
}


@pytest.fixture(scope="module")
def devices():
    pytest.importorskip("libtpu")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    name, bounds = "v5p:2x2x1", (2, 2, 1)
    return topologies.get_topology_desc(
        platform="tpu",
        topology_name=name,
        chip_config_name="megacore",
        chips_per_host_bounds=bounds,
    ).devices


def build(devices, mesh=None, **train):
    config = make_config(
        model=MODEL, mesh=mesh or {"fsdp": 4}, length=2048, train={"batch_size": 4, **train}
    )
    return config, build_program(config, list(devices))


def compile_update(program):
    state = program.state

    def run(gradients, slots, decoder, finite):
        directions, slots = update(program.optimizer, gradients, slots, decoder, finite)
        return jax.tree.map(jnp.subtract, decoder, directions), slots

    shardings = jax.tree.map(lambda leaf: leaf.sharding, (state.decoder, state.optimizer))
    jitted = jax.jit(run, donate_argnums=(1, 2), out_shardings=shardings)
    return jitted.lower(state.decoder, state.optimizer, state.decoder, jnp.bool_(True)).compile()


def test_slots_pass_through_the_device_in_turns(devices):
    _, program = build(devices, offload=["optimizer"])
    compiled = compile_update(program)
    memory, plain = compiled.memory_analysis(), compile_update(build(devices)[1]).memory_analysis()
    slots = plain.argument_size_in_bytes - memory.argument_size_in_bytes
    assert memory.host_argument_size_in_bytes == memory.host_alias_size_in_bytes
    assert memory.host_argument_size_in_bytes == pytest.approx(slots, rel=0.01)
    # The old and new slots of one turn, the largest of which has a fifth of the parameters, and
    # little else.
    assert memory.temp_size_in_bytes - plain.temp_size_in_bytes < 0.5 * slots
    copies = [
        line for line in compiled.as_text().splitlines() if "copy-start(" in line and "S(5)" in line
    ]
    # Each parameter's two slots, once here and once back.
    assert len(copies) == 4 * len(_turns(program.declared))


@pytest.mark.parametrize("mesh", [{"fsdp": 4}, {"stage": 2, "fsdp": 2}], ids=str)
def test_activations_wait_in_host_memory(devices, mesh):
    def memory(**train):
        config, program = build(devices, mesh, microbatches=mesh.get("stage", 1), **train)
        gradients = jax.jit(make_gradients(program.declared, program.mesh, program.execution))
        lowered = gradients.lower(program.state.decoder, batch_shapes(config, program.mesh))
        return lowered.compile().memory_analysis()

    kept = memory(remat={"mlp_hidden": "save", "mlp_gate": "save"})
    moved = memory(remat={"mlp_hidden": "offload", "mlp_gate": "offload"}, offload=["activations"])
    layers = MODEL["num_layers"] // mesh.get("stage", 1)
    named = layers * 2048 * (2 * MODEL["mlp_dim"] + MODEL["embed_dim"]) * 2
    assert kept.host_temp_size_in_bytes == 0
    assert moved.host_temp_size_in_bytes == pytest.approx(named, rel=0.05)
    assert moved.temp_size_in_bytes < kept.temp_size_in_bytes - 0.5 * named
