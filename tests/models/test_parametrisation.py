"""Maximal update parametrisation against the table of the paper, written out by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.checks import find_problems
from maxlm.config.model import ModelConfig
from maxlm.config.optim.adamw import AdamwConfig
from maxlm.config.schema import MeshConfig, RunConfig
from maxlm.models.decoder import Decoder, logit_rule_of
from maxlm.models.parametrisation import as_standard
from maxlm.models.width import at_width
from maxlm.optim import build_optimizer
from maxlm.sharding.mesh import build_mesh
from maxlm.sharding.parameters import (
    initialise,
    map_parameters,
    named_parameters,
    role_of,
    widths_of,
)
from tests.small_models import run_settings

STD, LAYERS, VOCAB = 0.02, 2, 64


def model_of(width: int, base: int | None = None, **more: Any) -> ModelConfig:
    """Return a plain transformer with heads of 16; `base`: the base width of muP."""
    block = {
        "mixer": {"kind": "attention", "num_heads": width // 16, "head_dim": 16, "bias": "all"},
        "ffn": {"kind": "mlp", "hidden_dim": 4 * width, "activation": "gelu_exact", "bias": "all"},
    }
    settings = {"vocab_size": VOCAB, "num_layers": LAYERS, "embed_dim": width, "block": block}
    if base:
        settings["parametrisation"] = {"kind": "mup", "base_width": base}
    return ModelConfig.model_validate({**settings, "init_std": STD, **more})


def in_block(path: str) -> str:
    return path.split("/", 3)[3] if path.startswith("stack") else path


def stds_and_rates(model: ModelConfig) -> dict[str, tuple[float, float]]:
    """Return, by the parameter's name in its block, its initial std and the factor on its rate."""
    found = {}
    for path, declared in named_parameters(Decoder(model)):
        widths = widths_of(declared)
        assert widths is not None
        std = getattr(declared.get_metadata("init"), "std", 0.0)
        found[in_block(path)] = (std, AdamwConfig().width_rate(role_of(declared), *widths))
    return found


def moved(
    model: ModelConfig, config: AdamwConfig, value: float, gradient: float
) -> dict[str, float]:
    """Return how far the first step at a learning rate of 1 moves an entry of each parameter, all
    of which have one value and one gradient.
    """
    decoder = Decoder(model)

    def filled_with(one: float) -> Any:
        return map_parameters(lambda p: p.replace(jnp.full(p.get_value().shape, one)), decoder)

    def first_moves() -> Any:
        gradients, values = filled_with(gradient), filled_with(value)
        optimizer = build_optimizer(config, decoder)
        moves, _ = optimizer.update(gradients, optimizer.init(values), values)
        return map_parameters(lambda p: p.replace(p.get_value().ravel()[0]), moves)

    moves = jax.jit(first_moves)()
    return {in_block(path): float(move.get_value()) for path, move in named_parameters(moves)}


def test_rules_are_those_of_table_8():
    """Yang et al. 2022, table 8: input weights and biases, output weights, hidden weights; variance
    over fan-in relative to the base's, multiplier, Adam's rate. In float64, from sizes alone.
    """
    width, base = 128, 32
    found = stds_and_rates(model_of(width, base))
    base_fan_in = {"mixer/query": 32, "mixer/key": 32, "mixer/value": 32, "mixer/out": 2 * 16}
    base_fan_in |= {"ffn/up": 32, "ffn/down": 4 * 32}
    fan_in = {"mixer/query": 128, "mixer/key": 128, "mixer/value": 128, "mixer/out": 8 * 16}
    fan_in |= {"ffn/up": 128, "ffn/down": 4 * 128}
    for name in base_fan_in:
        residual = (2 * LAYERS) ** -0.5 if name in ("mixer/out", "ffn/down") else 1.0
        variance = (STD * residual) ** 2 * base_fan_in[name] / fan_in[name]  # 1 / fan_in
        rate = np.float64(base_fan_in[name]) / fan_in[name]  # 1 / fan_in
        np.testing.assert_allclose(found[name], (variance**0.5, rate), rtol=1e-6)
    # Input and output weights: variance and Adam's rate do not know the width ...
    moves = moved(model_of(width, base), AdamwConfig(weight_decay=0.0, epsilon=1e-30), 0.0, 7.0)
    for name, (_, rate) in found.items():
        assert moves[name] == pytest.approx(rate, rel=1e-5), name
    for name in base_fan_in:
        found.pop(name)
    assert found.pop("embedding/tokens") == (STD, 1.0)
    assert found.pop("head/output") == (STD, 1.0)
    # ... nor do vectors; what is left are these.
    assert {rate for _, rate in found.values()} == {1.0}
    assert all("norm" in name or "bias" in name for name in found)
    # Output multiplier: 1 / fan_in.
    assert logit_rule_of(model_of(width, base)).scale == base / width


def test_a_draw_has_the_std_that_is_declared():
    mesh = build_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    drawn = dict(named_parameters(initialise(Decoder(model_of(128, 32)), 0, mesh)))
    query = np.asarray(drawn["stack/0/0/mixer/query"].get_value(), np.float64)
    assert query.std() == pytest.approx(STD / 2, rel=0.02)


