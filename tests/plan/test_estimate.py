"""Times of collectives and schedules, against ones worked out by hand."""

import pytest

from maxlm.config.errors import RunFailedError
from maxlm.ops.grouped_matmul import TPU_TILE_ROWS
from maxlm.plan.estimate import Efficiency, Timeline, count_work, guess_trips
from maxlm.plan.hlo import Collective, Instruction, parse
from maxlm.plan.network import HOP_SECONDS, NETWORK_SECONDS, Network
from maxlm.plan.topology import Topology
from tests.plan.test_hlo import FUSIONS

RING = Topology("v5p", (4, 4, 4))
LINES = Topology("v5p", (4, 2, 2))
LINK, OUTSIDE = RING.chip.link_rate, RING.chip.network_rate
PERFECT = Efficiency(product=1.0, memory=1.0, other=1.0, link=1.0, kernel=1.0)


def along_x(topology, slices=1):
    """Place devices along the first side of each slice."""
    return Network(
        topology, [(s, x, 0, 0) for s in range(slices) for x in range(topology.sides[0])], 1.0
    )


def collective(kind, size, *groups, phase="sync"):
    return Collective(kind, phase, size, groups)


@pytest.mark.parametrize(
    ("kind", "topology", "seconds"),
    [
        ("all-gather", RING, 3 / 4 * 8e9 / (2 * LINK) + 2 * HOP_SECONDS),
        ("reduce-scatter", LINES, 3 / 4 * 8e9 / LINK + 3 * HOP_SECONDS),
        ("all-reduce", RING, 2 * (3 / 4 * 8e9 / (2 * LINK) + 2 * HOP_SECONDS)),
        ("all-to-all", RING, 8e9 * 4 / (8 * LINK) + 2 * HOP_SECONDS),
        ("ragged-all-to-all", LINES, 8e9 * 4 / (4 * LINK) + 3 * HOP_SECONDS),
    ],
)
def test_one_dimension(kind, topology, seconds):
    network = along_x(topology)
    assert network.seconds(collective(kind, 8e9, (0, 1, 2, 3))) == pytest.approx(seconds)


def test_three_rings_carry_three_times_as_much():
    places = [(0, x, y, z) for x in range(4) for y in range(4) for z in range(4)]
    seconds = Network(RING, places, 1.0).seconds(collective("all-gather", 8e9, tuple(range(64))))
    assert seconds == pytest.approx(63 / 64 * 8e9 / (6 * LINK) + 6 * HOP_SECONDS)
    ring = collective("reduce-scatter", 8e9, tuple(range(64)))._replace(one_ring=True)
    assert Network(RING, places, 1.0).seconds(ring) == pytest.approx(
        63 / 64 * 8e9 / (2 * LINK) + 6 * HOP_SECONDS
    )


def test_groups_that_interleave_share_the_links():
    topology = Topology("v5p", (8, 4, 4))
    network = Network(topology, [(0, x, 0, 0) for x in range(8)], 1.0)
    near, far = (
        network.seconds(collective("all-gather", 8e9, group))
        for group in ((0, 1, 2, 3), (0, 2, 4, 6))
    )
    # No ring: the way back is another group's.
    assert near == pytest.approx(3 / 4 * 8e9 / LINK + 3 * HOP_SECONDS)
    # A ring, of which another group takes half.
    assert far == pytest.approx(3 / 4 * 8e9 / LINK, rel=1e-3)


@pytest.mark.parametrize(("topology", "hops"), [(RING, 1), (LINES, 3)])
def test_a_permute_goes_round_where_there_is_a_ring(topology, hops):
    turn = collective("collective-permute", 1e9, (0, 1), (1, 2), (2, 3), (3, 0))
    assert along_x(topology).seconds(turn) == pytest.approx(hops * (1e9 / LINK + HOP_SECONDS))


