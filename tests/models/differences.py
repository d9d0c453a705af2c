"""Gradients of a small model against differences of the plain implementation's loss, in fp64."""

import jax
import numpy as np

from maxlm.sharding.parameters import initialise, map_parameters, with_value
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import build_program
from tests.models import reference
from tests.train.program import make_batch, make_config


def mean_nats(weights, model, batch):
    """Return the loss of a batch."""
    places = reference.Places(batch["segment_ids"], batch["positions"], batch["tokens"].shape[1])
    logits = reference.logits_of(model, weights, batch["tokens"], places)
    log_z = np.log(np.exp(logits).sum(-1))
    nats = log_z - np.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
    return (nats * batch["weights"]).sum() / batch["weights"].sum()


def check_gradients(model, of):
    """Compare along a random direction of each parameter whose path `of` chooses; return their
    number.
    """
    config = make_config(model=model, train={"batch_size": 2})
    program = build_program(config, jax.devices()[:1])
    key = jax.random.key(1)
    decoder = map_parameters(
        lambda p: with_value(p, p[...] + 0.2 * jax.random.normal(key, p[...].shape)),
        initialise(program.declared, 0, program.mesh),
    )
    batch = make_batch(config, 0)
    compute = make_gradients(program.declared, program.mesh, program.execution)
    gradients = reference.weights_of(jax.jit(compute)(decoder, batch)[0])
    weights = reference.weights_of(decoder)
    chosen = [path for path in weights if of(path)]
    rng, step = np.random.default_rng(0), 1e-5
    for path in chosen:
        direction = rng.normal(size=weights[path].shape)
        ahead, behind = (
            mean_nats({**weights, path: weights[path] + by * direction}, config.model, batch)
            for by in (step, -step)
        )
        want = (ahead - behind) / (2 * step)
        scale = np.linalg.norm(gradients[path]) * np.linalg.norm(direction)
        assert abs((gradients[path] * direction).sum() - want) < 1e-5 * scale, path
        assert np.abs(gradients[path]).max() > 1e-4, path
    return len(chosen)
