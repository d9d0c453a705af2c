"""All six axes together: pairs and triples, dense and MoE, each way of gathering and kind of
context, repeated stages.

The losses of several steps and every gradient equal one device's. Two of them always run; all:
`pytest -m slow`.
"""

import functools
import itertools
import math

import pytest

from tests.train.program import assert_same, make_config, run

AXES = ("data", "stage", "fsdp", "expert", "context", "tensor")
DENSE = {"num_layers": 4}
MOE = {
    "num_layers": 4,
    "pattern": [
        {
            "mixer": {"kind": "attention", "window": 6},
            "ffn": {
                "kind": "moe",
                "num_experts": 4,
                "experts_per_token": 2,
                "expert_dim": 16,
                "balance": {"auxiliary_loss": 0.02, "z_loss": 0.001},
            },
        }
    ],
}
MODELS = {"dense": DENSE, "moe": MOE}


def cells():
    """Yield (id, model, mesh, train), settings taken in turns so that each meets each axis."""
    gathers = itertools.cycle(("layer", "microbatch", "step"))
    kinds = itertools.cycle(("ring", "all_gather", "ulysses"))
    repeats = itertools.cycle((1, 2))
    remats = itertools.cycle(("none", "none", "full"))
    sizes = [dict.fromkeys(axes, 2) for axes in itertools.combinations(AXES, 3)]
    sizes += [dict(zip(axes, (2, 4), strict=True)) for axes in itertools.combinations(AXES, 2)]
    for number, mesh in enumerate(sizes):
        for model in ("dense", "moe") if number % 3 else ("moe",):
            mesh = dict(mesh)
            if "context" in mesh:
                mesh["context_kind"] = next(kinds)
            if mesh.get("stage") == 2:
                mesh["stage_repeats"] = next(repeats)
            train = {"gather": next(gathers), "remat": next(remats), "microbatches": 2}
            name = "_".join(f"{axis}{size}" for axis, size in mesh.items())
            yield pytest.param(
                model, mesh, train, id=f"{model}-{name}-{train['gather']}-{train['remat']}"
            )


CELLS = list(cells())
ALWAYS = [
    pytest.param(
        "moe", {"stage": 2, "expert": 2, "tensor": 2}, {"microbatches": 2}, id="stage_expert_tensor"
    ),
    pytest.param(
        "moe",
        {"stage": 2, "stage_repeats": 2, "expert": 2, "context": 2},
        {"microbatches": 2, "gather": "microbatch"},
        id="stage_expert_context",
    ),
]


@functools.cache
def one_device(model):
    return run(make_config(model=MODELS[model], train={"microbatches": 2}))


def check(model, mesh, train):
    assert math.prod(size for axis, size in mesh.items() if axis in AXES) == 8
    assert_same(run(make_config(model=MODELS[model], mesh=mesh, train=train)), one_device(model))


@pytest.mark.parametrize(("model", "mesh", "train"), ALWAYS)
def test_three_axes_at_once(model, mesh, train):
    check(model, mesh, train)


def test_the_grid_is_wide():
    assert len(CELLS) >= 40


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("model", "mesh", "train"), CELLS)
def test_every_pair_and_triple_of_axes(model, mesh, train):
    check(model, mesh, train)
