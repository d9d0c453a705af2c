"""What any kind must be able to do, without a word about it anywhere else."""

import shutil

import numpy as np
import pytest

from tests.seams.conftest import losses


def test_three_steps_of_all_kinds_together_are_the_same_on_every_mesh(load):
    one, state = losses(load("all"))
    assert one[2] < one[0]
    centre = state.decoder.stack[0][0].ffn.centre[...]
    assert (centre != 0).any(axis=1).all()
    for mesh, remat in (
        ({"fsdp": 2, "tensor": 2}, "{averages: save, centred_hidden: save}"),
        ({"context": 2, "tensor": 2}, "full"),
        ({"stage": 2}, "{averages: offload}"),
    ):
        found, state = losses(load("all", f"train.remat={remat}"), **mesh)
        np.testing.assert_allclose(found, one, rtol=1e-5, err_msg=str(mesh))
        np.testing.assert_allclose(
            state.decoder.stack[0][0].ffn.centre[...], centre, rtol=1e-4, atol=1e-6
        )


def test_a_run_is_saved_and_goes_on_and_says_what_layers_report(train, tmp_path):
    settings = [
        "mesh.fsdp=2",
        "mesh.tensor=2",
        "mesh.data=2",
        "checkpoint.every=2",
        "model.norm.epsilon=1e-12",
    ]
    whole, metrics = train("all", *settings)
    assert len(whole) == 3
    shutil.rmtree(tmp_path / "all" / "checkpoints" / "00000003")
    again, _ = train("all", *settings)
    assert again == whole
    assert 0.5 < metrics[1]["train/target_share"] < 1
    assert 0.5 < metrics[3]["val/text/target_share"] < 1
    for layer in (0, 1):
        assert metrics[1][f"average/{layer}/1/square"] > 0  # the second of the parallel mixers
        # The input is normalised, and the centre is zero at first.
        assert metrics[1][f"centred/{layer}/distance"] == pytest.approx(16, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "override", "expected"),
    [
        ("mixer", "model.block.mixer.kind=moving_averages", "did you mean moving_average?"),
        ("mixer", "model.block.mixer.hidden_dims=8", "did you mean model.block.mixer.hidden_dim?"),
        ("all", "train.remat={avrages: save}", "did you mean averages?"),
        (
            "mixer",
            "model.block.mixer.hidden_dim=-1",
            "model.block.mixer.hidden_dim=-1 must be at least 1",
        ),
        (
            "parallel",
            "model.block.mixer.mixers.1.hidden_dim=0",
            "model.block.mixer.mixers.1.hidden_dim=0 must be",
        ),
        ("ffn", "model.block.ffn.kind=centered", "did you mean centred?"),
        ("objective", "objective.kind=after_nxt", "did you mean after_next?"),
        (
            "objective",
            "objective.windw=3",
            "objective.windw is not a known key; did you mean objective.window?",
        ),
        (
            "objective",
            "objective.ignored=32",
            "objective.ignored=32 leaves none of data.sequence_length=32 tokens",
        ),
        ("optimizer", "optimizer.kind=lin", "did you mean lion?"),
        ("optimizer", "optimizer.beta1=1.5", "optimizer.beta1=1.5 must be less than 1"),
        (
            "optimizer",
            "optimizer.beta2=0.5",
            "optimizer.beta1=0.9 is more than optimizer.beta2=0.5; use 0.9 and 0.99",
        ),
        ("optimizer", "optimizer.epsilon=1e-8", "optimizer.epsilon is not a known key"),
        ("kernel", "runtime.kernels.attention=dence", "did you mean dense?"),
    ],
)
def test_mistakes_are_named_with_their_cure(kind, override, expected, refused):
    message = refused(kind, override)
    assert expected in message
    assert "1 problem in" in message


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("mixer", "model.block.mixer.hidden_dim"),
        ("parallel", "model.block.mixer.mixers.1.hidden_dim"),
        ("ffn", "model.block.ffn.hidden_dim"),
    ],
)
def test_sizes_that_the_mesh_does_not_divide(kind, path, refused):
    assert f"{path}=7 must be divisible by mesh.tensor=2" in refused(
        kind, f"{path}=7", "mesh.tensor=2"
    )


def test_a_section_without_a_kind_is_the_default_one(load):
    # The other kinds are there, and files that say nothing of them mean what they meant.
    assert load("mixer", "optimizer.beta1=0.8", "objective.z_loss=0.1").optimizer.kind == "adamw"
    assert load("mixer").objective.kind == "next_token"
    assert load("objective").objective.kind == "after_next"
