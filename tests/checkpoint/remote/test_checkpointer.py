"""Real arrays, saved here and copied: what is damaged here comes back whole from the store."""

from maxlm.checkpoint import Checkpointer, SlowTier, bring_back
from tests.checkpoint.remote.conftest import run_config
from tests.damage import flip_arrays


def test_damaged_here_and_whole_in_the_store(url, tmp_path, make_state, abstract, assert_equal):
    run = tmp_path / "run"
    config = run_config(run, url, num_steps=20)
    bring_back(config)

    def open_run():
        tier = SlowTier(config, run)
        return tier, Checkpointer(run / "checkpoints", config.checkpoint, tier)

    tier, saver = open_run()
    with tier, saver:
        for step in (10, 20):
            saver.save(step, make_state(step), {}, wait=True)
            assert tier._copier.wait(60)
    flip_arrays(run / "checkpoints/00000020/state")
    tier, saver = open_run()
    with tier, saver:
        restored = saver.restore(abstract(make_state(20)))
    assert restored.step == 20
    assert_equal(restored.state, make_state(20))
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["00000010", "00000020", "00000020.damaged"]
