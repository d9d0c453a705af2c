"""Modules that predict further tokens: the same on every mesh, after a resume, and no part of
evaluation.
"""

import functools

import jax
import numpy as np
import pytest

import maxlm
from maxlm.config import load_run
from maxlm.metrics.catalog import find
from maxlm.models.cost import parameter_count
from maxlm.sharding.parameters import initialise
from maxlm.train.evaluate import loss_metrics
from maxlm.train.setup import build_program, compile_losses
from tests.train.conftest import curve, read_metrics, train
from tests.train.program import assert_same, make_batch, make_config, run

MOE = {
    "kind": "moe",
    "num_experts": 4,
    "experts_per_token": 2,
    "expert_dim": 16,
    "balance": {"auxiliary_loss": 0.1, "bias_update": 0.01},
}
MODEL = {"num_layers": 2, "mtp": {"depth": 1, "block": {"ffn": MOE}}}
TWO = {"num_layers": 5, "mtp": {"depth": 2, "block": {"ffn": MOE}}, "tie_embeddings": True}


@functools.cache
def one_device(depth=1):
    model = MODEL if depth == 1 else TWO
    return run(make_config(model=model, train={"microbatches": 2}))


@pytest.mark.parametrize(
    ("mesh", "gather"),
    [
        ({"tensor": 2, "context": 2}, "layer"),
        ({"data": 2, "fsdp": 2, "expert": 2}, "microbatch"),
        ({"stage": 2, "expert": 2, "tensor": 2}, "layer"),
    ],
)
def test_same_on_every_mesh(mesh, gather):
    train = {"gather": gather, "microbatches": 2}
    result = run(make_config(model=MODEL, mesh=mesh, train=train))
    assert_same(result, one_device(), 2e-5)
    for name in ("project", "norm/scale", "block/mixer/query", "block/ffn/up"):
        assert np.abs(result.gradients[f"mtp/0/{name}"]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "train"),
    [
        ({"stage": 2, "stage_repeats": 2, "fsdp": 2, "expert": 2}, {"gather": "microbatch"}),
        ({"stage": 2, "stage_repeats": 2, "context": 2}, {"gather": "layer", "remat": "full"}),
        ({"stage": 4, "fsdp": 2}, {"gather": "step"}),
    ],
)
def test_two_of_them_behind_uneven_stages(mesh, train):
    config = make_config(model=TWO, mesh=mesh, train={"microbatches": 2, **train})
    assert_same(run(config), one_device(2), 2e-5)


@pytest.mark.parametrize("stages", [1, 2])
def test_evaluation_is_of_the_next_token(stages):
    """With values of the modules that are not finite, and from a batch without their fields."""
    model = {"num_layers": 2, "mtp": {"depth": 1}}
    config = make_config(model=model, mesh={"stage": stages})
    program = build_program(config, jax.devices()[:stages])
    decoder = initialise(program.declared, 0, program.mesh)
    broken = decoder.without_modules()
    broken.mtp = jax.tree.map(lambda x: x + np.nan, decoder.mtp)
    batch = {name: x for name, x in make_batch(config, 0).items() if not name.endswith("_1")}
    sums = compile_losses(config, program)(broken, batch)
    metrics = loss_metrics(program.execution.objective, [sums])
    assert np.isfinite(metrics["loss"])
    assert metrics.keys() == {"loss", "perplexity", "bits_per_byte"}


def test_a_run_resumes_and_reports_and_is_loaded_without_them(write_run, tmp_path):
    """As if it had not stopped, bit for bit."""
    settings = {"model": {"mtp": {"depth": 1}}, "checkpoint": {"every": 3}}
    train(write_run("whole", **settings, train={"num_steps": 6, "eval_every": 3}))
    path = write_run("parts", **settings, train={"num_steps": 3, "eval_every": 3})
    train(path, "schedule.total_steps=6")
    train(path, "train.num_steps=6", "schedule.total_steps=6")
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    whole, parts = (read_metrics(tmp_path / name) for name in ("whole", "parts"))
    assert find("train/mtp_loss").unit == "nats/token"
    for step in (1, 4, 6):
        assert parts[step]["train/mtp_loss"] == whole[step]["train/mtp_loss"]
    assert "val/text/mtp_loss" not in whole[6]
    assert "val/text/loss" in whole[6]
    model = maxlm.load(tmp_path / "whole")
    assert model.num_parameters == parameter_count(
        load_run(path, ["model.mtp=null", "train.num_steps=6"]).config.model
    )
    assert np.isfinite(model.logits([[1, 2, 3]])).all()
