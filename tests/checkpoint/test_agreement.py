"""Folder, record and state must be of one step, or the checkpoint is damaged."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.checkpoint import Checkpointer, CheckpointReader, layout
from maxlm.config.errors import UserError
from maxlm.config.schema import CheckpointConfig


@pytest.fixture
def saved(tmp_path):
    """Return a folder with the checkpoints of steps 3 and 5, of small states."""
    folder = tmp_path / "checkpoints"
    with Checkpointer(folder, CheckpointConfig()) as checkpointer:
        for step in (3, 5):
            checkpointer.save(step, state_of(step), {"token_hash": f"{step:08x}{7:08x}"})
    return folder


def state_of(step):
    tokens = jnp.array([step, 7], jnp.uint32)
    # Steps that were skipped leave the weights as they are.
    return {"weights": jnp.ones(4), "step": jnp.int32(step), "token_hash": tokens}


def restored_step(folder):
    return CheckpointReader(folder).restore(state_of(0)).step


def copy_under_another_name(folder):
    shutil.copytree(folder / "00000005", folder / "00000007")
    return "its folder is that of step 7, its record that of step 5"


def rename(folder):
    (folder / "00000005").rename(folder / "00000009")
    return "its folder is that of step 9, its record that of step 5"


def bring_the_record_of_another(folder):
    shutil.copytree(folder / "00000003/record", folder / "00000005/record", dirs_exist_ok=True)
    return "its folder is that of step 5, its record that of step 3"


def bring_the_state_of_another(folder):
    shutil.rmtree(folder / "00000005/state")
    shutil.copytree(folder / "00000003/state", folder / "00000005/state")
    return "2 of 3 arrays do not fit their fingerprints"


def reseal(folder, **changes):
    file = folder / "00000005" / layout.RECORD / layout.RECORD_FILE
    content = json.loads(file.read_text())
    del content["checksum"]
    content["record"] |= changes
    file.write_text(json.dumps(layout.seal(content)))


def say_another_step_in_folder_and_record(folder):
    reseal(folder, step=6)
    (folder / "00000005").rename(folder / "00000006")
    return "its record is that of step 6, its state that of another"


def say_other_tokens(folder):
    reseal(folder, token_hash="0000000300000007")
    return "its record is of the tokens 0000000300000007, its state of others"


def say_no_tokens(folder):
    reseal(folder, token_hash=[1])
    return "its record is none of a checkpoint: TypeError"


@pytest.mark.parametrize(
    "change",
    [
        copy_under_another_name,
        rename,
        bring_the_record_of_another,
        bring_the_state_of_another,
        say_another_step_in_folder_and_record,
        say_other_tokens,
        say_no_tokens,
    ],
)
def test_what_disagrees_is_damaged_and_said(change, saved, caplog):
    assert restored_step(saved) == 5
    message = change(saved)
    expected = 5 if change is copy_under_another_name else 3
    assert restored_step(saved) == expected
    assert message in caplog.text
    if "folder" in message:  # nor is such a record used without its arrays, by whomever
        assert CheckpointReader(saved).latest_record()["step"] == expected
    wrong = next(step for step in CheckpointReader(saved).steps() if step != expected)
    wrong = 5 if "arrays" in message else wrong
    with pytest.raises(UserError, match="no checkpoint could be restored"):
        CheckpointReader(saved).restore(state_of(0), step=wrong)


@pytest.mark.parametrize(
    ("step", "tokens", "message"),
    [(4, 3, "its record is that of step 4, its state"), (3, 4, "its record is of the tokens")],
)
def test_what_disagrees_is_not_saved(step, tokens, message, tmp_path):
    with Checkpointer(tmp_path / "checkpoints", CheckpointConfig()) as checkpointer:
        with pytest.raises(ValueError, match=message):
            checkpointer.save(step, state_of(3), {"token_hash": f"{tokens:08x}{7:08x}"})
        checkpointer.save(3, state_of(3), {"token_hash": f"{3:08x}{7:08x}"})
    assert (
        np.asarray(CheckpointReader(tmp_path / "checkpoints").restore(state_of(0)).state["step"])
        == 3
    )
