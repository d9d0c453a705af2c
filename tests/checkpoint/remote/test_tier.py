"""What a run finds in its store when it begins, and what its end says of the last copy."""

import logging
import shutil

import pytest

from maxlm.checkpoint import layout
from maxlm.checkpoint.remote import SlowTier, bring_back
from maxlm.checkpoint.remote.place import StoreError, open_place
from maxlm.checkpoint.remote.store import Store
from maxlm.config.checks import find_problems
from maxlm.config.errors import RunFailedError, UserError
from tests.checkpoint.remote.conftest import contents, run_config, save


def copied_run(tmp_path, url, *steps, **settings):
    """Return the config of a run whose checkpoints were saved and copied."""
    config = run_config(tmp_path / "run", url, num_steps=max(steps), **settings)
    bring_back(config)
    with SlowTier(config, tmp_path / "run") as tier:
        for step in steps:
            save(tmp_path / "run", step)
            tier.add(step)
            assert tier._copier.wait(60)
    return config


def saved(run_dir):
    return layout.saved_steps(run_dir / "checkpoints")


def test_a_run_goes_on_elsewhere_from_the_store_alone(url, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    copied_run(tmp_path, url, 10, 20)
    elsewhere = run_config(tmp_path / "new", url)
    bring_back(elsewhere)
    assert saved(tmp_path / "new") == [20]
    run, new = contents(tmp_path / "run"), contents(tmp_path / "new")
    old = {name for name in run if name.startswith("checkpoints/00000010")}
    assert {name: run[name] for name in run.keys() - old - {"lock"}} == {
        name: new[name] for name in new.keys() - {"lock"}
    }
    assert "(none), in" in caplog.text
    assert "fetched the checkpoint of step 20" in caplog.text


def test_only_what_is_newer_is_fetched(url, tmp_path):
    config = copied_run(tmp_path, url, 10, 20)
    folder = tmp_path / "run/checkpoints"
    shutil.rmtree(folder / "00000020")
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1}\n')
    bring_back(config)
    assert saved(tmp_path / "run") == [20, 10]
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 20
    save(tmp_path / "run", 30)
    before = contents(tmp_path / "run")
    bring_back(config)
    assert contents(tmp_path / "run").keys() == before.keys()


def test_a_damaged_copy_is_passed_over_with_a_message(url, tmp_path, caplog):
    copied_run(tmp_path, url, 10, 20)
    system, root = open_place(url)
    system.pipe_file(f"{root}/checkpoints/00000020/state/d/0", b"x" * 120)
    bring_back(run_config(tmp_path / "new", url))
    assert saved(tmp_path / "new") == [10]
    assert "the copy of step 20" in caplog.text
    assert "is damaged" in caplog.text
    system.pipe_file(f"{root}/checkpoints/00000010/state/d/0", b"x")
    with pytest.raises(UserError, match=r"no copy in .* is whole:\n  step 20: .*\n  step 10: "):
        bring_back(run_config(tmp_path / "third", url))
    assert saved(tmp_path / "third") == []


def test_a_record_that_is_damaged_here_is_replaced_from_the_store(url, tmp_path):
    config = copied_run(tmp_path, url, 10, 20)
    record = tmp_path / "run/checkpoints/00000020" / layout.RECORD / layout.RECORD_FILE
    whole = record.read_bytes()
    record.write_text("{")
    bring_back(config)
    assert record.read_bytes() == whole
    assert (tmp_path / "run/checkpoints/00000020.damaged").is_dir()


def test_a_newer_copy_comes_for_one_that_proved_damaged(url, tmp_path):
    config = copied_run(tmp_path, url, 10, 20)
    shutil.rmtree(tmp_path / "run/checkpoints/00000020")
    tier = SlowTier(config, tmp_path / "run")
    assert tier.fetch_newer(10)
    assert saved(tmp_path / "run") == [20, 10]
    assert not tier.fetch_newer(20)


def test_copies_of_a_future_that_is_given_up_are_not_fetched(url, tmp_path):
    config = copied_run(tmp_path, url, 10, 20)
    shutil.rmtree(tmp_path / "run/checkpoints/00000020")
    with SlowTier(config, tmp_path / "run") as tier:
        tier.resume_from(10)
    store = Store(config.checkpoint.store)
    assert store.steps() == [10]
    assert store.partial_steps() == []
    bring_back(config)
    assert saved(tmp_path / "run") == [10]
    # It comes to step 20 again, by another way.
    save(tmp_path / "run", 20, b"another way")
    with SlowTier(config, tmp_path / "run") as tier:
        tier.add(20)
    store.fetch(20, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "run/checkpoints/00000020")


