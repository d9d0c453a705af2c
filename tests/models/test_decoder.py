"""The decoder's loss and its generated text against the second, plain implementation; every preset
built abstractly.
"""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from jax.sharding import NamedSharding

from maxlm.config import load_run
from maxlm.config.model import ModelConfig
from maxlm.config.optim import AdamwConfig
from maxlm.config.schema import MeshConfig
from maxlm.decoding.generate import Generator
from maxlm.decoding.sampling import Sampling, choose
from maxlm.decoding.weights import Weights
from maxlm.models import cost
from maxlm.models.decoder import Decoder
from maxlm.ops.attention import CHUNKED
from maxlm.optim import build_optimizer
from maxlm.sharding.mesh import build_mesh
from maxlm.sharding.parameters import (
    initialise,
    map_parameters,
    named_parameters,
    parameter_count,
    partition_specs,
    role_of,
)
from maxlm.sharding.stages import lay_out
from maxlm.train.loss.execution import build_execution
from maxlm.train.loss.gradients import make_gradients
from tests.models import reference
from tests.small_models import POSITIONS, model_settings, run_settings
from tests.train.program import make_batch

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPE = {
    "vocab_size": 64,
    "num_layers": 2,
    "embed_dim": 16,
    "num_heads": 4,
    "head_dim": 4,
    "mlp_dim": 24,
}
MOE = {"kind": "moe", "num_experts": 6, "experts_per_token": 2, "expert_dim": 8}
LATENT = {
    "kind": "mla",
    "num_heads": 4,
    "kv_rank": 8,
    "nope_dim": 6,
    "rope_dim": 4,
    "value_dim": 5,
    "position": {"layout": "interleaved"},
}
MODELS = {
    "llama": {"num_kv_heads": 2},
    "gpt2": {
        "position": {"kind": "learned", "max_length": 64},
        "norm": {"kind": "layernorm"},
        "pattern": [
            {
                "mixer": {"kind": "attention", "bias": "all"},
                "ffn": {"kind": "mlp", "activation": "gelu_tanh", "bias": "all"},
            }
        ],
        "tie_embeddings": True,
    },
    "one_layer_blocks": {
        "num_layers": 3,
        "pattern": [{"ffn": {"kind": "none"}}, {"mixer": {"kind": "none"}}, {}],
    },
    "positions": {
        "num_layers": 4,
        "num_kv_heads": 2,
        "position": {"kind": "sinusoidal"},
        "pattern": POSITIONS,
    },
    "latent": {
        "pattern": [{"mixer": LATENT | {"query_rank": 12}}, {"mixer": LATENT | {"scale": 0.7}}],
    },
    # every way of adding to the residual stream, every factor, and a cap on logits that matters
    "residuals": {
        "num_layers": 3,
        "norm": {"kind": "rmsnorm", "scale": "one_plus"},
        "embed_scale": 4.0,
        "residual_scale": 0.5,
        "logit_scale": 0.7,
        "logit_softcap": 2.0,
        "tie_embeddings": True,
        "pattern": [
            {
                "norms": "sandwich",
                "mixer": {"qk_norm": "rmsnorm"},
                "ffn": {"activation": "geglu_exact"},
            },
            {"norms": "post", "residual": "parallel", "ffn": {"activation": "relu2"}},
            {
                "norms": "sandwich",
                "residual": "parallel_one_norm",
                "ffn": {"activation": "swiglu_clamped", "bias": "all"},
            },
        ],
    },
    "side_by_side": {
        "num_layers": 3,
        "norm": {"kind": "layernorm", "scale": "one_plus"},
        "pattern": [
            {"residual": "parallel", "ffn": {"activation": "gelu_exact", "bias": "all"}},
            {"residual": "parallel_one_norm", "ffn": {"activation": "gelu_exact"}},
            {"residual": "parallel_one_norm", "norms": "sandwich", "mixer": {"kind": "none"}},
        ],
    },
    "further_tokens": {
        "num_layers": 1,
        "embed_scale": 2.0,
        "tie_embeddings": True,
        "mtp": {
            "depth": 2,
            "block": {
                "norms": "sandwich",
                "ffn": {**MOE, "balance": {"auxiliary_loss": 0.1, "bias_update": 0.01}},
            },
        },
    },
    "mixtures": {
        "pattern": [
            {
                "mixer": {"sinks": True, "bias": "all"},
                "ffn": {
                    **MOE,
                    "activation": "swiglu_clamped",
                    "bias": "all",
                    "router": {"bias": True},
                    "balance": {"auxiliary_loss": 0.1, "z_loss": 0.01},
                },
            },
            {
                "ffn": {
                    **MOE,
                    "shared_dim": 8,
                    "shared_gate": True,
                    "router": {
                        "num_groups": 3,
                        "top_groups": 2,
                        "group_score": "max",
                        "weights": "as_scored",
                        "scale": 3.0,
                    },
                    "balance": {"bias_update": 0.1},
                }
            },
        ],
    },
    "mixed": {
        "num_kv_heads": 1,
        "pattern": [
            {
                "mixer": {"kind": "attention", "window": 3, "qk_norm": "rmsnorm"},
                "ffn": {"kind": "mlp", "activation": "geglu_tanh"},
            },
            {
                "mixer": {"kind": "attention", "bias": "qkv"},
                "ffn": {"kind": "mlp", "activation": "relu"},
            },
        ],
    },
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return ModelConfig.model_validate(model_settings(**{**SHAPE, **MODELS[request.param]}))


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(MeshConfig(fsdp=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def decoder(model, mesh):
    """All parameters random, biases and scales too, and large enough to matter."""
    filled = initialise(Decoder(model), 0, mesh)
    key = jax.random.key(1)
    return map_parameters(
        lambda p: p.replace(p[...] + 0.3 * jax.random.normal(key, p[...].shape)), filled
    )


def test_loss_and_gradients_equal_the_plain_implementation(model, mesh, decoder):
    """Each array's gradient along one direction, against differences of the fp64 losses."""
    loss = {"z_loss": 1e-3, "label_smoothing": 0.1, "chunk_tokens": 24}
    config = run_settings(
        model.model_dump(), length=16, mesh={"fsdp": 1}, objective=loss, train={"batch_size": 2}
    )
    batch = make_batch(config, 0)
    about = {"compute_dtype": jnp.dtype("float32"), "kernels": {"attention": CHUNKED}}
    execution = build_execution(config, config.mesh, lay_out(model.repeats), **about)
    gradients, sums = jax.jit(make_gradients(Decoder(model), mesh, execution))(decoder, batch)
    weights = reference.weights_of(decoder)
    want, nats, *of_modules = reference.objective(model, weights, batch, config.objective)
    np.testing.assert_allclose(sums.objective, want, rtol=1e-5)
    np.testing.assert_allclose(sums.metrics["nats"], nats, rtol=1e-5)
    if model.mtp:
        np.testing.assert_allclose(sums.metrics["mtp_nats"], *of_modules, rtol=1e-5)
    assert (
        int(sums.metrics["target_bytes"]) == (batch["target_bytes"] * (batch["weights"] > 0)).sum()
    )
    got = {path: np.asarray(p[...], np.float64) for path, p in named_parameters(gradients)}
    largest = max(np.linalg.norm(gradient) for gradient in got.values())
    rng = np.random.default_rng(0)
    for path, values in weights.items():
        if role_of(dict(named_parameters(decoder))[path]) == "state":
            assert not got[path].any(), path
            continue
        direction = rng.normal(size=values.shape)
        direction /= np.linalg.norm(direction)

        def along(step, path=path, values=values, direction=direction):
            moved = {**weights, path: values + step * direction}
            return reference.objective(model, moved, batch, config.objective)[0]

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        # A direction may be one along which next to nothing changes.
        near = 1e-5 * max(np.linalg.norm(got[path]), 1e-3 * largest)
        np.testing.assert_allclose(
            np.vdot(got[path], direction), slope, rtol=1e-4, atol=near, err_msg=path
        )


@pytest.fixture(scope="module")
def generate(model, mesh, decoder):
    """generate(prompts, stop_ids=...) -> the likeliest tokens that follow, a list for each step."""
    generator = Generator(
        Weights(decoder, mesh), mesh, num_ids=model.vocab_size, compute_dtype=jnp.float32
    )
    return functools.partial(generator, max_tokens=6, sampling=Sampling(temperature=0.0))


def test_greedy_text_is_what_whole_sequences_give(decoder, generate):
    prompt = [1, 5, 9, 33, 7]
    tokens = generate([prompt], stop_ids=())
    sequence = list(prompt)
    for (token,) in tokens:
        whole = np.asarray([sequence])
        logits = reference.logits(
            decoder, whole, np.ones_like(whole), np.arange(len(sequence))[None], length=11
        )
        assert token == logits[0, -1].argmax()
        sequence.append(token)
    assert len(sequence) == 11


def test_generation_ends_at_the_stop_token(generate):
    (first,) = next(generate([[1, 2]], stop_ids=()))
    assert list(generate([[1, 2]], stop_ids={first})) == []


def test_top_k_and_top_p_never_choose_what_they_exclude():
    logits = jnp.log(jnp.asarray([[0.4, 0.3, 0.2, 0.1]]))
    keys = jax.random.split(jax.random.key(0), 200)

    def chosen(**sampling):
        return {
            int(choose(logits, key, Sampling(1.0, **sampling), logits.shape[1])[0]) for key in keys
        }

    assert chosen() == {0, 1, 2, 3}
    assert chosen(top_k=2) == {0, 1}
    assert chosen(top_p=0.65) == {0, 1}
    assert chosen(top_p=0.01) == {0}


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_every_preset_builds(path, tmp_path):
    """Without memory: parameters counted, every array's layout checked against the preset's mesh."""
    overrides = []
    kind = path.relative_to(CONFIGS).parts[0]
    if kind != "run":
        if kind != "model":
            pytest.skip("not a model; its values are validated by tests/config/test_presets.py")
        base = {"include": str(path), "run_dir": "x", "train": {"num_steps": 10, "batch_size": 8}}
        data = {"sources": {"x": {"path": "x"}}, "tokenizer": "x", "sequence_length": 16}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**base, "data": data}))
    config = load_run(path, overrides).config
    declared = Decoder(config.model)
    assert parameter_count(declared) == cost.parameter_count(config.model)
    sizes = {
        axis: max(size, 1)
        for axis, size in config.mesh.model_dump().items()
        if isinstance(size, int)
    }
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    for (name, parameter), spec in zip(
        named_parameters(declared), jax.tree.leaves(partition_specs(declared)), strict=True
    ):
        shape = parameter.get_value().shape
        # Raises where a dimension does not divide.
        assert NamedSharding(mesh, spec).shard_shape(shape), name
    jax.eval_shape(build_optimizer(AdamwConfig(), declared).init, declared)


