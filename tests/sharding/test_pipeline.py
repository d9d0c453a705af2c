"""The schedule's formulas against its own tick table, and the memory and equality of what it runs."""

import itertools

import jax
import pytest

from maxlm.sharding.pipeline import Schedule
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import batch_shapes, build_program
from tests.train.program import assert_same, make_config, run

SIZES = [
    (s, v, m)
    for s, v in [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2), (3, 3)]
    for m in (s, 2 * s, 5 * s)
]
SIZES += [(4, 1, 1), (4, 1, 6)]  # fewer microbatches than stages, and no multiple of them


def tick_table(schedule):
    """Return {(microbatch, virtual stage): tick} of both directions, walking every stage through
    every tick.
    """
    ticks = schedule.warmup_ticks * 2 + schedule.steady_ticks
    forward, backward = {}, {}
    for tick, stage in itertools.product(range(ticks), range(schedule.stages)):
        for work, table in (
            (schedule.forward(tick, stage), forward),
            (schedule.backward(tick, stage), backward),
        ):
            if work.valid:
                key = (work.microbatch, work.chunk * schedule.stages + stage)
                assert key not in table
                table[key] = tick
    return forward, backward, ticks


@pytest.mark.parametrize(("stages", "repeats", "microbatches"), SIZES)
def test_every_microbatch_passes_every_virtual_stage_in_order(stages, repeats, microbatches):
    schedule = Schedule(stages, repeats, microbatches)
    forward, backward, ticks = tick_table(schedule)
    everything = set(itertools.product(range(microbatches), range(stages * repeats)))
    assert set(forward) == set(backward) == everything
    assert ticks == microbatches * repeats + repeats * stages + stages - 2
    last = stages * repeats - 1
    for microbatch, stage in everything:
        if stage < last:  # what is sent in a tick is used in the next
            assert forward[microbatch, stage + 1] == forward[microbatch, stage] + 1
            assert backward[microbatch, stage] == backward[microbatch, stage + 1] + 1
        assert backward[microbatch, last] == forward[microbatch, last]
        # Each of the three scans finds the work it is written for.
        assert forward[microbatch, stage] < schedule.warmup_ticks + schedule.steady_ticks
        assert backward[microbatch, stage] >= schedule.warmup_ticks


@pytest.mark.parametrize(("stages", "repeats", "microbatches"), SIZES)
def test_kept_inputs_never_share_a_slot(stages, repeats, microbatches):
    schedule = Schedule(stages, repeats, microbatches)
    forward, backward, _ = tick_table(schedule)
    for (one, stage), (other, other_stage) in itertools.combinations(forward, 2):
        if stage == other_stage and (one - other) % schedule.slots == 0:
            first, second = sorted((one, other))
            assert backward[first, stage] < forward[second, stage]


@pytest.mark.parametrize(("stages", "repeats", "microbatches"), SIZES)
def test_bubble_is_what_the_table_leaves_idle(stages, repeats, microbatches):
    schedule = Schedule(stages, repeats, microbatches)
    # A tick costs what its program does: forward 1, backward 3 (with the forward pass again),
    # whoever needs it.
    time = 4 * schedule.steady_ticks + (1 + 3) * schedule.warmup_ticks
    useful = 4 * microbatches * repeats
    assert schedule.bubble == pytest.approx(1 - useful / time)


def test_the_stage_with_most_layers_makes_the_others_wait():
    # 10 layers on 4 stages, 3 on the largest: 2 microbatches take 5 ticks of 3 layers on each of 4
    # devices
    assert Schedule(4, 1, 2, imbalance=3 / 2.5).bubble == pytest.approx(1 - 2 * 10 / (4 * 5 * 3))


