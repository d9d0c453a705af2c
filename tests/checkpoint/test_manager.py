import errno
import json
import logging
import random
import shutil
import subprocess
import threading

import jax
import numpy as np
import pytest

from maxlm.checkpoint import Checkpointer, CheckpointReader, read_back
from maxlm.config.errors import RunFailedError, UserError
from maxlm.config.schema import CheckpointConfig
from maxlm.events import ATTRIBUTE
from maxlm.sharding.host import on_host, to_device, to_place_of
from tests.damage import flip_arrays

# orbax reads and writes several files at once; those that fail after the first report to an event
# loop that has ended.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def open_checkpointer(tmp_path):
    """Return a function that opens a Checkpointer on one folder; all are closed in the end."""
    opened = []

    def open_one(directory=tmp_path / "checkpoints", **settings):
        opened.append(Checkpointer(directory, CheckpointConfig(**settings)))
        return opened[-1]

    yield open_one
    for checkpointer in opened:
        checkpointer.close()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def largest_file(directory):
    return max(
        (p for p in (directory / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def flip(path, position=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 0x10
    path.write_bytes(data)


def test_restores_what_was_saved(open_checkpointer, make_state, abstract, assert_equal):
    state = make_state(3)
    record = {"token_hash": "00ff", "config": {"nested": {"list": [1, 2.5, None]}}}
    open_checkpointer().save(3, state, record, wait=True)
    restored = open_checkpointer().restore(abstract(state))
    assert (restored.step, restored.record) == (3, {**record, "step": 3})
    assert restored.damaged == ()
    assert_equal(restored.state, state)
    shardings = [leaf.sharding for leaf in jax.tree.leaves(state)]
    assert [leaf.sharding for leaf in jax.tree.leaves(restored.state)] == shardings


def test_arrays_in_host_memory_are_saved_and_restored_there(
    open_checkpointer, make_state, abstract, assert_equal
):
    state, copy = (make_state(1, rows=65536) for _ in range(2))
    hosts = jax.tree.map(lambda x: on_host(x.sharding), state)
    state = jax.device_put(state, hosts)
    scramble = jax.jit(
        lambda tree: to_place_of(
            jax.tree.map(lambda x: ~x if x.dtype == bool else x + 1, to_device(tree)), tree
        ),
        donate_argnums=0,
    )
    checkpointer = open_checkpointer()
    checkpointer.save(1, state, {})
    for _ in range(3):
        state = scramble(state)
    checkpointer.wait()
    restored = checkpointer.restore(abstract(jax.device_put(copy, hosts))).state
    assert_equal(restored, copy)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(restored)} == {"pinned_host"}
    on_devices = checkpointer.restore(abstract(copy)).state
    assert_equal(on_devices, copy)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(on_devices)} == {"device"}


def test_nothing_saved_is_none(open_checkpointer, make_state, abstract):
    checkpointer = open_checkpointer()
    assert checkpointer.restore(abstract(make_state(0))) is None
    assert checkpointer.latest_record() is None
    assert checkpointer.records() == []


def test_saved_state_may_be_donated_at_once(open_checkpointer, make_state, abstract, assert_equal):
    state, copy = (make_state(1, rows=65536) for _ in range(2))
    scramble = jax.jit(
        lambda tree: jax.tree.map(lambda x: ~x if x.dtype == bool else x + 1, tree),
        donate_argnums=0,
    )
    checkpointer = open_checkpointer()
    checkpointer.save(1, state, {})
    for _ in range(3):
        state = scramble(state)
    checkpointer.wait()
    assert_equal(checkpointer.restore(abstract(copy)).state, copy)


@pytest.mark.parametrize("devices", [8, 4, 2, 1])
def test_restores_on_another_mesh_bit_by_bit(
    devices, open_checkpointer, make_state, abstract, assert_equal
):
    state = make_state(5, devices=8)
    open_checkpointer().save(5, state, {}, wait=True)
    other = make_state(6, devices=devices, spec=("b", None))
    restored = open_checkpointer().restore(abstract(other)).state
    assert_equal(restored, state)
    assert restored["model"].weights[...].sharding == other["model"].weights[...].sharding


def test_part_of_a_state(open_checkpointer, tmp_path, make_state, abstract, assert_equal):
    state = make_state(2)
    for step in (1, 2):
        open_checkpointer().save(step, make_state(step), {}, wait=True)
    reader = CheckpointReader(tmp_path / "checkpoints")
    part = {"model": abstract(state["model"])}
    assert_equal(reader.restore(part, partial=True).state["model"], state["model"])
    assert_equal(reader.restore(part, step=1, partial=True).state["model"], make_state(1)["model"])
    with pytest.raises(UserError, match=r"no checkpoint of step 7; it has \[2, 1\]"):
        reader.restore(part, step=7, partial=True)
    with pytest.raises(UserError, match="step: in the checkpoint, but this run has no such array"):
        reader.restore(part)


def test_keeps_the_last_and_every_kth(open_checkpointer, tmp_path, make_state):
    with open_checkpointer(keep_last=2, keep_every=3) as checkpointer:
        for step in range(1, 9):
            checkpointer.save(step, make_state(step), {})
    assert names(tmp_path / "checkpoints") == ["00000003", "00000006", "00000007", "00000008"]


def test_a_step_is_saved_once(open_checkpointer, make_state, abstract, assert_equal):
    checkpointer = open_checkpointer()
    checkpointer.save(1, make_state(1), {"try": 1})
    checkpointer.save(1, make_state(2), {"try": 2})
    checkpointer.wait()
    restored = checkpointer.restore(abstract(make_state(0)))
    assert restored.record["try"] == 1
    assert_equal(restored.state, make_state(1))


def test_a_save_that_waits_for_the_one_before_says_how_long(
    open_checkpointer, make_state, monkeypatch, caplog
):
    whole, read = threading.Event(), read_back.read_back

    def slow(*arguments):
        whole.wait(60)
        return read(*arguments)

    monkeypatch.setattr(read_back, "read_back", slow)
    checkpointer = open_checkpointer(every=5)
    checkpointer.save(5, make_state(5), {})
    threading.Timer(1.5, whole.set).start()
    checkpointer.save(10, make_state(10), {}, wait=True)
    (told,) = [one for one in caplog.records if one.levelname == "WARNING"]
    assert "to save step 10, as the checkpoint of step 5 was still being written" in caplog.text
    assert "raise checkpoint.every" in caplog.text
    event = getattr(told, ATTRIBUTE)
    assert (event.kind, event.step, event.values["before"]) == ("slow_save", 10, 5)
    assert 1.0 <= event.values["seconds"] <= checkpointer.stall_seconds
    # Neither is left out. What has the time it needs, and a step that is saved already, say nothing.
    assert checkpointer.steps() == [10, 5]
    caplog.clear()
    checkpointer.save(15, make_state(15), {})
    checkpointer.save(15, make_state(15), {})
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


def test_stall_is_counted(open_checkpointer, make_state):
    checkpointer = open_checkpointer()
    assert checkpointer.stall_seconds == 0
    checkpointer.save(1, make_state(1), {}, wait=True)
    assert 0 < checkpointer.stall_seconds < 60


# --- damage ---------------------------------------------------------------------------------------


def flip_array(path):
    flip_arrays(path / "state")


def truncate_array(path):
    file = largest_file(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def delete_array(path):
    largest_file(path).unlink()


def delete_half(path):
    for file in sorted(p for p in path.rglob("*") if p.is_file())[::2]:
        file.unlink()


def empty(path):
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


def flip_record(path):
    file = path / "record" / "record.json"
    file.write_text(file.read_text().replace("00ff", "01ff"))


def break_record(path):
    (path / "record" / "record.json").write_text('{"checksum": ')


def list_record(path):
    (path / "record" / "record.json").write_text("[1]")


@pytest.mark.parametrize(
    "damage",
    [
        flip_array,
        truncate_array,
        delete_array,
        delete_half,
        empty,
        flip_record,
        break_record,
        list_record,
    ],
)
def test_damaged_newest_falls_back_loudly(
    damage, open_checkpointer, tmp_path, make_state, abstract, assert_equal, caplog
):
    directory = tmp_path / "checkpoints"
    for step in (1, 2):
        open_checkpointer().save(step, make_state(step), {"token_hash": "00ff"}, wait=True)
    damage(directory / "00000002")
    caplog.clear()
    checkpointer = open_checkpointer()
    with caplog.at_level(logging.WARNING):
        restored = checkpointer.restore(abstract(make_state(0)))
    assert restored.step == 1
    assert_equal(restored.state, make_state(1))
    warnings = " ".join(r.getMessage() for r in caplog.records if r.name.startswith("maxlm"))
    assert "damaged checkpoint" in warnings
    assert str(directory / "00000002.damaged") in warnings
    assert names(directory) == ["00000001", "00000002.damaged"]
    checkpointer.save(2, make_state(2), {}, wait=True)  # the run comes by the same step again
    assert checkpointer.restore(abstract(make_state(0))).step == 2


def test_no_flipped_byte_gives_wrong_weights(
    open_checkpointer, tmp_path, make_state, abstract, assert_equal
):
    state = make_state(1, rows=4096)
    open_checkpointer().save(1, state, {}, wait=True)
    reader = CheckpointReader(tmp_path / "checkpoints")
    files = sorted(
        p for p in (tmp_path / "checkpoints" / "00000001" / "state").rglob("*") if p.is_file()
    )
    generator = random.Random(0)
    refused = 0
    for file in generator.choices(files, weights=[file.stat().st_size for file in files], k=40):
        before = file.read_bytes()
        flip(file, generator.random())
        try:
            assert_equal(reader.restore(abstract(state)).state, state)  # a byte that nobody reads
        except UserError:
            refused += 1
        file.write_bytes(before)
    assert refused > 30


def test_all_damaged_is_an_error_and_nothing_is_renamed(
    open_checkpointer, tmp_path, make_state, abstract
):
    directory = tmp_path / "checkpoints"
    for step in (1, 2):
        open_checkpointer().save(step, make_state(step), {}, wait=True)
        flip_array(directory / f"{step:08d}")
    with pytest.raises(UserError, match="no checkpoint could be restored") as error:
        open_checkpointer().restore(abstract(make_state(0)))
    assert "00000001" in str(error.value)
    assert "00000002" in str(error.value)
    assert names(directory) == ["00000001", "00000002"]


def test_too_little_memory_is_not_damage(
    open_checkpointer, tmp_path, make_state, abstract, monkeypatch
):
    open_checkpointer().save(1, make_state(1), {}, wait=True)

    def fail(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")

    monkeypatch.setattr(jax, "block_until_ready", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        open_checkpointer().restore(abstract(make_state(0)))


def test_records_skip_damaged_ones(open_checkpointer, tmp_path, make_state, caplog):
    checkpointer = open_checkpointer()
    for step in (1, 2, 3):
        checkpointer.save(step, make_state(step), {"config": {"seed": step}}, wait=True)
    break_record(tmp_path / "checkpoints" / "00000003")
    assert checkpointer.latest_record() == {"config": {"seed": 2}, "step": 2}
    assert [record["step"] for record in checkpointer.records()] == [2, 1]
    assert "00000003" in caplog.text


# --- other states ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda leaf: jax.ShapeDtypeStruct(
                (*leaf.shape[:-1], 4), leaf.dtype, sharding=leaf.sharding
            ),
            "[1024, 4]",
        ),
        (
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float16, sharding=leaf.sharding),
            "float16[1024, 8]",
        ),
    ],
    ids=["shape", "dtype"],
)
def test_another_shape_or_dtype_is_an_error(
    change, text, open_checkpointer, tmp_path, make_state, abstract
):
    state = make_state(1)
    open_checkpointer().save(1, state, {}, wait=True)
    wanted = abstract(state)
    wanted["model"].weights = change(wanted["model"].weights.get_value())
    with pytest.raises(UserError, match="model/weights: saved as float32") as error:
        open_checkpointer().restore(wanted)
    assert text in str(error.value)
    assert names(tmp_path / "checkpoints") == ["00000001"]  # not taken for damage


