"""Every family trains alike on meshes of several axes, from its published weights' model."""

from pathlib import Path

import pytest

from maxlm.checkpoint.hf.published import open_published
from maxlm.config.schema import RunConfig
from tests.train.program import assert_same, make_config, run

FOLDER = Path(__file__).parents[1] / "fixtures"
AXES = ({"tensor": 2, "fsdp": 2}, {"stage": 2, "fsdp": 2}, {"context": 2, "fsdp": 2})
QUICK = ("llama3", "gemma3", "gpt_oss", "deepseek_v3", "gpt_neox")


def config_of(name, mesh):
    """Return a run of a fixture's model; where it has experts, fsdp's devices hold them."""
    model = open_published(FOLDER / name).model
    if any(block.ffn.kind == "moe" for block in model.layers) and "fsdp" in mesh:
        mesh = {**{axis: size for axis, size in mesh.items() if axis != "fsdp"}, "expert": 2}
    shared = make_config(mesh=mesh, train={"microbatches": 2, "num_steps": 3}).model_dump()
    return RunConfig.model_validate({**shared, "model": model.model_dump()})


@pytest.mark.parametrize("name", QUICK)
def test_three_axes_at_once(name):
    mesh = {"fsdp": 2, "tensor": 2, "stage": 2}
    assert_same(run(config_of(name, mesh)), run(config_of(name, {})))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_each_axis(name):
    alone = run(config_of(name, {}))
    for mesh in AXES:
        assert_same(run(config_of(name, mesh)), alone)
