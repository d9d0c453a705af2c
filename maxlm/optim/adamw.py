"""AdamW over the whole model, with settings per parameter path."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from maxlm.config.schema import OptimizerConfig
from maxlm.sharding.parameters import map_parameters, named_parameters

_KINDS = {
    "norms": re.compile(r"(^|_|/)norm/"),
    "biases": re.compile(r"bias$"),
    "embeddings": re.compile(r"^embedding/"),
}


class ParameterSettings(NamedTuple):
    """What one parameter's update is multiplied with, and how strongly the parameter decays."""

    learning_rate_scale: float
    weight_decay: float


def parameter_settings(config: OptimizerConfig, path: str) -> ParameterSettings:
    """Return the settings of the parameter at a path: the defaults, or the last override that matches it."""
    decays = not any(_KINDS[kind].search(path) for kind in config.no_decay)
    settings = ParameterSettings(1.0, config.weight_decay if decays else 0.0)
    for override in config.overrides:
        if re.search(override.match, path):
            decay = settings.weight_decay if override.weight_decay is None else override.weight_decay
            settings = ParameterSettings(override.learning_rate_scale, decay)
    return settings


def build_optimizer(config: OptimizerConfig, model: Any) -> optax.GradientTransformation:
    """Build clip -> Adam -> decoupled decay -> scale per parameter.

    The learning rate is not in it: the step multiplies, so that the rate depends on the step number alone and not on
    how many steps were skipped.

    Args:
      config: the optimizer section.
      model: the declared model; only its parameter paths are read.
    """
    settings = [parameter_settings(config, path) for path, _ in named_parameters(model)]
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=jnp.float32)
    return optax.chain(clip, adam, _decay_and_scale(settings))


def _decay_and_scale(settings: list[ParameterSettings]) -> optax.GradientTransformation:
    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        setting = iter(settings)

        def one(direction: Any, parameter: Any) -> Any:
            scale, decay = next(setting)
            value = direction.get_value() + decay * parameter.get_value() if decay else direction.get_value()
            return direction.replace(scale * value)

        return map_parameters(one, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
