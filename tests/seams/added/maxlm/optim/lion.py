"""Lion (arXiv:2302.06675, algorithm 2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maxlm.config.optim.lion import LionConfig


class LionState(NamedTuple):
    """The momentum of each parameter."""

    momentum: Any


def lion(config: LionConfig, model: Any) -> optax.GradientTransformation:
    """Build Lion's directions, sign(beta1 m + (1 - beta1) g); then m becomes beta2 m + (1 - beta2)
    g.
    """
    del model

    def mixed(beta: float, momentum: Any, gradients: Any) -> Any:
        return jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, momentum, gradients)

    def update(gradients: Any, state: LionState, params: Any = None) -> tuple[Any, LionState]:
        del params
        directions = jax.tree.map(jnp.sign, mixed(config.beta1, state.momentum, gradients))
        return directions, LionState(mixed(config.beta2, state.momentum, gradients))

    return optax.GradientTransformation(
        lambda params: LionState(jax.tree.map(jnp.zeros_like, params)), update
    )
