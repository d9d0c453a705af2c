"""Lion against its formula, with clipping and decay as every optimizer has them."""

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.sharding.parameters import (
    initialise,
    is_parameter,
    named_parameters,
    role_of,
    with_value,
)
from maxlm.train.setup import build_program


def test_three_steps_by_hand(load):
    config = load(
        "optimizer", "optimizer.weight_decay=0.3", "optimizer.clip_norm=0.5", "mesh.fsdp=1"
    )
    program = build_program(config, jax.devices()[:1])
    decoder = initialise(program.declared, 0, program.mesh)
    slots = program.optimizer.init(decoder)
    rng = np.random.default_rng(0)
    names = [path for path, _ in named_parameters(decoder)]
    roles = [role_of(parameter) for _, parameter in named_parameters(decoder)]
    value = [np.asarray(p[...], np.float64) for _, p in named_parameters(decoder)]
    momentum = [np.zeros_like(x) for x in value]
    for _ in range(3):
        gradient = [rng.normal(size=x.shape) for x in value]
        clipped = [
            g * min(1, 0.5 / np.sqrt(sum((x * x).sum() for x in gradient))) for g in gradient
        ]
        leaves, tree = jax.tree.flatten(decoder, is_leaf=is_parameter)
        given = [
            with_value(p, jnp.asarray(g, jnp.float32))
            for p, g in zip(leaves, gradient, strict=True)
        ]
        directions, slots = program.optimizer.update(
            jax.tree.unflatten(tree, given), slots, decoder
        )
        for place, (_, direction) in enumerate(named_parameters(directions)):
            sign = np.sign(0.9 * momentum[place] + 0.1 * clipped[place])
            decay = 0.3 * value[place] if roles[place] in ("matrix", "head") else 0
            np.testing.assert_allclose(
                direction[...], sign + decay, atol=1e-6, err_msg=names[place]
            )
            momentum[place] = 0.99 * momentum[place] + 0.01 * clipped[place]


def test_it_holds_one_slot_a_parameter(load):
    config = load("optimizer", "mesh.fsdp=1")
    memory = build_program(config, jax.devices()[:1]).memory_per_device(config)
    assert memory["optimizer"] == memory["parameters"]