def test_missing_and_surplus_arrays_are_named(open_checkpointer, make_state, abstract):
    state = make_state(1)
    open_checkpointer().save(1, state, {}, wait=True)
    wanted = abstract(state)
    wanted["more"] = wanted.pop("step")
    with pytest.raises(UserError, match=r"more: not in the checkpoint\n  step: in the checkpoint"):
        open_checkpointer().restore(wanted)


def test_only_arrays_are_saved(open_checkpointer):
    with pytest.raises(TypeError, match="state leaf step is a int"):
        open_checkpointer().save(1, {"step": 1}, {})


# --- disks ----------------------------------------------------------------------------------------


def test_full_disk(small_disk, open_checkpointer, make_state, abstract, assert_equal):
    directory = small_disk / "checkpoints"
    checkpointer = open_checkpointer(directory, keep_last=5)
    state = make_state(1, rows=32768)  # 1 MiB that does not compress
    checkpointer.save(1, state, {}, wait=True)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(b"x" * (free - 2**18))
    checkpointer.save(2, make_state(2, rows=32768), {})
    with pytest.raises(
        UserError,
        match=r"step 2 .* was not saved: the disk is full .* whole one is of step 1; make room",
    ):
        checkpointer.wait()
    assert CheckpointReader(directory).steps() == [1]
    assert_equal(checkpointer.restore(abstract(state)).state, state)
    (small_disk / "filler").unlink()
    checkpointer.save(2, make_state(2, rows=32768), {}, wait=True)
    assert_equal(checkpointer.restore(abstract(state)).state, make_state(2, rows=32768))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "writing there is not permitted"),
    ],
)
def test_storage_errors_are_explained(
    number, words, open_checkpointer, tmp_path, make_state, monkeypatch, caplog
):
    checkpointer = open_checkpointer()
    checkpointer.save(1, make_state(1), {}, wait=True)

    def fail(*arguments):
        raise OSError(number, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(read_back, "read_back", fail)
        checkpointer.save(2, make_state(2), {})
        with pytest.raises(UserError, match=words):
            checkpointer.wait()
    failed = [record.maxlm_event for record in caplog.records if hasattr(record, "maxlm_event")]
    assert ("failed_save", 2, words) in [(e.kind, e.step, e.values.get("cause")) for e in failed]
    checkpointer.save(3, make_state(3), {}, wait=True)
    assert checkpointer.latest_record()["step"] == 3


def test_read_only_disk(small_disk, open_checkpointer, make_state):
    directory = small_disk / "checkpoints"
    checkpointer = open_checkpointer(directory)
    checkpointer.save(1, make_state(1), {}, wait=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="the file system is read-only"):
        checkpointer.save(2, make_state(2), {}, wait=True)
    assert CheckpointReader(directory).latest_record()["step"] == 1


def test_unknown_failure_keeps_its_cause(open_checkpointer, make_state, monkeypatch):
    checkpointer = open_checkpointer()
    monkeypatch.setattr(checkpointer._writer._saver, "save", lambda *a, **k: json.loads("{"))
    with pytest.raises(RunFailedError, match="checkpoint of step 1 was not saved: JSONDecodeError"):
        checkpointer.save(1, make_state(1), {})