def test_a_step_to_go_back_to_comes_from_the_store_if_it_is_here_no_more(url, tmp_path):
    config = copied_run(tmp_path, url, 10, 20, 30)
    checkpoint = config.checkpoint.model_copy(update={"resume_from": 10})
    back = config.model_copy(update={"checkpoint": checkpoint})
    for step in (10, 20):
        shutil.rmtree(layout.step_path(tmp_path / "run/checkpoints", step))
    bring_back(back)
    assert saved(tmp_path / "run") == [30, 10]
    bring_back(run_config(tmp_path / "new", url))
    assert saved(tmp_path / "new") == [30]
    elsewhere = run_config(tmp_path / "third", url)
    bring_back(elsewhere.model_copy(update={"checkpoint": checkpoint}))
    assert saved(tmp_path / "third") == [30, 10]
    # The run that went back goes on, and has deleted that step since.
    shutil.rmtree(tmp_path / "run/checkpoints")
    save(tmp_path / "run", 40, went_back=10)
    bring_back(back)
    assert saved(tmp_path / "run") == [40]


def test_a_store_is_of_one_run(url, tmp_path):
    copied_run(tmp_path, url, 10)
    save(tmp_path / "other", 5)
    with pytest.raises(UserError, match=r"has the checkpoints of another run than run_dir="):
        bring_back(run_config(tmp_path / "other", url))


@pytest.fixture
def unreachable(monkeypatch):
    def fail(self, pattern):
        raise StoreError("no route to host")

    monkeypatch.setattr(Store, "_named", fail)


def test_without_an_answer_nothing_begins_anew_and_nothing_else_stops(
    url, tmp_path, unreachable, caplog
):
    with pytest.raises(RunFailedError, match=r"no route to host.*does not begin anew"):
        bring_back(run_config(tmp_path / "run", url))
    save(tmp_path / "run", 10)
    bring_back(run_config(tmp_path / "run", url))
    assert "going on from" in caplog.text
    SlowTier(run_config(tmp_path / "run", url), tmp_path / "run").resume_from(10)


def test_the_end_says_that_the_last_copy_is_not_there(faulty_url, faults, tmp_path, caplog):
    config = run_config(tmp_path / "run", faulty_url, num_steps=10)
    faults(lambda path, number: OSError("quota") if "checkpoints" in path else None)
    bring_back(config)
    save(tmp_path / "run", 10)
    with (
        pytest.raises(RunFailedError, match=r"not in faulty://.*quota; the run is done: start"),
        SlowTier(config, tmp_path / "run") as tier,
    ):
        tier.add(10)
    # One that is stopped before its end goes on later, and says it.
    config = run_config(tmp_path / "run", faulty_url, num_steps=20)
    with SlowTier(config, tmp_path / "run") as tier:
        tier.add(10)
    assert "the next start copies it" in caplog.text
    # As it does, with nothing more to train.
    faults(lambda path, number: None)
    with SlowTier(config, tmp_path / "run") as tier:
        tier.resume_from(10)
    assert Store(config.checkpoint.store).steps() == [10]


def test_the_end_waits_no_longer_than_asked(faulty_url, faults, tmp_path):
    config = run_config(tmp_path / "run", faulty_url, num_steps=10, wait_seconds=0.05)
    bring_back(config)
    faults(lambda path, number: 1.0)
    save(tmp_path / "run", 10)
    with (
        pytest.raises(RunFailedError, match=r"it took longer than 0.05 s"),
        SlowTier(config, tmp_path / "run") as tier,
    ):
        tier.add(10)


def test_without_a_store_nothing_happens(tmp_path):
    config = run_config(tmp_path / "run", "memory://x")
    config = config.model_copy(
        update={"checkpoint": config.checkpoint.model_copy(update={"store": None})}
    )
    bring_back(config)
    with SlowTier(config, tmp_path / "run") as tier:
        tier.add(10)
        tier.resume_from(10)
        assert not tier.holds(10)
        assert not tier.fetch_newer(0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("url", ["{run}/copies", "{run}", "file://{run}/../run/x", "{run}/.."])
def test_places_within_each_other_are_refused(tmp_path, url):
    config = run_config(tmp_path / "run", url.format(run=tmp_path / "run"))
    problems = find_problems({name: getattr(config, name) for name in type(config).model_fields})
    assert ["lie in each other" in str(problem) for problem in problems] == [True]
