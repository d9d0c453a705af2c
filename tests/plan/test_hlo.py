"""Reading compiled programs: small ones written by hand with counted answers, and gradients
compiled for the CPU.
"""

import math

import jax
import pytest

from maxlm.models.cost import flops_per_token
from maxlm.plan.estimate import count_work
from maxlm.plan.hlo import collective_of, parse, product_flops, replica_groups, spanned_axes
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import batch_shapes, build_program
from tests.train.program import make_config

LOOPS = """HloModule loops, is_scheduled=true, num_partitions=4

%condition (p.0: (s32[], f32[8], s32[])) -> pred[] {
  %p.0 = (s32[]{:T(128)}, f32[8]{0}, s32[]) parameter(0)
  %i.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  %end.0 = s32[] get-tuple-element(%p.0), index=2
  ROOT %less = pred[] compare(%i.0, %end.0), direction=LT
}

%body (p.1: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
  %two = s32[] constant(2)
  %p.1 = (s32[], f32[8]{0}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %x.1 = f32[8]{0} get-tuple-element(%p.1), index=1
  %end.1 = s32[] get-tuple-element(%p.1), index=2
  %i.2 = s32[] copy(%i.1)
  %two.1 = s32[] copy(%two)
  %next = s32[] add(%i.2, %two.1)
  %y.1 = f32[8]{0} all-reduce(%x.1), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%sum
  ROOT %out.1 = (s32[], f32[8]{0}, s32[]) tuple(%next, %y.1, %end.1)
}

ENTRY %main (x: f32[8], n: s32[]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %n = s32[] parameter(1)
  %start = s32[] constant(1)
  %end = s32[] constant(8)
  %carry.1 = (s32[], f32[8]{0}, s32[]) tuple(%start, %x, %end)
  %loop.1 = (s32[], f32[8]{0}, s32[]) while(%carry.1), condition=%condition, body=%body
  %y = f32[8]{0} get-tuple-element(%loop.1), index=1
  %carry.2 = (s32[], f32[8]{0}, s32[]) tuple(%start, %y, %n)
  ROOT %loop.2 = (s32[], f32[8]{0}, s32[]) while(%carry.2), condition=%condition, body=%body
}
"""

# The matrix product of a (16, 32) and a (32, 4, 8), as the TPU's compiler writes it: one output
# position per tap of the window sees the input, the others see padding. Then the three fusions of a
# gather that runs behind it.
FUSIONS = """HloModule fusions, is_scheduled=true, num_partitions=4

%start_fused (a.0: bf16[2,8]) -> (bf16[2,8], bf16[8,8], u32[]) {
  %a.0 = bf16[2,8]{1,0} parameter(0)
  %gather.0 = bf16[8,8]{1,0} all-gather(%a.0), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %call.0 = (bf16[2,8], bf16[8,8], u32[]) custom-call(%gather.0), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (a.1: bf16[2,8], x.1: bf16[16,32,1], w.1: bf16[32,4,8]) -> bf16[16,4,8] {
  %a.1 = bf16[2,8]{1,0} parameter(0)
  %x.1 = bf16[16,32,1]{0,1,2} parameter(1)
  %w.1 = bf16[32,4,8]{0,2,1} parameter(2)
  %gather.1 = bf16[8,8]{1,0} all-gather(%a.1), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"24"}}
  ROOT %product = bf16[16,4,8]{0,2,1} convolution(%x.1, %w.1), window={size=4 pad=3_3 rhs_reversal=1}, \
dim_labels=bf0_i0o->b0f
}

%done_fused (a.2: bf16[2,8]) -> bf16[8,8] {
  %a.2 = bf16[2,8]{1,0} parameter(0)
  %gather.2 = bf16[8,8]{1,0} all-gather(%a.2), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %call.2 = bf16[8,8] custom-call(%a.2, %gather.2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[2,8], x: bf16[16,32,1], w: bf16[32,4,8]) -> bf16[8,8] {
  %a = bf16[2,8]{1,0} parameter(0)
  %x = bf16[16,32,1]{0,1,2} parameter(1)
  %w = bf16[32,4,8]{0,2,1} parameter(2)
  %started = (bf16[2,8], bf16[8,8], u32[]) fusion(%a), kind=kCustom, calls=%start_fused
  %work = bf16[16,4,8]{0,2,1} fusion(%a, %x, %w), kind=kOutput, calls=%async_collective_fusion.1, \
backend_config={"window_config":{"estimated_cycles":"1750000"}}
  ROOT %done = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%done_fused
}
"""


def test_loops_count_by_their_step_and_data_bounds_are_guessed():
    module = parse(LOOPS)
    main = module.computations[module.entry]
    assert module.trips(main["loop.1"], main) == 4  # 1, 3, 5, 7
    with pytest.raises(ValueError, match=r"loop\.2: n is no constant"):
        module.trips(main["loop.2"], main)
    times = [
        times
        for one, _, times in module.runs(lambda _loop, around: 10 * around)
        if one.op == "all-reduce"
    ]
    assert times == [4, 10]


def test_a_product_written_as_a_convolution_counts_what_meets():
    module = parse(FUSIONS)
    work = module.computations[module.entry]["work"]
    assert product_flops(module, work, {}) == 2 * 16 * 32 * 4 * 8


