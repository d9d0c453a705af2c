"""AdamW against its formula, and who decays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.schema import ModelConfig, OptimizerConfig
from maxlm.models.decoder import Decoder
from maxlm.optim.adamw import build_optimizer, parameter_settings
from maxlm.sharding.parameters import map_parameters, named_parameters


@pytest.fixture(scope="module")
def model():
    blocks = [
        {"mixer": {"kind": "attention", "bias": "all", "qk_norm": "rmsnorm"}, "ffn": {"kind": "mlp", "bias": "all"}}
    ]
    config = ModelConfig(vocab_size=16, num_layers=2, embed_dim=8, num_heads=2, mlp_dim=8, pattern=blocks)
    return Decoder(config)


def test_norms_biases_and_embeddings_do_not_decay(model):
    decays = {path: parameter_settings(OptimizerConfig(), path).weight_decay for path, _ in named_parameters(model)}
    decaying = {path for path, decay in decays.items() if decay}
    assert decaying == {
        "head/output",
        *(f"stack/0/mixer/{name}" for name in ("query", "key", "value", "out")),
        *(f"stack/0/ffn/{name}" for name in ("up", "gate", "down")),
    }
    everything = OptimizerConfig(no_decay=())
    assert all(parameter_settings(everything, path).weight_decay == 0.1 for path in decays)


def test_last_override_wins():
    overrides = [{"match": "mixer", "learning_rate_scale": 0.5}, {"match": "mixer/query$", "weight_decay": 0.3}]
    config = OptimizerConfig(overrides=overrides)
    assert parameter_settings(config, "stack/0/mixer/key") == (0.5, 0.1)
    assert parameter_settings(config, "stack/0/mixer/query") == (1.0, 0.3)


def test_two_updates_equal_the_formula(model):
    config = OptimizerConfig(clip_norm=None, overrides=[{"match": "head", "learning_rate_scale": 0.25}])
    optimizer = build_optimizer(config, model)
    rng = np.random.default_rng(0)
    fill = lambda p: p.replace(jnp.asarray(rng.normal(size=p.get_value().shape), jnp.float32))  # noqa: E731
    parameters = map_parameters(fill, model)
    state = optimizer.init(parameters)
    moments = {path: (0.0, 0.0) for path, _ in named_parameters(model)}
    for count in (1, 2):
        gradients = map_parameters(fill, model)
        updates, state = optimizer.update(gradients, state, parameters)
        for (path, update), (_, gradient), (_, parameter) in zip(
            *(named_parameters(tree) for tree in (updates, gradients, parameters)), strict=True
        ):
            g = np.asarray(gradient[...], np.float64)
            first, second = moments[path]
            first, second = 0.9 * first + 0.1 * g, 0.95 * second + 0.05 * g * g
            moments[path] = (first, second)
            scale, decay = parameter_settings(config, path)
            adam = (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.95**count)) + 1e-8)
            want = scale * (adam + decay * np.asarray(parameter[...], np.float64))
            np.testing.assert_allclose(update[...], want, rtol=2e-4, atol=1e-6, err_msg=path)


def test_clipping_bounds_the_global_norm(model):
    one = map_parameters(lambda p: p.replace(jnp.ones(p.get_value().shape)), model)
    small = jax.tree.map(lambda x: 1e-3 * x, one)
    optimizer = build_optimizer(OptimizerConfig(clip_norm=1e-2, weight_decay=0.0, epsilon=1.0), model)
    count = sum(x.size for x in jax.tree.leaves(one))
    update, _ = optimizer.update(small, optimizer.init(one), one)
    clipped = 1e-3 * min(1.0, 1e-2 / (1e-3 * np.sqrt(count)))
    np.testing.assert_allclose(jax.tree.leaves(update)[0].ravel()[0], clipped / (clipped + 1.0), rtol=1e-4)
