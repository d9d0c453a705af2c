"""Every family trains alike on meshes of several axes, from its published weights' model."""

from pathlib import Path

import pytest

from maxlm.checkpoint.hf.published import open_published
from maxlm.config.schema import RunConfig
from tests.train.program import assert_same, make_config, run

FOLDER = Path(__file__).parents[1] / "fixtures"
AXES = ({"tensor": 2, "fsdp": 2}, {"stage": 2, "fsdp": 2}, {"context": 2, "fsdp": 2})
MODULE = {"mtp": {"depth": 1}}  # transformers left it out of the fixture


def config_of(name, mesh, **more):
    """Return a run of a fixture's model; where it has experts, fsdp's devices hold them, and where it
    has one pattern, stages' have parts of the sequence.
    """
    model = open_published(FOLDER / name).model
    if "stage" in mesh and sum(model.repeats) < 2:  # one pattern, which no stage has a part of
        mesh = {**{axis: size for axis, size in mesh.items() if axis != "stage"}, "context": 2}
    if any(block.ffn.kind == "moe" for block in model.layers) and "fsdp" in mesh:
        mesh = {**{axis: size for axis, size in mesh.items() if axis != "fsdp"}, "expert": 2}
    shared = make_config(mesh=mesh, train={"microbatches": 2, "num_steps": 3}).model_dump()
    return RunConfig.model_validate({**shared, "model": {**model.model_dump(), **more}})


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llama3", {}),
        pytest.param("gpt_oss", {}, marks=pytest.mark.slow),
        pytest.param("deepseek_v3", MODULE, marks=pytest.mark.slow),
    ],
)
def test_three_axes_at_once(name, more):
    mesh = {"fsdp": 2, "tensor": 2, "stage": 2}
    assert_same(run(config_of(name, mesh, **more)), run(config_of(name, {}, **more)))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_each_axis(name):
    model, alone = open_published(FOLDER / name).model, run(config_of(name, {}))
    one_head = any(getattr(block.mixer, "num_kv_heads", 0) == 1 for block in model.layers)
    for mesh in AXES[1:] if one_head else AXES:  # one head of keys is not split
        assert_same(run(config_of(name, mesh)), alone)