def test_a_dot_counts_its_contracted_dimensions():
    module = parse("""HloModule dots

%inner (x.0: f32[2,3,5], y.0: f32[2,5,7]) -> f32[2,3,7] {
  %x.0 = f32[2,3,5]{2,1,0} parameter(0)
  %y.0 = f32[2,5,7]{2,1,0} parameter(1)
  ROOT %dot = f32[2,3,7]{2,1,0} dot(%x.0, %y.0), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}
}

ENTRY %main (x: f32[2,3,5], y: f32[2,5,7]) -> f32[2,3,7] {
  %x = f32[2,3,5]{2,1,0} parameter(0)
  %y = f32[2,5,7]{2,1,0} parameter(1)
  ROOT %fused = f32[2,3,7]{2,1,0} fusion(%x, %y), kind=kOutput, calls=%inner
}
""")
    assert product_flops(module, module.computations["main"]["fused"], {}) == 2 * (2 * 3 * 7) * 5


@pytest.mark.parametrize("stated", [774, None])
def test_a_kernel_is_seen_though_its_first_result_is_small_and_its_line_breaks(stated):
    cost = f', backend_config={{"cost_estimate":{{"flops":"{stated}"}}}}' if stated else ""
    kernel = (
        "  %splash = (f32[2,8]{1,0}, bf16[2048,512]{1,0}) custom-call(%q), "
        'custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={\n'
        '"block_q": 512\n}}, metadata={op_name="mixer/splash"}' + cost
    )
    text = f"""HloModule kernel, num_partitions=1

ENTRY %main (q: bf16[2048,512]) -> bf16[2048,512] {{
  %q = bf16[2048,512]{{1,0}} parameter(0)
{kernel}
  ROOT %out = bf16[2048,512]{{1,0}} get-tuple-element(%splash), index=1
}}

FileNames
1 "here.py"
"""
    module = parse(text)
    assert list(module.computations["main"]) == ["q", "splash", "out"]
    assert module.computations["main"]["splash"].attribute(r'op_name="([^"]*)') == "mixer/splash"
    work = count_work(module, {"data": 1})
    assert (work.kernel_flops, work.unstated_kernels) == (stated or 0, not stated)


def test_a_gather_in_the_background_is_one_collective():
    module = parse(FUSIONS)
    main = module.computations[module.entry]
    start, middle, done = (
        collective_of(module, main[name], main) for name in ("started", "work", "done")
    )
    assert (start.kind, start.phase, start.bytes, start.wire_bytes) == (
        "all-gather",
        "start",
        128,
        96,
    )
    assert middle is None
    assert done.phase == "done"


def test_a_scatter_on_the_sparse_cores_runs_in_the_background():
    module = parse("""HloModule scatter, is_scheduled=true, num_partitions=4

%called (g.0: bf16[8,8]) -> bf16[2,8] {
  %g.0 = bf16[8,8]{1,0} parameter(0)
  ROOT %scatter = bf16[2,8]{1,0} reduce-scatter(%g.0), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (g: bf16[8,8]) -> bf16[2,8] {
  %g = bf16[8,8]{1,0} parameter(0)
  %start = ((bf16[8,8]{1,0}, token[]), bf16[2,8]{1,0}) call-start(%g), async_execution_thread="sparsecore", \
to_apply=%called
  ROOT %done = bf16[2,8]{1,0} call-done(%start)
}
""")
    assert module.computations["called"]["scatter"].attributes.endswith("dimensions={0}")
    main = module.computations[module.entry]
    start, done = (collective_of(module, main[name], main) for name in ("start", "done"))
    assert (start.kind, start.phase, start.bytes, start.wire_bytes) == (
        "reduce-scatter",
        "start",
        128,
        96,
    )
    assert done.phase == "done"


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x", ((0, 2), (1, 3))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
        ("replica_groups=[2,2]<=[4], x", ((0, 1), (2, 3))),
        ("replica_groups=[2,3]<=[3,2]T(1,0), x", ((0, 2, 4), (1, 3, 5))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4,'c'=1] {'a':(1)2}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=4,'b'=2] {'b','a':(2)2}, x", ((0, 2, 1, 3), (4, 6, 5, 7))),
        (
            "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b':(2)2}, x",
            ((0, 2), (4, 6), (1, 3), (5, 7)),
        ),
    ],
)
def test_groups_are_read_in_every_form(written, groups):
    assert replica_groups(f", channel_id=1, {written}") == groups


def test_an_unknown_form_of_groups_is_an_error():
    with pytest.raises(ValueError, match="unknown form"):
        replica_groups("replica_groups=all_of_them")


def test_axes_are_those_along_which_a_group_differs():
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    assert spanned_axes([(0, 2), (1, 3)], mesh) == ("fsdp",)
    assert spanned_axes([(0, 5)], mesh) == ("data", "tensor")


def compile_gradients(**sections):
    config = make_config(**sections)
    program = build_program(config, jax.devices()[: math.prod(config.mesh.sizes.values())])
    gradients = make_gradients(program.declared, program.mesh, program.execution)
    compiled = (
        jax.jit(gradients)
        .lower(program.state.decoder, batch_shapes(config, program.mesh))
        .compile()
    )
    return config, program, compiled


@pytest.mark.parametrize(("remat", "least", "most"), [("none", 1.0, 1.06), ("full", 1.24, 1.33)])
def test_products_of_a_step_are_what_theory_says(remat, least, most):
    """Full recomputation adds the forward pass, a third of 6 N, but for the head's."""
    model = {"num_layers": 8, "embed_dim": 64, "mlp_dim": 192, "vocab_size": 64, "head_dim": 8}
    config, program, compiled = compile_gradients(
        model=model, train={"remat": remat}, objective={"chunk_tokens": 128}
    )
    work = count_work(parse(compiled.as_text()), program.mesh_sizes.sizes)
    tokens = config.train.batch_size * config.data.sequence_length
    assert (
        least
        <= work.product_flops
        / (tokens * flops_per_token(config.model, config.data.sequence_length))
        <= most
    )
