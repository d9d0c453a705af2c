"""What the compiled step communicates along fsdp, tensor, data and stage equals the formulas of the
docstrings.
"""

import math

import jax
import pytest

from maxlm.sharding.mesh import FSDP_AXES
from maxlm.sharding.parameters import named_parameters
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import batch_shapes, build_program
from tests.hlo import collectives, count
from tests.train.program import make_config

LAYERS, MICROBATCHES = 2, 4


def compile_gradients(mesh, layers=LAYERS, model=None, other_trips=None, **train):
    model = {"num_layers": layers, **(model or {})}
    config = make_config(model=model, mesh=mesh, train={"microbatches": MICROBATCHES, **train})
    program = build_program(config, jax.devices()[: math.prod(config.mesh.sizes.values())])
    gradients = make_gradients(program.declared, program.mesh, program.execution)
    compiled = (
        jax.jit(gradients)
        .lower(program.state.decoder, batch_shapes(config, program.mesh))
        .compile()
    )
    return program, collectives(compiled, program.mesh, other_trips=other_trips)


def moved(found, kind, axes):
    """Add up the bytes of what one device holds after collectives of a kind along the axes."""
    return sum(
        c.bytes * c.times for c in found if c.kind == kind and c.axes == axes and c.dtype == "f32"
    )


def whole_bytes(program):
    """Return the fp32 bytes of the parameters that `fsdp` splits: in the stack, and outside."""
    split = [
        (path, p)
        for path, p in named_parameters(program.declared)
        if FSDP_AXES in p.get_metadata("spec")
    ]
    sizes = [(path.startswith("stack/"), 4 * math.prod(p.get_value().shape)) for path, p in split]
    return sum(size for inside, size in sizes if inside), sum(
        size for inside, size in sizes if not inside
    )


@pytest.mark.parametrize("gather", ["layer", "microbatch", "step"])
def test_fsdp_gathers_and_scatters_what_the_setting_says(gather):
    program, found = compile_gradients({"fsdp": 4}, gather=gather)
    stack, outside = whole_bytes(program)
    # Of two norms a layer: kept for the backward pass.
    vectors = 4 * LAYERS * 2 * program.declared.model.embed_dim
    gathered = {
        "layer": MICROBATCHES * (2 * stack - vectors + outside),
        "microbatch": MICROBATCHES * (stack + outside),
        "step": stack + outside,
    }
    scatters = 1 if gather == "step" else MICROBATCHES
    assert moved(found, "all-gather", ("fsdp",)) == gathered[gather]
    assert moved(found, "reduce-scatter", ("fsdp",)) == scatters * (stack + outside) // 4


def test_data_sums_shards_once_a_step():
    program, found = compile_gradients({"data": 2, "fsdp": 2})
    parameters = 4 * sum(
        math.prod(p.get_value().shape) for _, p in named_parameters(program.declared)
    )
    reduced = moved(found, "all-reduce", ("data",))
    # And no more than a few scalars besides.
    assert parameters // 2 <= reduced <= parameters // 2 + 64


@pytest.mark.parametrize("gather", ["layer", "microbatch", "step"])
def test_stages_gather_and_scatter_in_every_tick(gather):
    mesh = {"fsdp": 2, "stage": 4}
    program, found = compile_gradients(mesh, layers=8, gather=gather, remat="full")
    stack, outside = whole_bytes(program)
    stack //= mesh["stage"]
    both, one_way = MICROBATCHES, mesh["stage"] - 1  # ticks
    # Layer by layer: once forward; in the backward tick again to recompute, and again to
    # differentiate.
    times = {"layer": 3 * (both + one_way), "microbatch": both + 2 * one_way, "step": 1}[gather]
    assert moved(found, "all-gather", ("fsdp",)) == times * stack + outside
    scatters = 1 if gather == "step" else both + one_way
    assert moved(found, "reduce-scatter", ("fsdp",)) == (scatters * stack + outside) // 2


