"""Which settings each parameter gets: by its role, unless an override that matches its path says
otherwise.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, NamedTuple

import optax

from maxlm.config.errors import ConfigError, Problem
from maxlm.config.optim.optimizer import OptimizerSection
from maxlm.sharding.parameters import (
    Role,
    map_parameters,
    named_parameters,
    role_of,
    widths_of,
)


class ParameterSettings(NamedTuple):
    """What one parameter's update is multiplied with, and how strongly the parameter decays."""

    learning_rate_scale: float
    weight_decay: float


def parameter_settings(config: OptimizerSection, path: str, role: Role) -> ParameterSettings:
    """Return the settings of a parameter.

    Of the overrides that match its path, the last one that says something about a setting wins. No
    optimizer moves what a layer's own rule moves.
    """
    if role == "state":
        return ParameterSettings(0.0, 0.0)
    scale, decay = 1.0, 0.0 if role in config.no_decay else config.weight_decay
    for override in config.overrides:
        if re.search(override.match, path):
            scale = scale if override.learning_rate_scale is None else override.learning_rate_scale
            decay = decay if override.weight_decay is None else override.weight_decay
    return ParameterSettings(scale, decay)


def decay_and_scale(config: OptimizerSection, model: Any) -> optax.GradientTransformation:
    """Build what every optimizer ends with: decoupled decay, then a scale for each parameter.

    The factor that follows the width (`model.parametrisation`) is on the direction alone: a step
    takes the same share of a weight at all widths (arXiv:2405.13698).

    Args:
      config: the optimizer section.
      model: the declared model; only its parameters' paths and roles are read.
    """
    settings = [
        (*parameter_settings(config, path, role_of(parameter)), _width_rate(config, parameter))
        for path, parameter in named_parameters(model)
    ]

    def update(
        updates: Any, state: optax.EmptyState, params: Any = None
    ) -> tuple[Any, optax.EmptyState]:
        setting = iter(settings)

        def one(direction: Any, parameter: Any) -> Any:
            scale, decay, width_rate = next(setting)
            value = direction.get_value()
            value = value if width_rate == 1 else width_rate * value
            value = value + decay * parameter.get_value() if decay else value
            return direction.replace(scale * value)

        return map_parameters(one, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _width_rate(config: OptimizerSection, parameter: Any) -> float:
    widths = widths_of(parameter)
    if widths is None:
        return 1.0
    rate = config.width_rate(role_of(parameter), *widths)
    assert rate is not None, "the configuration was checked"
    return rate


def check_overrides(config: OptimizerSection, model: Any) -> None:
    """Refuse overrides that are for no parameter.

    Raises:
      ConfigError: names each, with paths that are near.
    """
    paths = [path for path, _ in named_parameters(model)]
    problems = []
    for index, override in enumerate(config.overrides):
        if not any(re.search(override.match, path) for path in paths):
            path = f"optimizer.overrides.{index}.match"
            near = ", ".join(_near(override.match, paths))
            text = f"{path}={override.match!r} matches no parameter; near it are {near}"
            problems.append(Problem(path, text))
    if problems:
        raise ConfigError(problems, "the configuration for this model")


def _near(pattern: str, paths: list[str]) -> list[str]:
    """Return the paths most like a pattern without its special signs."""
    plain = re.sub(r"[^\w/]", "", pattern)

    def likeness(path: str) -> float:
        ends = ["/".join(path.split("/")[-length:]) for length in range(1, path.count("/") + 2)]
        return max(difflib.SequenceMatcher(None, plain, end).ratio() for end in ends)

    return sorted(paths, key=lambda path: -likeness(path))[:3]
