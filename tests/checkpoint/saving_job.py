"""Train nothing, but save after every step: the job that the tests kill.

Arguments: run directory, number of steps.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm import runtime
from maxlm.checkpoint import Checkpointer, RunDirectory
from maxlm.config.schema import CheckpointConfig, RuntimeConfig


def state_after(step, mesh):
    sharding = NamedSharding(mesh, PartitionSpec("device"))
    values = np.random.default_rng(step).standard_normal((64, 256)).astype(np.float32)
    return {
        "w": jax.device_put(values, sharding),
        "b": jax.device_put(values.astype(jnp.bfloat16), sharding),
    }


def main():
    runtime.start(RuntimeConfig(device_count=4))
    mesh = Mesh(np.array(jax.devices()), ("device",))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_after(0, mesh)
    )
    with (
        RunDirectory.open(sys.argv[1]) as run,
        Checkpointer(run.checkpoints, CheckpointConfig(keep_last=2)) as saver,
    ):
        restored = saver.restore(abstract)
        first = 1
        if restored is not None:
            expected = state_after(restored.step, mesh)
            assert restored.record["step"] == restored.step
            assert all(np.array_equal(restored.state[name], expected[name]) for name in expected)
            first = restored.step + 1
        print(f"from {first}", flush=True)
        for step in range(first, first + int(sys.argv[2])):
            saver.save(step, state_after(step, mesh), {"seed": 0})
    print("done", flush=True)


main()
