"""Optimizers and learning-rate schedules, over global arrays: a file for each kind of optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from maxlm.config.optim import Optimizer
from maxlm.optim.adamw import adamw
from maxlm.optim.groups import check_overrides, decay_and_scale

OPTIMIZERS: dict[str, Callable[[Any, Any], optax.GradientTransformation]] = {
    "adamw": adamw,
}
"""Functions of (section, declared model): from clipped gradients to directions, for a learning rate
of 1.
"""


def build_optimizer(config: Optimizer, model: Any) -> optax.GradientTransformation:
    """Build clip -> the optimizer's directions -> decoupled decay -> scale per parameter.

    The learning rate is not in it: the step multiplies, so that the rate depends on the step number
    alone and not on how many steps were skipped.

    Args:
      config: the optimizer section.
      model: the declared model; only its parameters' paths, shapes and roles are read.

    Raises:
      ConfigError: an override matches no parameter.
    """
    check_overrides(config, model)
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    return optax.chain(clip, OPTIMIZERS[config.kind](config, model), decay_and_scale(config, model))