def test_memory_does_not_grow_with_microbatches():
    def temp_bytes(microbatches):
        config = make_config(
            model={"num_layers": 4},
            mesh={"stage": 4},
            train={"microbatches": microbatches, "batch_size": microbatches},
        )
        program = build_program(config, jax.devices()[:4])
        gradients = make_gradients(program.declared, program.mesh, program.execution)
        lowered = jax.jit(gradients).lower(
            program.state.decoder, batch_shapes(config, program.mesh)
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = temp_bytes(4), temp_bytes(32)
    # The batch itself is 8 times as large: tokens and targets, a few KiB. Kept activations would be
    # half a MiB.
    assert many - few < 64 * 1024


@pytest.fixture(scope="module")
def one_device():
    return run(make_config(model={"num_layers": 4}, train={"microbatches": 4}))


@pytest.mark.parametrize(
    ("mesh", "gather"),
    [
        ({"stage": 4, "tensor": 2}, "layer"),
        ({"stage": 2, "fsdp": 2, "tensor": 2}, "microbatch"),
        ({"stage": 2, "stage_repeats": 2, "data": 2, "context": 2}, "step"),
    ],
    ids=["stage4_tensor2", "stage2_fsdp2_tensor2", "stage2x2_data2_context2"],
)
def test_same_as_one_device(mesh, gather, one_device):
    config = make_config(
        model={"num_layers": 4}, mesh=mesh, train={"microbatches": 4, "gather": gather}
    )
    assert_same(run(config), one_device)


UNEVEN = {
    "num_layers": 6,
    "prefix": [{}, {"ffn": {"kind": "mlp", "activation": "gelu_tanh", "bias": "all"}}],
    "pattern": [
        {"ffn": {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "expert_dim": 16}}
    ],
}
UNEVEN_CELLS = [
    ({"stage": 2, "fsdp": 2, "tensor": 2}, {"gather": "layer"}),
    (
        {"stage": 2, "stage_repeats": 2, "expert": 2, "fsdp": 2},
        {"gather": "microbatch", "remat": "full"},
    ),
    (
        {"stage": 2, "stage_repeats": 2, "context": 2, "tensor": 2},
        {"gather": "layer", "remat": "full"},
    ),
    ({"stage": 4, "expert": 2}, {"gather": "step"}),
]


def primitives(jaxpr, *, in_branch=False):
    """Yield the name of each primitive of a program, and whether it is in a branch."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        yield name, in_branch
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from primitives(inner, in_branch=in_branch or name == "cond")


@pytest.mark.parametrize("kind", ["ring", "all_gather"])
def test_no_permute_in_a_branch(kind):
    """It would wait for the stages that took the other branch, for ever; what gathers may."""
    config = make_config(
        model={"num_layers": 3, "mtp": {"depth": 1}},
        mesh={"stage": 2, "context": 2, "fsdp": 2, "context_kind": kind},
    )
    program = build_program(config, jax.devices()[:8])
    assert min(program.execution.layout.segments[0].counts()) == 1
    gradients = make_gradients(program.declared, program.mesh, program.execution)
    shapes = program.state.decoder, batch_shapes(config, program.mesh)
    found = set(primitives(jax.make_jaxpr(gradients)(*shapes).jaxpr))
    assert ("ppermute", False) in found
    assert ("ppermute", True) not in found
    assert (("all_gather", True) in found) == (kind == "all_gather")


@pytest.fixture(scope="module")
def one_device_uneven():
    return run(make_config(model=UNEVEN, train={"microbatches": 4}))


def check_uneven(mesh, train, reference):
    got = run(make_config(model=UNEVEN, mesh=mesh, train={"microbatches": 4, **train}))
    assert_same(got, reference)
    assert abs(got.gradients["stack/0/1/ffn/up"]).max() > 0


def test_stages_with_unequal_segments(one_device_uneven):
    check_uneven(*UNEVEN_CELLS[1], one_device_uneven)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "train"), UNEVEN_CELLS)
def test_blocks_before_the_pattern_on_many_meshes(mesh, train, one_device_uneven):
    check_uneven(mesh, train, one_device_uneven)