def test_slices_reduce_within_before_they_reduce_across():
    network = along_x(RING, slices=2)
    seconds = network.seconds(collective("all-reduce", 8e9, tuple(range(8))))
    within = 2 * (3 / 4 * 8e9 / (2 * LINK) + 2 * HOP_SECONDS)
    assert seconds == pytest.approx(within + NETWORK_SECONDS + 2 * (1 / 2) * 2e9 / OUTSIDE)
    step = collective("collective-permute", 1e9, (0, 4))
    assert network.seconds(step) == pytest.approx(NETWORK_SECONDS + 1e9 / OUTSIDE)


@pytest.mark.parametrize(
    ("cycles", "waited"), [(1_750_000, 0.0), (1_750, 96 / (2 * LINK) + 2e-6 - 1e-6)]
)
def test_only_what_the_work_does_not_hide_is_waited_for(cycles, waited):
    module = parse(FUSIONS.replace("1750000", str(cycles)))
    spent = Timeline(module, RING.chip, 1e18, along_x(RING), PERFECT).seconds()
    assert spent["products"] == pytest.approx(cycles / 1.75e9)
    assert spent["communication"] == pytest.approx(waited)


def test_a_product_whose_cycles_are_unknown_counts_like_a_kernel():
    module = parse(FUSIONS.replace("1750000", str(2**63 - 1)))
    half = PERFECT._replace(kernel=0.5)
    spent = Timeline(module, RING.chip, 1e9, along_x(RING), half).seconds()
    work = count_work(module, {"x": 8})
    assert work.unknown_products == work.product_flops > 0
    assert spent["products"] == pytest.approx(work.product_flops / 0.5e9)
    assert count_work(parse(FUSIONS), {"x": 8}).unknown_products == 0


def test_loops_over_data_are_guessed_by_what_they_are_for():
    loop = Instruction("loop", "while", (), (), "", ', metadata={op_name="jit(step)/ffn/while"}')
    with pytest.raises(
        RunFailedError,
        match="cannot be counted, loop .jit.step./ffn/while., so there is no estimate",
    ):
        guess_trips(None)(loop, 15)
    tiles = loop._replace(attributes='op_name="ffn/while/body/tiles_of_one_in_4/while"')
    assert guess_trips(12 * TPU_TILE_ROWS)(tiles, 15) == 3
    assert guess_trips(300)(tiles, 15) == 1  # each group has tiles of its own
    rounds = loop._replace(attributes='op_name="ffn/further_rounds/while"')
    assert guess_trips(3 * TPU_TILE_ROWS)(rounds, 15) == 0
    assert (
        guess_trips(3 * TPU_TILE_ROWS)(loop._replace(attributes='op_name="mixer/while"'), 15) == 8
    )


def test_a_fusion_reads_the_slice_it_takes_and_nothing_from_vmem():
    module = parse("""HloModule slices, is_scheduled=true

%taken (big.0: f32[100,1000], i.0: s32[], fast.0: f32[1000]) -> f32[1,1000] {
  %big.0 = f32[100,1000]{1,0} parameter(0)
  %i.0 = s32[] parameter(1)
  %fast.0 = f32[1000]{0:S(1)} parameter(2)
  %row = f32[1,1000]{1,0} dynamic-slice(%big.0, %i.0), dynamic_slice_sizes={1,1000}
  ROOT %twice = f32[1,1000]{1,0} add(%row, %row)
}

ENTRY %main (big: f32[100,1000], i: s32[], fast: f32[1000]) -> f32[1,1000] {
  %big = f32[100,1000]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %fast = f32[1000]{0:S(1)} parameter(2)
  ROOT %out = f32[1,1000]{1,0} fusion(%big, %i, %fast), kind=kLoop, calls=%taken
}
""")
    spent = Timeline(module, RING.chip, 1e18, along_x(RING), PERFECT).seconds()
    assert spent["other"] == pytest.approx((4000 + 4000 + 4) / RING.chip.memory_rate)
