"""Parameters against published sizes, FLOPs against hand-computed values; presets are in
test_published_shapes.py.
"""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxlm.config.model import ModelConfig
from maxlm.models import cost
from maxlm.models.decoder import Decoder
from maxlm.sharding.parameters import parameter_count
from tests.small_models import model_settings


def build(**sizes):
    return ModelConfig.model_validate(model_settings(**sizes))


def llama3(num_layers, embed_dim, num_heads, mlp_dim, *, head_dim=128, tied=False):
    return build(
        vocab_size=128_256,
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        tie_embeddings=tied,
    )


QWEN3_600M = build(
    vocab_size=151_936,
    num_layers=28,
    embed_dim=1024,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=3072,
    pattern=[{"mixer": {"qk_norm": "rmsnorm"}}],
    tie_embeddings=True,
)
GPT2_124M = build(
    vocab_size=50_257,
    num_layers=12,
    embed_dim=768,
    num_heads=12,
    mlp_dim=3072,
    pattern=[{"mixer": {"bias": "all"}, "ffn": {"activation": "gelu_tanh", "bias": "all"}}],
    norm={"kind": "layernorm"},
    position={"kind": "learned", "max_length": 1024},
    tie_embeddings=True,
)
SIZES = {
    "vocab_size": 10,
    "num_layers": 2,
    "embed_dim": 4,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 3,
    "mlp_dim": 5,
}
TINY = build(**SIZES)


def with_block(**block):
    return build(**SIZES, pattern=[block])


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "published"),
    [
        (llama3(16, 2048, 32, 8192, head_dim=64, tied=True), 1_235_814_400),
        (llama3(32, 4096, 32, 14_336), 8_030_261_248),
        (llama3(80, 8192, 64, 28_672), 70_553_706_496),
        (llama3(126, 16_384, 128, 53_248), 405_853_388_800),
        (QWEN3_600M, 596_049_920),
        (GPT2_124M, 124_439_808),
    ],
    ids=[
        "llama-3.2-1b",
        "llama-3.1-8b",
        "llama-3.1-70b",
        "llama-3.1-405b",
        "qwen3-0.6b",
        "gpt2-124m",
    ],
)
def test_parameters_equal_the_published_count(model, published):
    assert cost.parameter_count(model) == published


MOE = {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "expert_dim": 7, "shared_dim": 3}
MIXED = build(
    **{**SIZES, "num_layers": 5},
    prefix=[{}],
    pattern=[{"ffn": {**MOE, "balance": {"bias_update": 0.1}}}, {}],
)


def test_mixture_by_part():
    # twice 4 experts and a shared one, a router with bias; three dense layers
    one, shared, router = 3 * 4 * 7, 3 * 4 * 3, 4 * 4
    assert (
        cost.parameter_parts(MIXED)["feed-forward"] == 2 * (4 * one + shared + router + 4) + 3 * 60
    )
    assert cost.active_parameter_count(MIXED) == cost.parameter_count(MIXED) - 2 * 2 * one
    assert cost.flops_parts(MIXED, 3)["feed-forward"] == 6 * (
        2 * (2 * one + shared + router) + 3 * 60
    )
    assert parameter_count(Decoder(MIXED)) == cost.parameter_count(MIXED)


def test_what_a_mixture_with_every_bias_has_more():
    biased = {"bias": "all", "shared_gate": True, "router": {"bias": True}}
    more = with_block(ffn={**MOE, **biased})
    plain = with_block(ffn=MOE)
    # a layer: 4 experts with up and gate biases of 7 and a down bias of 4, of which a token meets
    # two; the router's 4; the gate's 4
    added = 4 * (7 + 7 + 4) + 4 + 4
    assert cost.parameter_count(more) == cost.parameter_count(plain) + 2 * added
    active = cost.active_parameter_count(more) - cost.active_parameter_count(plain)
    assert active == 2 * (added - 2 * (7 + 7 + 4))
    # additions are no products; the gate's are
    assert cost.flops_per_token(more, 3) == cost.flops_per_token(plain, 3) + 2 * 6 * 4


def test_modules_for_further_tokens_are_a_part():
    """Two of a mixture like the stack's, a projection of 8 * 4, and three norms of 4 besides."""
    modules = ModelConfig.model_validate({**MIXED.model_dump(), "mtp": {"depth": 2, "block": {}}})
    block = modules.mtp.block
    assert block == modules.block
    one = ModelConfig.model_validate(
        {**MIXED.model_dump(exclude={"segments"}), "num_layers": 1, "segments": [{}]}
    )
    of_block = (
        sum(cost.parameter_parts(one)[part] for part in ("mixers", "feed-forward", "norms")) - 4
    )
    parts = cost.parameter_parts(modules)
    assert parts.pop("mtp") == 2 * (of_block + 8 * 4 + 3 * 4)
    assert parts == cost.parameter_parts(MIXED)
    assert parameter_count(Decoder(modules)) == cost.parameter_count(modules)
    flops, of_one = cost.flops_parts(modules, 3), cost.flops_parts(one, 3)
    again = sum(of_one[part] for part in ("mixers", "mixing", "feed-forward", "head"))
    assert flops.pop("mtp") == 2 * (again + 6 * 8 * 4)
    assert flops == cost.flops_parts(MIXED, 3)


