"""The best learning rate at four widths, with muP and without it: short runs over a grid of rates.

    maxlm prepare RUN.yaml && .venv/bin/python scripts/bench_mup.py RUN.yaml [key=value ...]

A run's loss is the mean over its last tenth, on text that it has not seen before; rates warm up over
a tenth of the steps and then fall linearly. Same data and seeds at all widths. Prints a table.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxlm import runtime
from maxlm.config import load_run
from maxlm.config.schema import MeshConfig, RunConfig, ScheduleConfig
from maxlm.data.loader import device_batch
from maxlm.models.width import at_width
from maxlm.optim.schedule import make_schedule
from maxlm.sharding.mesh import batch_sharding
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import build_program, open_datasets
from maxlm.train.state import TrainState, create_state
from maxlm.train.step import make_train_step

WIDTHS = (32, 64, 128, 256)
RATES = tuple(1e-3 * 2.0**power for power in range(6))
SEEDS = (0,)
STEPS, SEQUENCES, LENGTH = 150, 8, 64


def main() -> None:
    base = load_run(sys.argv[1], sys.argv[2:]).config
    runtime.start(base.runtime)
    print(f"| parametrisation | width | {' | '.join(f'{rate:.3g}' for rate in RATES)} | best |")
    print("|---" * (len(RATES) + 3) + "|")
    for kind in ("mup", "standard"):
        # At the base width both are the same, bit for bit.
        for width in WIDTHS if kind == "mup" else WIDTHS[:0:-1]:
            began = time.perf_counter()
            losses = np.array(list(losses_at(config_of(base, kind, width))))
            best = RATES[int(losses.argmin())]
            cells = " | ".join(f"{loss:.3f}" for loss in losses)
            print(f"| {kind} | {width} | {cells} | {best:.3g} |", flush=True)
            print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def config_of(base: RunConfig, kind: str, width: int) -> RunConfig:
    model = at_width(base.model, width)
    if kind == "mup":
        model["parametrisation"] = {"kind": "mup", "base_width": WIDTHS[0]}
    data = base.model_dump(mode="json")
    data["train"] |= {"batch_size": SEQUENCES, "num_steps": STEPS, "microbatches": 1}
    data["data"]["sequence_length"], data["schedule"] = LENGTH, {}
    mesh = MeshConfig().model_dump(mode="json")
    return RunConfig.model_validate({**data, "model": model, "mesh": mesh})


def losses_at(config: RunConfig) -> Iterator[float]:
    """Yield the loss of each rate, the mean over seeds."""
    dataset = open_datasets(config).train
    program = build_program(config, jax.devices()[:1], num_ids=dataset.tokenizer.vocab_size)
    sharding = batch_sharding(program.mesh)
    batches = [device_batch(dataset, step * SEQUENCES, sharding) for step in range(STEPS)]
    step = make_step(program)
    last = STEPS // 10
    for rate in RATES:
        of_seeds = []
        for seed in SEEDS:
            arguments = program.state, program.optimizer, program.mesh
            state = create_state(*arguments, seed=seed, batch_size=SEQUENCES)
            losses = []
            for batch in batches:
                state, loss = step(state, batch, jnp.float32(rate))
                losses.append(loss)
            of_seeds.append(np.mean(jax.device_get(losses[-last:])))
        yield float(np.mean(of_seeds))


def make_step(program: Any) -> Callable[..., tuple[TrainState, jax.Array]]:
    """Return step(state, batch, rate), compiled once for all rates."""
    schedule = ScheduleConfig(kind="linear", warmup_steps=STEPS // 10, final_fraction=0.0)
    shape = make_schedule(schedule, peak=1.0, num_steps=STEPS)
    arguments = program.declared, program.mesh, program.execution, program.state.carried
    gradients = make_gradients(*arguments)

    def step(state: TrainState, batch: Any, rate: jax.Array) -> tuple[TrainState, jax.Array]:
        one = make_train_step(gradients, program.optimizer, lambda number: rate * shape(number))
        state, metrics = one(state, batch)
        return state, metrics.sums.objective

    return jax.jit(step, donate_argnums=0)


if __name__ == "__main__":
    main()
