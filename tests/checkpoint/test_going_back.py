"""A run goes back to an older checkpoint when it is asked to, and once."""

import pytest

from maxlm.checkpoint import Checkpointer, CheckpointReader
from maxlm.config.errors import UserError
from maxlm.config.schema import RunConfig
from tests.damage import flip_arrays
from tests.train.conftest import make_run


@pytest.fixture
def folder(tmp_path, make_state):
    """Return a folder with checkpoints of steps 1 to 4, and one set aside before."""
    folder = tmp_path / "run" / "checkpoints"
    (folder / "00000003.later").mkdir(parents=True)
    save(folder, run_of(tmp_path), make_state, 1, 2, 3, 4)
    return folder


def run_of(tmp_path, rate=0.01, **checkpoint):
    settings = make_run(tmp_path, tmp_path / "run")
    settings |= {"optimizer": {"learning_rate": rate}, "checkpoint": {"keep_last": 9, **checkpoint}}
    return RunConfig.model_validate(settings)


def save(folder, config, make_state, *steps):
    with Checkpointer(folder, config.checkpoint) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step), {"config": config.model_dump(mode="json")})


def start(folder, config, wanted):
    """Return the step that a run with these settings goes on from."""
    with Checkpointer(folder, config.checkpoint) as checkpointer:
        checkpointer.go_back(config)
        record = checkpointer.latest_record()
        restored = checkpointer.restore(wanted)
        assert restored.step == record["step"]
        return restored.step


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_later_ones_are_set_aside_and_nothing_is_deleted(
    folder, tmp_path, make_state, abstract, caplog
):
    wanted = abstract(make_state(0))
    config = run_of(tmp_path, resume_from=2)
    assert start(folder, config, wanted) == 2
    after = ["00000001", "00000002", "00000003.later", "00000003.later-2", "00000004.later"]
    assert names(folder) == after
    events = [record.maxlm_event for record in caplog.records if hasattr(record, "maxlm_event")]
    assert [(e.kind, e.step, e.values["later"]) for e in events] == [
        ("gone_back", 2, 4),
        ("gone_back", 2, 3),
    ]
    # Killed before it saves, it goes back again, which changes nothing.
    assert start(folder, config, wanted) == 2
    assert names(folder) == after
    save(folder, config, make_state, 3, 4)
    for kept in ("00000003.later-2", "00000004.later"):
        whole = CheckpointReader(folder).directory / kept / "record" / "record.json"
        assert whole.is_file()


def test_the_same_start_goes_on_and_another_goes_back_again(
    folder, tmp_path, make_state, abstract, caplog
):
    caplog.set_level("INFO")
    wanted = abstract(make_state(0))
    config = run_of(tmp_path, resume_from=2)
    assert start(folder, config, wanted) == 2
    save(folder, config, make_state, 3, 4)
    # Requeued, on whatever is not the run itself.
    assert start(folder, run_of(tmp_path, resume_from=2, every=7), wanted) == 4
    assert "checkpoint.resume_from=2 is done: going on after step 4" in caplog.text
    # The cure did not help, another is tried; or it should have gone back further.
    assert start(folder, run_of(tmp_path, rate=0.005, resume_from=2), wanted) == 2
    assert start(folder, run_of(tmp_path, resume_from=1), wanted) == 1
    assert start(folder, run_of(tmp_path), wanted) == 1


def test_where_it_cannot_go_back_to(folder, tmp_path, make_state, abstract):
    wanted, before = abstract(make_state(0)), names(folder)
    for step in (0, 5):
        message = rf"checkpoint.resume_from={step}: .* has no whole checkpoint of that step; it has \[4, 3, 2, 1\]"
        with pytest.raises(UserError, match=message):
            start(folder, run_of(tmp_path, resume_from=step), wanted)
    flip_arrays(folder / "00000002/state")
    with pytest.raises(UserError, match=r"no checkpoint could be restored:\n.*00000002"):
        start(folder, run_of(tmp_path, resume_from=2), wanted)
    assert names(folder) == before


def test_the_newest_is_where_it_would_go_back_to(folder, tmp_path, make_state, abstract):
    before = names(folder)
    assert start(folder, run_of(tmp_path, resume_from=4), abstract(make_state(0))) == 4
    assert names(folder) == before