def test_initial_values_depend_on_path_and_layer_alone(mesh):
    small = ModelConfig.model_validate(model_settings(**SHAPE))
    deep = ModelConfig.model_validate(model_settings(**{**SHAPE, "num_layers": 4}))
    apart = small.model_copy(
        update={"segments": tuple(small.segments[0].model_copy(update={"repeat": 1}) for _ in "ab")}
    )
    eight = build_mesh(MeshConfig(fsdp=2, tensor=4), jax.devices())
    one = dict(named_parameters(initialise(Decoder(small), 3, mesh)))
    sharded = dict(named_parameters(initialise(Decoder(small), 3, eight)))
    longer = dict(named_parameters(initialise(Decoder(deep), 3, mesh)))
    for path in one:
        np.testing.assert_array_equal(one[path][...], sharded[path][...], err_msg=path)
    np.testing.assert_array_equal(
        one["stack/0/0/mixer/query"][...], longer["stack/0/0/mixer/query"][...][:2]
    )
    # however the layers are written as segments
    parts = dict(named_parameters(initialise(Decoder(apart), 3, mesh)))
    for layer in range(2):
        np.testing.assert_array_equal(
            one["stack/0/0/ffn/up"][layer], parts[f"stack/{layer}/0/ffn/up"][0]
        )
    values = [
        np.asarray(one[path][...]) for path in ("stack/0/0/mixer/key", "stack/0/0/mixer/value")
    ]
    for first, second in itertools.combinations([*values[0], *values[1]], 2):
        assert not np.array_equal(first, second)
