"""A small run on fake devices: its losses, gradients and token hash, for comparing meshes."""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np

from maxlm.config.schema import RunConfig
from maxlm.data.token_hash import hexdigest
from maxlm.optim.schedule import make_schedule
from maxlm.sharding.mesh import batch_sharding
from maxlm.sharding.parameters import layers_of, named_parameters
from maxlm.sharding.stages import EMPTY
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import build_program
from maxlm.train.state import create_state
from maxlm.train.step import make_train_step
from tests.small_models import model_settings

MODEL = {
    "vocab_size": 64,
    "num_layers": 2,
    "embed_dim": 32,
    "num_heads": 8,
    "head_dim": 4,
    "mlp_dim": 64,
}
LENGTH, BATCH, STEPS = 16, 16, 5


class Result(NamedTuple):
    """What a run computed: a loss per step, the first step's gradients by path, the token hash
    after the last.
    """

    losses: list[float]
    gradients: dict[str, np.ndarray]
    token_hash: str


def make_config(*, model=None, mesh=None, train=None, runtime=None, objective=None, length=LENGTH):
    """Return a config around the small model; nothing of it is read from disk."""
    return RunConfig.model_validate(
        {
            "run_dir": "unused",
            "model": model_settings(**{**MODEL, **(model or {})}),
            "data": {
                "sources": {"none": {"path": "none"}},
                "tokenizer": "none",
                "sequence_length": length,
            },
            "mesh": {"fsdp": 1, **(mesh or {})},
            "optimizer": {"learning_rate": 1e-2},
            "objective": {"chunk_tokens": 24, **(objective or {})},
            "train": {
                "num_steps": STEPS,
                "batch_size": BATCH,
                "spikes": {"kind": "none"},
                **(train or {}),
            },
            "runtime": runtime or {},
        }
    )


def make_batch(config, step):
    """Return a packed random batch, as numpy arrays."""
    rng = np.random.default_rng(step)
    shape = (config.train.batch_size, config.data.sequence_length)
    segments = np.sort(rng.integers(1, 4, shape), axis=1)
    starts = np.concatenate([np.ones((shape[0], 1), bool), np.diff(segments) > 0], axis=1)
    columns = np.arange(shape[1])
    begins = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
    batch = {
        "tokens": rng.integers(0, config.model.vocab_size, shape),
        "targets": rng.integers(0, config.model.vocab_size, shape),
        "segment_ids": segments,
        "positions": columns - begins,
        "target_bytes": rng.integers(0, 5, shape),
    }
    weights = {"weights": (rng.random(shape) > 0.1).astype(np.float32)}
    for depth in range(1, config.model.mtp_depth + 1):
        batch[f"targets_{depth}"] = rng.integers(0, config.model.vocab_size, shape)
        weights[f"weights_{depth}"] = (rng.random(shape) > 0.3).astype(np.float32)
    return {name: value.astype(np.int32) for name, value in batch.items()} | weights


def run(config):
    """Train STEPS steps on as many fake devices as the mesh needs."""
    program = build_program(config, jax.devices()[: math.prod(config.mesh.sizes.values())])
    compute = make_gradients(
        program.declared, program.mesh, program.execution, program.state.carried
    )
    kept = {}

    def keep(decoder, batch, carried):
        gradients, sums = compute(decoder, batch, carried)
        kept["gradients"] = gradients  # traced: handed out beside the step's own results
        return gradients, sums

    train_step = make_train_step(
        keep, program.optimizer, make_schedule(config.schedule, peak=1e-2, num_steps=STEPS)
    )

    @jax.jit
    def step(state, batch):
        return *train_step(state, batch), kept["gradients"]

    sizes = {"batch_size": config.train.batch_size}
    state = create_state(program.state, program.optimizer, program.mesh, seed=0, **sizes)
    losses, first = [], None
    for index in range(STEPS):
        place = functools.partial(jax.device_put, device=batch_sharding(program.mesh))
        state, metrics, gradients = step(
            state, {name: place(x) for name, x in make_batch(config, index).items()}
        )
        losses.append(float(metrics.sums.objective))
        first = first or gradients
    named = {}
    for path, parameter in named_parameters(first):
        value, layers = np.asarray(parameter.get_value()), layers_of(parameter)
        # Rows by their layers, whatever the stages: those without a layer have no gradient.
        order = sorted((layer, row) for row, layer in enumerate(layers or ()) if layer != EMPTY)
        assert not any(value[row].any() for row, layer in enumerate(layers or ()) if layer == EMPTY)
        named[path] = value[[row for _, row in order]] if layers else value
    return Result(losses, named, hexdigest(np.asarray(state.token_hash)))


def assert_same(result, reference, tolerance=1e-5):
    """Compare to fp32 rounding: each gradient relative to the largest element of its array."""
    np.testing.assert_allclose(result.losses, reference.losses, rtol=tolerance)
    assert result.token_hash == reference.token_hash
    assert result.gradients.keys() == reference.gradients.keys()
    for path, want in reference.gradients.items():
        scale = np.abs(want).max()
        # An array whose gradient is zero in exact arithmetic has rounding noise alone (a key bias
        # under softmax).
        largest = max(np.abs(gradient).max() for gradient in reference.gradients.values())
        np.testing.assert_allclose(
            result.gradients[path],
            want,
            rtol=0,
            atol=tolerance * max(scale, 1e-3 * largest),
            err_msg=path,
        )
