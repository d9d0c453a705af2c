"""The side of bench_train.py that is maxlm: the step of `maxlm train`, as the loop builds and calls
it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
from bench_train import make_batch, serve

from maxlm.config import RunConfig
from maxlm.process.malloc import tune_malloc
from maxlm.runtime import start
from maxlm.sharding.mesh import batch_sharding
from maxlm.sharding.parameters import named_parameters
from maxlm.train.setup import build_program, compile_step
from maxlm.train.state import create_state

NUM_BATCHES = 4


def main() -> None:
    tune_malloc()  # as `maxlm train` does
    folder = Path(sys.argv[1])
    config = RunConfig.model_validate_json((folder / "config.json").read_text())
    start(config.runtime)
    program = build_program(config)
    state = create_state(program.state, program.optimizer, program.mesh, seed=config.runtime.seed)
    if jax.default_backend() == "cpu":  # for the other side; it runs nowhere else
        np.savez(
            folder / "parameters.npz",
            **{path: np.asarray(leaf[...]) for path, leaf in named_parameters(state.decoder)},
        )
    compiled = compile_step(config, program)
    batches = [
        device_batch(config, index, batch_sharding(program.mesh)) for index in range(NUM_BATCHES)
    ]
    done = 0

    def run_steps(count: int) -> list[float]:
        nonlocal state, done
        losses = []
        for _ in range(count):
            state, metrics = compiled.run(state, batches[done % NUM_BATCHES])
            losses.append(metrics.sums.objective)
            done += 1
        return [float(loss) for loss in losses]

    device = jax.local_devices()[0]
    serve(
        run_steps,
        compile_seconds=compiled.compile_seconds,
        step_memory_bytes=compiled.peak_memory_bytes,
        platform=device.platform,
        device_kind=device.device_kind,
        num_devices=jax.device_count(),
        dtype=program.execution.compute_dtype.name,
    )


def device_batch(
    config: RunConfig, index: int, sharding: jax.sharding.NamedSharding
) -> dict[str, jax.Array]:
    tokens, targets = make_batch(config, index)
    arrays = {
        "tokens": tokens,
        "targets": targets,
        "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
        "target_bytes": np.ones_like(tokens),
        "weights": np.ones(tokens.shape, np.float32),
    }
    return {name: jax.device_put(array, sharding) for name, array in arrays.items()}


if __name__ == "__main__":
    main()
