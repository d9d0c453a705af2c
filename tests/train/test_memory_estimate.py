"""The estimate of a step's memory: exact where it can be, near the compiler's figure in sum."""

import math

import jax
import pytest

from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import CPU_UNROLL, batch_shapes, build_program
from tests.small_models import model_settings, run_settings

SIZES = {
    "vocab_size": 12,
    "num_layers": 2,
    "embed_dim": 4,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 2,
    "mlp_dim": 8,
}
MOE = {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "expert_dim": 8}
EXPERTS = {**MOE, "num_experts": 8, "expert_dim": 192}
# Of a block; of its norms; of the rest.
WEIGHTS, NORMS, OUTSIDE = 4 * 4 * 8 + 3 * 4 * 8, 2 * 4, 2 * 48 + 4


def estimate(*, mesh=None, objective=None, model=None, length=8, **train):
    """Return (config, program, estimate) of a small fp32 run."""
    settings = model_settings(**{**SIZES, **(model or {})})
    sections = {"mesh": {"fsdp": 1, **(mesh or {})}, "objective": objective or {}}
    config = run_settings(
        settings, length=length, train={"compute_dtype": "float32", **train}, **sections
    )
    program = build_program(config, jax.devices()[: math.prod(config.mesh.sizes.values())])
    return config, program, program.memory_per_device(config)


def test_one_device_by_hand():
    memory = estimate(remat="full")[2]
    block = WEIGHTS + NORMS
    parameters = 2 * block + OUTSIDE
    assert memory["parameters"] == 4 * parameters
    assert memory["optimizer"] == 8 * parameters + 4  # Adam's own count of steps
    assert memory["gradients"] == 4 * (2 * parameters + block)
    assert memory["gathered weights"] == 4 * (block + OUTSIDE)
    assert memory["logits"] == 2 * 4 * (4 * 8) * 12


def test_a_module_is_gathered_as_a_block_is():
    plain, more = (estimate(remat="full", model={"mtp": mtp})[2] for mtp in (None, {"depth": 1}))
    module = WEIGHTS + NORMS + 2 * 4 * 4 + 3 * 4
    assert more["parameters"] == plain["parameters"] + 4 * module
    assert more["gathered weights"] == 4 * (module + OUTSIDE)
    # kept besides: a hidden state and an embedding of 32 tokens
    assert more["activations"] >= plain["activations"] + 4 * 2 * 4 * 32


def test_experts_stay_where_they_are():
    one, two = (
        estimate(model={"pattern": [{"ffn": MOE}]}, mesh={"expert": size})[2] for size in (1, 2)
    )
    assert one["parameters"] == 2 * two["parameters"]
    # of a gathered block, two of four experts
    assert one["gathered weights"] - two["gathered weights"] == 4 * 2 * 3 * 4 * 8


@pytest.mark.parametrize(
    ("remat", "more", "mesh", "off"),
    [
        ("none", {}, {}, 0.15),
        ("full", {}, {}, 0.15),
        # the compiler lets go of most of the block that it computes again while it goes backward
        # through it
        ({"mlp_hidden": "save", "mlp_gate": "save"}, {}, {"fsdp": 2}, 0.3),
        ("none", {"pattern": [{"ffn": EXPERTS}]}, {"expert": 4}, 0.15),
    ],
    ids=["none", "full", "named", "experts"],
)
def test_near_the_compilers_figure(remat, more, mesh, off):
    sizes = {
        "vocab_size": 512,
        "num_layers": CPU_UNROLL + 1,  # unrolled they take less, on a CPU alone
        "embed_dim": 128,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
    }
    model = {**sizes, "mlp_dim": 384, **more}
    config, program, memory = estimate(
        model=model,
        mesh=mesh,
        length=64,
        remat=remat,
        batch_size=64,
        objective={"chunk_tokens": 256},
    )
    gradients = jax.jit(make_gradients(program.declared, program.mesh, program.execution))
    compiled = gradients.lower(program.state.decoder, batch_shapes(config, program.mesh)).compile()
    temporary = sum(memory.values()) - memory["parameters"] - memory["optimizer"]
    # the gradient that comes out is a result, not temporary
    analysis = compiled.memory_analysis()
    measured = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    assert temporary == pytest.approx(measured, rel=off)


def test_what_is_kept_by_name_is_added():
    names = {"query": "save", "mlp_hidden": "save"}
    full, named, everything = (
        estimate(remat=remat)[2]["activations"] for remat in ("full", names, "none")
    )
    # Of both layers, a token's 4 heads of 2 and its 8 hidden units.
    assert named - full == 2 * 4 * 32 * (8 + 8)
    assert full < named < everything


def test_what_is_offloaded_is_not_on_the_device():
    offloaded = estimate(remat="full", offload=["optimizer"])[2]
    assert offloaded["optimizer"] == 4
    assert offloaded["activations"] == estimate(remat="full")[2]["activations"]


@pytest.mark.parametrize("axis", ["fsdp", "expert", "context", "tensor"])
def test_sharding_axes_divide_parameters_and_activations(axis):
    one, four = estimate()[2], estimate(mesh={axis: 4})[2]
    # norms are whole on each tensor device
    whole = 4 * (2 * NORMS + 4) * (3 if axis == "tensor" else 0)
    assert four["parameters"] * 4 == one["parameters"] + whole
    assert four["activations"] < one["activations"]


def test_data_replicates_parameters_and_splits_activations():
    one, four = estimate()[2], estimate(mesh={"data": 4})[2]
    assert four["parameters"] == one["parameters"]
    assert four["activations"] * 4 == pytest.approx(one["activations"], rel=0.01)


def test_microbatches_divide_activations():
    four, one = estimate(microbatches=4)[2], estimate()[2]
    assert four["activations"] * 4 == pytest.approx(one["activations"], rel=0.01)


def test_gathering_less_often_costs_memory():
    layer, microbatch, step = (
        estimate(gather=gather, mesh={"fsdp": 4}, compute_dtype="bfloat16")[2]
        for gather in ("layer", "microbatch", "step")
    )
    parameters = 2 * (WEIGHTS + NORMS) + OUTSIDE
    assert (
        layer["gathered weights"]
        < microbatch["gathered weights"]
        == step["gathered weights"]
        == 2 * parameters
    )
    shards = 2 * parameters  # two fp32 ones, a quarter each
    assert layer["gradients"] < microbatch["gradients"] == shards + 2 * parameters
    assert step["gradients"] == shards + 4 * parameters


def test_rows_without_a_layer_take_their_bytes():
    three = {"num_layers": 3}
    even, uneven = (
        estimate(model=three)[2],
        estimate(model=three, mesh={"stage": 2}, microbatches=2)[2],
    )
    # two rows on each of two stages, one of them empty
    assert uneven["parameters"] == even["parameters"] - 4 * (WEIGHTS + NORMS)
    # so does a module, of which the last stage alone has one
    three["mtp"] = {"depth": 1}
    behind = estimate(model=three, mesh={"stage": 2}, microbatches=2)[2]
    module = WEIGHTS + NORMS + 2 * 4 * 4 + 3 * 4
    assert behind["parameters"] == uneven["parameters"] + 4 * module
    assert behind["activations"] > uneven["activations"]