def test_at_the_base_width_no_bit_differs():
    mesh = build_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    standard, mup = model_of(32), model_of(32, 32)
    plain, scaled = (initialise(Decoder(model), 0, mesh) for model in (standard, mup))
    for (path, a), (_, b) in zip(named_parameters(plain), named_parameters(scaled), strict=True):
        np.testing.assert_array_equal(a.get_value(), b.get_value(), err_msg=path)
    config = AdamwConfig(weight_decay=0.3)
    assert moved(standard, config, 0.1, 0.7) == moved(mup, config, 0.1, 0.7)
    assert logit_rule_of(mup) == logit_rule_of(standard)
    assert mup.score_scale(16) is None


MLA = {"kind": "mla", "num_heads": 4, "kv_rank": 8, "nope_dim": 8, "rope_dim": 4, "value_dim": 8}
MOE = {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "expert_dim": 64}
HALF, QUARTER = (STD / 2, 0.25), (STD / 4, 0.25)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (
            {"mixer": {**MLA, "query_rank": 8}},
            {
                # From the width to a latent: hidden; from a latent: as from an input.
                **dict.fromkeys(("query_down", "kv_down", "key_rope"), HALF),
                **dict.fromkeys(("query_up", "key_up", "value_up"), (STD, 1.0)),
                "out": (STD / 4, 0.25),  # 1 / sqrt(2 x 2 layers) besides
            },
        ),
        (
            {"ffn": {**MOE, "shared_dim": 64, "shared_gate": True}},
            {
                "router": QUARTER,
                "shared_gate": QUARTER,
                **dict.fromkeys(("up", "gate", "shared/up", "shared/gate"), HALF),
                **dict.fromkeys(("down", "shared/down"), (STD / 4, 0.25)),
            },
        ),
        (
            {"mixer": {"kind": "attention", "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}},
            {"query": HALF, "key": HALF, "value": HALF, "out": (STD / 4, 0.25)},
        ),
        (
            {
                "mixer": {
                    "kind": "parallel",
                    "mixers": [{"kind": "attention", "num_heads": 4, "head_dim": 8}, MLA],
                }
            },
            {"mixers/0/query": HALF, "mixers/1/key_up": (STD, 1.0), "mixers/1/query": HALF},
        ),
    ],
)
def test_every_kind_of_layer_follows_its_width_marks(layers: Any, expected: Any):
    block = model_of(64).block.model_dump()
    settings = model_of(64, 16, mtp={"depth": 1}).model_dump(exclude={"segments", "mtp", "block"})
    model = ModelConfig.model_validate(
        {**settings, "block": {**block, **layers}, "mtp": {"depth": 1}}
    )
    found = stds_and_rates(model)
    part = next(iter(layers))
    for name, values in expected.items():
        np.testing.assert_allclose(found[f"{part}/{name}"], values, rtol=1e-6, err_msg=name)
        behind = found[f"mtp/0/block/{part}/{name}"]
        np.testing.assert_allclose(behind, values, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["mtp/0/project"], HALF, rtol=1e-6)


def test_decay_does_not_follow_the_width():
    moves = moved(model_of(128, 32), AdamwConfig(weight_decay=0.5), 2.0, 0.0)
    assert moves["mixer/query"] == moves["head/output"] == 1.0


def test_heads_of_another_size_are_scored_by_their_size():
    """Products of keys and queries are divided by d, not by its root: alike at the base's d."""
    how = {"kind": "mup", "base_width": 32, "base_head_dim": 8}
    model = model_of(64, parametrisation=how)
    assert model.score_scale(16) == pytest.approx(8**0.5 / 16)
    attention = Decoder(model).stack[0][0].mixer
    assert attention.scale == model.score_scale(16)


def test_the_standard_model_that_computes_the_same():
    how = {"kind": "mup", "base_width": 32, "base_head_dim": 8}
    model = model_of(64, parametrisation=how, logit_scale=3.0)
    standard = as_standard(model)
    assert standard.parametrisation.kind == "standard"
    assert logit_rule_of(standard) == logit_rule_of(model)
    for block in (standard.block, *standard.layers):
        assert block.mixer.scale == model.score_scale(16)
    assert as_standard(model_of(64, 32)).layers[0].mixer.scale is None


def test_widths_behind_the_stack_follow_too():
    model = model_of(32, mtp={"depth": 1})
    wide = ModelConfig.model_validate(at_width(model, 64))
    assert wide.mtp is not None
    assert wide.mtp.block.mixer.num_heads == wide.block.mixer.num_heads == 4
    assert wide.mtp.block.ffn.hidden_dim == wide.block.ffn.hidden_dim == 256


def test_an_optimizer_without_a_rule_is_refused(monkeypatch: pytest.MonkeyPatch):
    run = run_settings(model_of(32, 32).model_dump())
    sections = {name: getattr(run, name) for name in RunConfig.model_fields}
    assert not find_problems(sections)
    monkeypatch.setattr(AdamwConfig, "width_rate", lambda *arguments: None)
    (problem,) = find_problems(sections)
    assert "has no rule for optimizer.kind=adamw; use optimizer.kind=adamw" in problem.text
