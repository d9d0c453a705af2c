"""What was just written is read back before it counts, and before an older one goes for it."""

import errno
import os
import shutil

import jax.numpy as jnp
import pytest
import tensorstore as ts

from maxlm.checkpoint import Checkpointer, CheckpointReader, layout, read_back
from maxlm.checkpoint.fingerprint import Block
from maxlm.config.errors import RunFailedError, UserError
from maxlm.config.schema import CheckpointConfig
from tests.damage import flip_arrays


@pytest.fixture
def open_checkpointer(tmp_path):
    """Return a function that opens a Checkpointer on one folder; all are closed in the end."""
    opened = []

    def open_one(**settings):
        opened.append(Checkpointer(tmp_path / "checkpoints", CheckpointConfig(**settings)))
        return opened[-1]

    yield open_one
    for checkpointer in opened:
        checkpointer.close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def largest_file(path):
    files = [file for file in (path / "state").rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def flip_array(path):
    flip_arrays(path / "state")


def truncate_array(path):
    os.truncate(largest_file(path), largest_file(path).stat().st_size // 2)


def delete_manifest(path):
    (path / "state" / "manifest.ocdbt").unlink()


def bring_arrays_of_another(path):
    shutil.rmtree(path / "state")
    shutil.copytree(path.parent / "00000001" / "state", path / "state")


def lose(path, first, after):
    base = {"driver": "file", "path": f"{path / 'state'}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    store.delete_range(ts.KvStore.KeyRange(first, after)).result()


def lose_an_array(path):
    lose(path, "model/scale/", "model/scale0")


def lose_a_chunk(path):
    """It would read as zeros."""
    lose(path, "model/weights/3.0", "model/weights/3.1")


def bring_record_of_another(path):
    shutil.copytree(path.parent / "00000001/record", path / "record", dirs_exist_ok=True)


def change_record(path):
    file = path / "record" / "record.json"
    file.write_text(file.read_text().replace('"try": 2', '"try": 3'))


@pytest.mark.parametrize(
    "damage",
    [
        flip_array,
        truncate_array,
        delete_manifest,
        bring_arrays_of_another,
        lose_an_array,
        lose_a_chunk,
        bring_record_of_another,
        change_record,
    ],
)
def test_what_is_not_what_was_written_takes_no_place(
    damage, open_checkpointer, tmp_path, make_state, abstract, assert_equal, monkeypatch, caplog
):
    folder = tmp_path / "checkpoints"
    checkpointer = open_checkpointer(keep_last=1, verify="all")
    checkpointer.save(1, make_state(1), {"try": 1}, wait=True)
    with monkeypatch.context() as patch:
        patch.setattr(read_back, "_flush", damage)  # after it was written, before it is read
        checkpointer.save(2, make_state(2), {"try": 2})
        message = r"step 2 was not saved: .*the newest whole one is of step 1; look at the disk"
        with pytest.raises(RunFailedError, match=message):
            checkpointer.save(3, make_state(3), {})
    assert names(folder) == ["00000001", "00000002.damaged"]
    events = [record.maxlm_event for record in caplog.records if hasattr(record, "maxlm_event")]
    assert [(e.kind, e.step) for e in events if e.kind == "failed_save"] == [("failed_save", 2)]
    assert_equal(open_checkpointer().restore(abstract(make_state(0))).state, make_state(1))


def test_the_disk_has_a_checkpoint_before_an_older_one_goes(
    open_checkpointer, tmp_path, make_state, monkeypatch
):
    done = []
    file, folder, remove = read_back.flush_file, read_back.flush_folder, layout.remove
    monkeypatch.setattr(read_back, "flush_file", lambda path: (done.append(path), file(path)))
    monkeypatch.setattr(read_back, "flush_folder", lambda path: (done.append(path), folder(path)))
    monkeypatch.setattr(layout, "remove", lambda path: (done.append(path), remove(path)))
    with open_checkpointer(keep_last=1) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step), {})
    old, new = (tmp_path / "checkpoints" / f"{step:08d}" for step in (1, 2))
    deleted = len(done) - 1
    assert done[deleted] == old
    written = list(new.rglob("*"))
    assert {*written, new, new.parent} <= set(done[:deleted])
    # A folder's names come after what they name.
    assert done.index(new / "record" / "record.json") < done.index(new / "record") < done.index(new)
    assert max(index for index, path in enumerate(done) if path == new.parent) > done.index(new)


@pytest.mark.parametrize(("extent", "count"), [("none", 0), ("all", 16), ("sample", 16)])
def test_how_much_is_read_back_is_a_choice(
    extent, count, open_checkpointer, make_state, monkeypatch, caplog
):
    caplog.set_level("INFO")
    with open_checkpointer(verify=extent) as checkpointer:
        checkpointer.save(1, make_state(1), {})
    marked = [r.maxlm_event for r in caplog.records if hasattr(r, "maxlm_event")]
    (saved,) = [event for event in marked if event.kind == "saved"]
    assert saved.step == 1
    # 8 blocks of the weights, 2 of the scale, 4 of the integers, one of what all hold.
    assert saved.values["blocks_read_back"] == count


def test_a_sample_is_bounded_and_another_each_time():
    blocks = [
        (f"a{n}", Block((), size * 2**20, 0, True)) for n, size in enumerate([8] * 99 + [999])
    ]
    chosen = [read_back._sample(blocks, seed=seed) for seed in range(200)]
    assert all(sum(block.nbytes for _, block in one) <= 128 * 2**20 for one in chosen)
    assert {len(one) for one in chosen} == {16}
    assert {name for one in chosen for name, _ in one} == {f"a{n}" for n in range(99)}
    small = [(name, block._replace(nbytes=4)) for name, block in blocks]
    assert len(read_back._sample(small, seed=0)) == read_back.SAMPLE_BLOCKS
    assert read_back._sample(blocks[-1:], seed=0) == blocks[-1:]
    assert read_back._sample([], seed=0) == []


def test_a_state_that_may_not_replace_others_does_not(open_checkpointer, tmp_path, make_state):
    folder = tmp_path / "checkpoints"
    with open_checkpointer(keep_last=1) as checkpointer:
        checkpointer.save(1, make_state(1), {})
        checkpointer.save(2, make_state(2), {}, replaces=False)
        checkpointer.save(3, make_state(3), {}, replaces=False, wait=True)
        assert names(folder) == ["00000001", "00000002", "00000003"]
        checkpointer.save(4, make_state(4), {})
    assert names(folder) == ["00000004"]


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_state_that_is_not_finite_is_not_saved(value, open_checkpointer, tmp_path, make_state):
    checkpointer = open_checkpointer(keep_last=1)
    checkpointer.save(1, make_state(1), {})
    state = make_state(2)
    weights = state["model"].weights[...]
    state["model"].weights.set_value(weights.at[700, 3].set(value))
    message = (
        r"step 2 is not saved: there is nan or infinity in 1 of its 5 arrays \(model/weights\)"
    )
    with pytest.raises(RunFailedError, match=message):
        checkpointer.save(2, state, {})
    assert names(tmp_path / "checkpoints") == ["00000001"]


def test_a_folder_that_was_removed_is_made_again_and_said(
    open_checkpointer, tmp_path, make_state, abstract, assert_equal
):
    checkpointer = open_checkpointer()
    checkpointer.save(1, make_state(1), {}, wait=True)
    shutil.rmtree(tmp_path / "checkpoints")
    message = r"checkpoints was removed while the run went on; step 2 is saved there again"
    with pytest.raises(UserError, match=message):
        checkpointer.save(2, make_state(2), {})
    assert_equal(open_checkpointer().restore(abstract(make_state(0))).state, make_state(2))


def test_a_folder_that_is_removed_during_a_save(
    open_checkpointer, tmp_path, make_state, monkeypatch
):
    checkpointer = open_checkpointer()
    checkpointer.save(1, make_state(1), {}, wait=True)
    monkeypatch.setattr(read_back, "_flush", lambda path: shutil.rmtree(path.parent))
    checkpointer.save(2, make_state(2), {})
    with pytest.raises(
        UserError, match="checkpoints was removed while the run went on; put it back"
    ):
        checkpointer.wait()
    monkeypatch.undo()
    # With a state at hand, nothing is lost but what lay there.
    with pytest.raises(UserError, match="step 3 is saved there again"):
        checkpointer.save(3, make_state(3), {})
    assert CheckpointReader(tmp_path / "checkpoints").steps() == [3]
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match="cannot be made again: File exists; move away"):
        checkpointer.save(4, make_state(4), {})


def test_a_file_system_that_cannot_flush_folders_is_not_at_fault(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(number, "injected")

    monkeypatch.setattr(os, "fsync", fail)
    number = errno.EINVAL
    read_back.flush_folder(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError, match="injected"):
        read_back.flush_folder(tmp_path)