def test_parameters_by_part():
    # per layer: q 4*6, k and v 4*3 each, out 6*4; gate, up, down 3*4*5; two norms of 4
    assert cost.parameter_parts(TINY) == {
        "embedding": 40,
        "mixers": 2 * (24 + 12 + 12 + 24),
        "feed-forward": 2 * 60,
        "norms": 2 * 8 + 4,
        "head": 40,
    }


@pytest.mark.parametrize(
    ("block", "extra_per_layer"),
    [
        ({"mixer": {"bias": "qkv"}}, 6 + 3 + 3),
        ({"mixer": {"bias": "all"}}, 6 + 3 + 3 + 4),
        ({"mixer": {"qk_norm": "rmsnorm"}}, 3 + 3),
        ({"mixer": {"sinks": True, "softcap": 30.0}}, 2),
        ({"mixer": {"window": 4}}, 0),
        ({"ffn": {"bias": "all"}}, 5 + 5 + 4),
        ({"ffn": {"activation": "geglu_tanh", "bias": "all"}}, 5 + 5 + 4),
        ({"ffn": {"activation": "swiglu_clamped"}}, 0),
        ({"norms": "post"}, 0),
        ({"norms": "sandwich"}, 2 * 4),
        ({"residual": "parallel"}, 0),
        ({"residual": "parallel_one_norm"}, -4),
        ({"residual": "parallel_one_norm", "ffn": {"kind": "none"}}, -60 - 4),
        ({"ffn": {"activation": "gelu_tanh"}}, -20),
        ({"ffn": {"activation": "relu", "bias": "all"}}, -20 + 5 + 4),
        ({"ffn": {"kind": "none"}}, -60 - 4),
        ({"mixer": {"kind": "none"}}, -72 - 4),
        (
            {
                "mixer": {
                    "kind": "parallel",
                    "mixers": [{"kind": "attention", "num_heads": 1, "head_dim": 3}] * 2,
                }
            },
            2 * 4 * 4 * 3 - 72,
        ),
    ],
)
def test_what_each_option_adds(block, extra_per_layer):
    assert (
        cost.parameter_count(with_block(**block))
        == cost.parameter_count(TINY) + 2 * extra_per_layer
    )


def test_pattern_is_repeated():
    four = {**SIZES, "num_layers": 4}
    mixed, gated = build(**four, pattern=[{}, {"ffn": {"activation": "gelu_tanh"}}]), build(**four)
    assert cost.parameter_count(mixed) == cost.parameter_count(gated) - 2 * 20


# --- FLOPs ----------------------------------------------------------------------------------------


def test_flops_by_part():
    # T = 3: queries see 1, 2, 3 keys, 2 on average; 12 * 2 heads * 3 per pair
    assert cost.flops_parts(TINY, 3) == {
        "mixers": 6 * 2 * 72,
        "mixing": 2 * 12 * 2 * 3 * 2,
        "feed-forward": 6 * 2 * 60,
        "head": 6 * 40,
    }
    assert cost.flops_per_token(TINY, 3) == sum(cost.flops_parts(TINY, 3).values())


SIZE = st.one_of(st.none(), st.integers(1, 60))


@given(st.integers(1, 40), SIZE, SIZE)
def test_attention_counts_each_visible_pair_once(length, window, chunk):
    model = with_block(mixer={"window": window, "chunk": chunk})
    pairs = sum(
        0 <= q - k < (window or length) and q // (chunk or length) == k // (chunk or length)
        for q, k in itertools.product(range(length), repeat=2)
    )
    scores = cost.flops_parts(model, length)["mixing"]
    assert scores * length == pytest.approx(2 * 12 * 2 * 3 * pairs)


def test_flops_are_six_per_weight_without_the_lookup():
    model = llama3(32, 4096, 32, 14_336)
    parts = cost.parameter_parts(model)
    weights = parts["mixers"] + parts["feed-forward"] + parts["head"]
    causal = 6 * 32 * 4096 * 8192  # 12 L D T, halved
    assert cost.flops_per_token(model, 8192) == pytest.approx(6 * weights + causal, rel=1e-4)


def test_tying_saves_parameters_but_no_flops():
    tied = TINY.model_copy(update={"tie_embeddings": True})
    assert cost.parameter_count(tied) == cost.parameter_count(TINY) - 40
    assert cost.flops_per_token(tied, 8) == cost.flops_per_token(TINY, 8)