def test_tensor_moves_activations_four_times_a_block_and_pass():
    _, found = compile_gradients({"tensor": 4})
    sequences, length, dim = 16 // MICROBATCHES, 16, 32
    # Two enters and two leaves a block; each pass has as many gathers as scatters. Embedding and
    # head are one more.
    passes = MICROBATCHES * (4 * LAYERS + 2)
    assert moved(found, "all-gather", ("tensor",)) == passes * sequences * length * dim * 4
    assert moved(found, "reduce-scatter", ("tensor",)) == passes * sequences * length * dim * 4 // 4


@pytest.mark.parametrize("further_rounds", [0, 2])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_experts_exchange_rows_twice_a_layer_and_pass(remat, further_rounds):
    devices, experts, choices, dim = 4, 8, 2, 32
    ffn = {"kind": "moe", "num_experts": experts, "experts_per_token": choices, "expert_dim": 16}
    # Room for an even load, or for all that can come: min(P A, E) / A times that.
    ffn["buffer_factor"] = 1.0 if further_rounds else 4.0
    model = {"pattern": [{"ffn": ffn}]}
    _, found = compile_gradients(
        {"expert": devices}, model=model, other_trips=further_rounds, remat=remat
    )
    found = [c for c in found if c.axes == ("expert",)]
    passes = MICROBATCHES * LAYERS
    copies = 16 * 16 // MICROBATCHES // devices * choices
    # Forward, backward, and the way there again where nothing is kept: what comes back is in no
    # gradient. A further round is run forward, and backward with the way there again.
    again = 1 if remat == "full" else 0
    moved_rows = [c for c in found if c.kind == "all-to-all" and c.bytes != devices * copies * 4]
    assert count(moved_rows) == passes * (4 + again + further_rounds * 5)
    assert {c.bytes for c in moved_rows} == {devices * copies * dim * 4}
    # Their weights go there alone.
    weights = [c for c in found if c.kind == "all-to-all" and c.bytes == devices * copies * 4]
    assert count(weights) == passes * (2 + again + further_rounds * 3)
    counts = [c for c in found if c.kind == "all-gather" and c.dtype == "s32"]
    assert count(counts) == passes * (2 if remat == "full" else 1)
    assert {c.bytes for c in counts} == {devices * experts * 4}


def test_stages_permute_once_a_direction_and_tick():
    _, found = compile_gradients({"stage": 4}, layers=4)
    # S - 1 ticks forward only, M of both, S - 1 backward only.
    assert count(found, kind="collective-permute", axes=("stage",)) == 3 + 2 * MICROBATCHES + 3


def test_each_axis_of_three_communicates_for_itself():
    program, found = compile_gradients({"data": 2, "fsdp": 2, "tensor": 2}, gather="step")
    # Bytes on a device, between gather and scatter and after.
    whole, shards = 0, {("data",): 0, ("data", "tensor"): 0}
    for _, parameter in named_parameters(program.declared):
        spec, size = parameter.get_metadata("spec"), 4 * math.prod(parameter.get_value().shape)
        assert FSDP_AXES in spec
        whole += size // 2 if "tensor" in spec else size
        # What `tensor` does not split has gradients from all its devices.
        shards["data",] += size // 4 if "tensor" in spec else 0
        shards["data", "tensor"] += 0 if "tensor" in spec else size // 2
    assert moved(found, "all-gather", ("fsdp",)) == whole
    assert moved(found, "reduce-scatter", ("fsdp",)) == whole // 2
    for axes, size in shards.items():
        assert size > 0
        assert moved(found, "all-reduce", axes) == size
    # Of the sequences that are worked on at a time.
    activations = 16 // MICROBATCHES // 4 * 16 * 32 * 4
    assert moved(found, "all-gather", ("tensor",)) == MICROBATCHES * (4 * LAYERS + 2) * activations
