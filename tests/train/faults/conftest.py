"""One compiled step on a mesh with copies, for the tests of what goes wrong in it."""

from typing import NamedTuple

import jax
import pytest

from maxlm.config.schema import RunConfig
from maxlm.sharding.mesh import batch_sharding
from maxlm.train.setup import CompiledStep, Program, build_program, compile_step
from maxlm.train.state import create_state
from tests.train.program import make_batch, make_config

RULE = {"kind": "skip", "window": 16, "min_steps": 8, "max_skipped": 4, "then": "roll_back"}
MODEL = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32}


class Trainer(NamedTuple):
    """A step, compiled, and what it needs."""

    config: RunConfig
    program: Program
    compiled: CompiledStep

    def new_state(self):
        """Return the state of step 0."""
        return create_state(
            self.program.state,
            self.program.optimizer,
            self.program.mesh,
            seed=0,
            batch_size=self.config.train.batch_size,
        )

    def batch(self, number=0, change=None):
        """Return a batch on its devices, after a change of its fields."""
        fields = make_batch(self.config, number)
        if change is not None:
            change(fields)
        sharding = batch_sharding(self.program.mesh)
        return {name: jax.device_put(field, sharding) for name, field in fields.items()}

    def steps(self, state, batches):
        """Return the state after some batches, and the metrics of each on the host."""
        told = []
        for batch in batches:
            state, metrics = self.compiled.run(state, batch)
            told.append(jax.device_get(metrics))
        return state, told


@pytest.fixture(scope="session")
def trainer():
    """Two copies of parameters that are split in two."""
    config = make_config(
        model=MODEL, mesh={"data": 2, "fsdp": 2}, train={"num_steps": 200, "spikes": RULE}
    )
    program = build_program(config, jax.devices()[:4])
    return Trainer(config, program, compile_step(config, program))
