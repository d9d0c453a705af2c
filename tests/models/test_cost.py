"""Parameters against published sizes, FLOPs and bytes against hand-computed values."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxlm.config import load_run
from maxlm.config.schema import (
    AttentionConfig,
    BalanceConfig,
    BlockConfig,
    DataConfig,
    LearnedPosition,
    MeshConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    NormConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from maxlm.models import cost
from maxlm.models.decoder import Decoder
from maxlm.sharding.parameters import parameter_count
from maxlm.train.loss import make_gradients
from maxlm.train.setup import batch_shapes, build_program

PRESETS = sorted((Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))


def llama3(num_layers, embed_dim, num_heads, mlp_dim, *, head_dim=128, tied=False):
    return ModelConfig(
        vocab_size=128_256,
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        tie_embeddings=tied,
    )


QWEN3_600M = ModelConfig(
    vocab_size=151_936,
    num_layers=28,
    embed_dim=1024,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=3072,
    pattern=(BlockConfig(mixer=AttentionConfig(qk_norm="rmsnorm")),),
    tie_embeddings=True,
)
GPT2_124M = ModelConfig(
    vocab_size=50_257,
    num_layers=12,
    embed_dim=768,
    num_heads=12,
    mlp_dim=3072,
    pattern=(BlockConfig(mixer=AttentionConfig(bias="all"), ffn=MlpConfig(activation="gelu", bias="all")),),
    norm=NormConfig(kind="layernorm"),
    position=LearnedPosition(max_length=1024),
    tie_embeddings=True,
)
TINY = ModelConfig(vocab_size=10, num_layers=2, embed_dim=4, num_heads=2, num_kv_heads=1, head_dim=3, mlp_dim=5)


def with_block(model, **block):
    return model.model_copy(update={"pattern": (BlockConfig(**block),)})


def load_preset(name, tmp_path):
    run_file = tmp_path / "run.yaml"
    run_file.write_text(
        f"include: {PRESETS[0].parent / name}.yaml\nrun_dir: x\ntrain: {{num_steps: 1, batch_size: 1}}\n"
        "data: {sources: {a: {path: x}}, tokenizer: t, sequence_length: 8}\n"
    )
    return load_run(run_file).config.model


def run(model=TINY, **train):
    return RunConfig(
        run_dir="runs/x",
        model=model,
        data=DataConfig(sources={"a": SourceConfig(path="x")}, tokenizer="t", sequence_length=8),
        train=TrainConfig(num_steps=1, **{"batch_size": 4, "compute_dtype": "float32", **train}),
    )


# --- parameters ------------------------------------------------------------------------------------------------------


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
    ids=["llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "qwen3-0.6b", "gpt2-124m"],
)
def test_parameters_equal_the_published_count(model, published):
    assert cost.parameter_count(model) == published


@pytest.mark.parametrize(
    ("preset", "published", "active_billions"),
    [
        ("mixtral_8x7b", 46_702_792_704, 12.9),
        ("qwen3_30b_a3b", 30_532_122_624, 3.3),
        ("qwen3_235b_a22b", 235_093_634_560, 22),
        # 671,026,419,200 with latent attention: 187,107,328 per layer, where grouped-query attention has 249,561,088
        ("deepseek_v3", 671_026_419_200 + 61 * (249_561_088 - 187_107_328), 37 + 3.8),
    ],
)
def test_mixtures_have_the_published_shape(preset, published, active_billions, tmp_path):
    model = load_preset(preset, tmp_path)
    assert cost.parameter_count(model) == published
    assert cost.active_parameter_count(model) / 1e9 == pytest.approx(active_billions, rel=0.02)


MOE = MoeConfig(num_experts=4, experts_per_token=2, expert_dim=7, shared_dim=3, balance=BalanceConfig(bias_update=0.1))
MIXED = TINY.model_copy(
    update={"prefix": (BlockConfig(),), "pattern": (BlockConfig(ffn=MOE), BlockConfig()), "num_layers": 5}
)


def test_mixture_by_part():
    # twice 4 experts and a shared one, a router with bias; three dense layers
    one, shared, router = 3 * 4 * 7, 3 * 4 * 3, 4 * 4
    assert cost.parameter_parts(MIXED)["feed-forward"] == 2 * (4 * one + shared + router + 4) + 3 * 60
    assert cost.active_parameter_count(MIXED) == cost.parameter_count(MIXED) - 2 * 2 * one
    assert cost.flops_parts(MIXED, 3)["feed-forward"] == 6 * (2 * (2 * one + shared + router) + 3 * 60)
    assert parameter_count(Decoder(MIXED)) == cost.parameter_count(MIXED)


def test_experts_stay_where_they_are():
    config = run(with_block(TINY, ffn=MOE))
    one, two = (cost.memory_per_device(config, MeshConfig(fsdp=1, expert=size)) for size in (1, 2))
    assert one["parameters"] == 2 * two["parameters"]
    # of a gathered block, two of four experts
    assert one["gathered weights"] - two["gathered weights"] == 4 * 2 * 3 * 4 * 7


def test_capacity_bounds_the_rows():
    def activations(expert, **changes):
        model = with_block(TINY, ffn=MoeConfig(num_experts=4, experts_per_token=2, expert_dim=7, **changes))
        return cost.memory_per_device(run(model, batch_size=8), MeshConfig(fsdp=1, expert=expert))["activations"]

    # dropless on 4 devices: room for 4 copies of a token, where 2 are sent on average
    assert activations(4) * 4 > activations(1)
    assert activations(4, capacity_factor=1.0) * 4 == activations(1)


def test_parameters_by_part():
    # per layer: q 4*6, k and v 4*3 each, out 6*4; gate, up, down 3*4*5; two norms of 4
    assert cost.parameter_parts(TINY) == {
        "embedding": 40,
        "positions": 0,
        "attention": 2 * (24 + 12 + 12 + 24),
        "feed-forward": 2 * 60,
        "norms": 2 * 8 + 4,
        "head": 40,
    }


@pytest.mark.parametrize(
    ("block", "extra_per_layer"),
    [
        ({"mixer": AttentionConfig(bias="qkv")}, 6 + 3 + 3),
        ({"mixer": AttentionConfig(bias="all")}, 6 + 3 + 3 + 4),
        ({"mixer": AttentionConfig(qk_norm="rmsnorm")}, 3 + 3),
        ({"mixer": AttentionConfig(sinks=True, softcap=30.0)}, 2),
        ({"mixer": AttentionConfig(window=4)}, 0),
        ({"ffn": MlpConfig(bias="all")}, 5 + 5 + 4),
        ({"ffn": MlpConfig(activation="geglu", bias="all")}, 5 + 5 + 4),
        ({"ffn": MlpConfig(activation="gelu")}, -20),
        ({"ffn": MlpConfig(activation="relu", bias="all")}, -20 + 5 + 4),
    ],
)
def test_what_each_option_adds(block, extra_per_layer):
    assert cost.parameter_count(with_block(TINY, **block)) == cost.parameter_count(TINY) + 2 * extra_per_layer


def test_pattern_is_repeated():
    pattern = (BlockConfig(), BlockConfig(ffn=MlpConfig(activation="gelu")))
    mixed = TINY.model_copy(update={"pattern": pattern, "num_layers": 4})
    gated = TINY.model_copy(update={"num_layers": 4})
    assert cost.parameter_count(mixed) == cost.parameter_count(gated) - 2 * 20


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_have_the_size_their_header_says(preset, tmp_path):
    model = load_preset(preset.stem, tmp_path)
    stated = re.search(r"([0-9,]{6,}) parameters", preset.read_text(encoding="utf-8"))
    assert stated, "the header of a model preset states the number of parameters"
    assert f"{cost.parameter_count(model):,}" == stated[1]
    active = re.search(r"([0-9,]{6,}) active", preset.read_text(encoding="utf-8"))
    assert f"{cost.active_parameter_count(model):,}" == (active or stated)[1]


def test_there_are_presets():
    assert len(PRESETS) >= 7


# --- FLOPs -----------------------------------------------------------------------------------------------------------


def test_flops_by_part():
    # T = 3: queries see 1, 2, 3 keys, 2 on average; 12 * 2 heads * 3 per pair
    assert cost.flops_parts(TINY, 3) == {
        "attention projections": 6 * 2 * 72,
        "attention scores": 2 * 12 * 2 * 3 * 2,
        "feed-forward": 6 * 2 * 60,
        "head": 6 * 40,
    }
    assert cost.flops_per_token(TINY, 3) == sum(cost.flops_parts(TINY, 3).values())


@given(st.integers(1, 40), st.one_of(st.none(), st.integers(1, 60)))
def test_attention_counts_each_visible_pair_once(length, window):
    model = with_block(TINY, mixer=AttentionConfig(window=window))
    distances = (q - k for q, k in itertools.product(range(length), repeat=2))
    pairs = sum(0 <= distance < (window or length) for distance in distances)
    scores = cost.flops_parts(model, length)["attention scores"]
    assert scores * length == pytest.approx(2 * 12 * 2 * 3 * pairs)


def test_flops_are_six_per_weight_without_the_lookup():
    model = llama3(32, 4096, 32, 14_336)
    parts = cost.parameter_parts(model)
    weights = parts["attention"] + parts["feed-forward"] + parts["head"]
    causal = 6 * 32 * 4096 * 8192  # 12 L D T, halved
    assert cost.flops_per_token(model, 8192) == pytest.approx(6 * weights + causal, rel=1e-4)


def test_tying_saves_parameters_but_no_flops():
    tied = TINY.model_copy(update={"tie_embeddings": True})
    assert cost.parameter_count(tied) == cost.parameter_count(TINY) - 40
    assert cost.flops_per_token(tied, 8) == cost.flops_per_token(TINY, 8)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_on_one_device():
    memory = cost.memory_per_device(run(remat="full"), MeshConfig(fsdp=1))
    parameters, block = 364, (284 - 20) // 2 + 10  # 284 in the stack: two blocks of 132 and five norms of 4
    assert memory["parameters"] == 4 * parameters
    assert memory["optimizer"] == 8 * parameters
    assert memory["gradients"] == 4 * (2 * parameters + block)
    assert memory["gathered weights"] == 4 * (block + 80)
    # a token keeps 4 per layer, and 1.5 blocks of norms 2 * 2 * 4, their results 8, q 6, k 3, v 3, out 6, lse 2, 6 * 5
    assert memory["activations"] == 4 * (4 * 8) * (2 * 4 + 1.5 * 74)
    assert memory["logits"] == 2 * 4 * (4 * 8) * 10


EXPERTS = MoeConfig(num_experts=8, experts_per_token=2, expert_dim=192)


@pytest.mark.parametrize(
    ("remat", "ffn", "expert"), [("none", MlpConfig(), 1), ("full", MlpConfig(), 1), ("none", EXPERTS, 4)]
)
def test_memory_is_near_the_compilers_figure(remat, ffn, expert):
    model = ModelConfig(vocab_size=512, num_layers=4, embed_dim=128, num_heads=4, num_kv_heads=2, mlp_dim=384)
    config = run(with_block(model, ffn=ffn), remat=remat, loss_chunk_tokens=256, batch_size=64)
    data = config.data.model_copy(update={"sequence_length": 64})
    config = config.model_copy(update={"data": data, "mesh": MeshConfig(fsdp=1, expert=expert)})
    program = build_program(config, jax.devices("cpu")[:expert])
    gradients = jax.jit(make_gradients(program.declared, program.mesh, program.how))
    compiled = gradients.lower(program.state.decoder, batch_shapes(config, program.mesh)).compile()
    memory = cost.memory_per_device(config, program.mesh_sizes)
    temporary = sum(memory.values()) - memory["parameters"] - memory["optimizer"]
    # the gradient that comes out is a result, not temporary
    analysis = compiled.memory_analysis()
    measured = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    assert temporary == pytest.approx(measured, rel=0.15)


def test_remat_orders_activations():
    kept = {}
    names = {"query": "save", "mlp_hidden": "save", "key": "offload"}
    for name, remat in {"full": "full", "names": names, "none": "none"}.items():
        kept[name] = cost.memory_per_device(run(remat=remat), MeshConfig(fsdp=1))["activations"]
    assert kept["names"] - kept["full"] == 4 * 32 * 2 * (6 + 5)
    assert kept["none"] == 4 * 32 * 3.5 * 74
    assert kept["full"] < kept["names"] < kept["none"]


def test_what_is_offloaded_is_not_on_the_device():
    memory = cost.memory_per_device(run(remat="full", offload=["optimizer", "activations"]), MeshConfig(fsdp=1))
    assert memory["optimizer"] == 0
    assert memory["activations"] == 4 * (4 * 8) * 1.5 * 74  # the block that the backward pass is in


@pytest.mark.parametrize(
    ("block", "floats"),
    [
        ({}, 74),
        ({"mixer": AttentionConfig(qk_norm="rmsnorm")}, 74 + 2 * 9),
        ({"ffn": MlpConfig(activation="relu")}, 74 - 5 * 5),
        ({"ffn": MlpConfig(activation="geglu")}, 74 + 2 * 5),
    ],
)
def test_what_a_block_keeps(block, floats):
    memory = cost.memory_per_device(run(with_block(TINY, **block), remat="none"), MeshConfig(fsdp=1))
    assert memory["activations"] == 4 * 32 * 3.5 * floats


@pytest.mark.parametrize("axis", ["fsdp", "expert", "context", "tensor"])
def test_sharding_axes_divide_parameters_and_optimizer(axis):
    one = cost.memory_per_device(run(), MeshConfig(fsdp=1))
    four = cost.memory_per_device(run(), MeshConfig(**{"fsdp": 1, axis: 4}))
    assert four["parameters"] * 4 == one["parameters"]
    assert four["optimizer"] * 4 == one["optimizer"]
    assert four["activations"] < one["activations"]


def test_data_axis_replicates_parameters_and_splits_activations():
    one = cost.memory_per_device(run(), MeshConfig(fsdp=1))
    four = cost.memory_per_device(run(), MeshConfig(fsdp=1, data=4))
    assert four["parameters"] == one["parameters"]
    assert four["activations"] * 4 == one["activations"]


def test_microbatches_divide_activations():
    one = cost.memory_per_device(run(), MeshConfig(fsdp=1))
    four = cost.memory_per_device(run(microbatches=4), MeshConfig(fsdp=1))
    assert four["activations"] * 4 == one["activations"]


def test_gathering_less_often_costs_memory():
    mesh = MeshConfig(fsdp=4)
    layer, microbatch, step = (
        cost.memory_per_device(run(gather=gather, compute_dtype="bfloat16"), mesh)
        for gather in ("layer", "microbatch", "step")
    )
    assert layer["gathered weights"] < microbatch["gathered weights"] == step["gathered weights"] == 2 * 364
    assert layer["gradients"] < microbatch["gradients"] == 2 * 364 + 2 * 364 < step["gradients"] == 2 * 364 + 4 * 364


def test_compute_dtype():
    def activations(**settings):
        return cost.memory_per_device(run(**settings), MeshConfig(fsdp=1))["activations"]

    # norms (16) and lse (2) stay fp32
    assert activations(compute_dtype="float32") == 4 * 32 * 3.5 * (56 + 18)
    assert activations(compute_dtype="bfloat16") == 32 * 3.5 * (2 * 56 + 4 * 18)
    assert activations(compute_dtype="auto") == activations(compute_dtype="bfloat16")
    auto = cost.memory_per_device(run(compute_dtype="auto"), MeshConfig(fsdp=1), compute_bytes=4)
    assert auto["activations"] == activations(compute_dtype="float32")


def test_cost_imports_no_jax():
    code = "import sys, maxlm.models.cost; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
