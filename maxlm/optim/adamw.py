"""AdamW (arXiv:1711.05101)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from maxlm.config.optim.adamw import AdamwConfig


def adamw(config: AdamwConfig, model: Any) -> optax.GradientTransformation:
    """Build Adam's directions; decay and scales come after them, see `maxlm.optim.build_optimizer`."""
    del model
    return optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=jnp.float32)
