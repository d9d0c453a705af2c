"""AdamW against its formula, and who decays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.errors import ConfigError
from maxlm.config.model import ModelConfig
from maxlm.config.optim import AdamwConfig
from maxlm.models.decoder import Decoder
from maxlm.optim import build_optimizer
from maxlm.optim.groups import check_overrides, parameter_settings
from maxlm.sharding.parameters import map_parameters, named_parameters, role_of
from tests.small_models import model_settings


@pytest.fixture(scope="module")
def model():
    blocks = [
        {
            "mixer": {"kind": "attention", "bias": "all", "qk_norm": "rmsnorm"},
            "ffn": {"kind": "mlp", "bias": "all"},
        }
    ]
    settings = model_settings(vocab_size=16, num_layers=2, embed_dim=8, num_heads=2, pattern=blocks)
    return Decoder(ModelConfig.model_validate(settings))


def settings_of(config, model):
    return {
        path: parameter_settings(config, path, role_of(parameter))
        for path, parameter in named_parameters(model)
    }


def test_norms_biases_and_embeddings_do_not_decay(model):
    decaying = {
        path
        for path, settings in settings_of(AdamwConfig(), model).items()
        if settings.weight_decay
    }
    assert decaying == {
        "head/output",
        *(f"stack/0/0/mixer/{name}" for name in ("query", "key", "value", "out")),
        *(f"stack/0/0/ffn/{name}" for name in ("up", "gate", "down")),
    }
    everything = AdamwConfig(no_decay=())
    assert all(settings.weight_decay == 0.1 for settings in settings_of(everything, model).values())


def test_of_each_setting_the_last_override_that_says_something_wins():
    overrides = [
        {"match": ".*", "learning_rate_scale": 0.0},
        {"match": "mixer/query$", "weight_decay": 0.3},
    ]
    config = AdamwConfig(
        overrides=[*overrides, {"match": "mixer/key$", "learning_rate_scale": 0.5}]
    )
    assert parameter_settings(config, "stack/0/0/mixer/key", "matrix") == (0.5, 0.1)
    assert parameter_settings(config, "stack/0/0/mixer/query", "matrix") == (0.0, 0.3)
    assert parameter_settings(config, "stack/0/0/mixer/query_bias", "bias") == (0.0, 0.0)


def test_what_a_layers_own_rule_moves_no_optimizer_moves():
    config = AdamwConfig(
        overrides=[{"match": ".*", "learning_rate_scale": 2.0, "weight_decay": 1.0}]
    )
    assert parameter_settings(config, "stack/0/0/ffn/router_bias", "state") == (0.0, 0.0)


def test_an_override_for_no_parameter_is_refused(model):
    overrides = [
        {"match": "mixer/qery$", "weight_decay": 0.3},
        {"match": "mixer/key$", "weight_decay": 0.3},
    ]
    with pytest.raises(ConfigError) as refused:
        check_overrides(AdamwConfig(overrides=overrides), model)
    (problem,) = refused.value.problems
    assert str(problem).startswith(
        "optimizer.overrides.0.match='mixer/qery$' matches no parameter; near it are "
    )
    assert "stack/0/0/mixer/query," in str(problem)


def test_two_updates_equal_the_formula(model):
    config = AdamwConfig(clip_norm=None, overrides=[{"match": "head", "learning_rate_scale": 0.25}])
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
            scale, decay = parameter_settings(config, path, role_of(parameter))
            adam = (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.95**count)) + 1e-8)
            want = scale * (adam + decay * np.asarray(parameter[...], np.float64))
            np.testing.assert_allclose(update[...], want, rtol=2e-4, atol=1e-6, err_msg=path)


def test_clipping_bounds_the_global_norm(model):
    one = map_parameters(lambda p: p.replace(jnp.ones(p.get_value().shape)), model)
    small = jax.tree.map(lambda x: 1e-3 * x, one)
    optimizer = build_optimizer(AdamwConfig(clip_norm=1e-2, weight_decay=0.0, epsilon=1.0), model)
    count = sum(x.size for x in jax.tree.leaves(one))
    update, _ = optimizer.update(small, optimizer.init(one), one)
    clipped = 1e-3 * min(1.0, 1e-2 / (1e-3 * np.sqrt(count)))
    np.testing.assert_allclose(
        jax.tree.leaves(update)[0].ravel()[0], clipped / (clipped + 1.0), rtol=1e-4
    )
