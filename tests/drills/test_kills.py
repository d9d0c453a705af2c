"""SIGKILL at random moments of start-up, training and saves: the run that is started again each time
ends with the bits of the run that nothing happened to.
"""

import random
import time

import pytest

from tests.drills.conftest import assert_equal_runs, last_step, run_until_done, undisturbed

KILLS = 50
STEPS = 400


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_random_kills(write_run, tmp_path, record_property):
    # Every third step is saved, so that many of the kills fall into a save or a deletion.
    sections = {
        "train": {"num_steps": STEPS, "eval_every": 50},
        "checkpoint": {"every": 3, "keep_last": 2},
    }
    run_until_done(write_run("golden", **sections), undisturbed)
    kills = RandomKills(KILLS, STEPS, tmp_path / "killed")
    record_property("seed", kills.seed)
    starts = run_until_done(write_run("killed", **sections), kills)
    assert starts.codes == [-9] * KILLS + [0]
    assert_equal_runs(tmp_path / "killed", tmp_path / "golden")
    record_property("kills", KILLS)
    record_property("in start-up", kills.in_start_up)
    record_property("in training", kills.in_training)
    record_property("steps", STEPS)
    record_property("steps that differ", 0)
    record_property("seconds", round(starts.seconds))


class RandomKills:
    """Kill the first so many processes of a run: every third within its first seconds, the others
    some random steps after their first one.
    """

    def __init__(self, kills, steps, run_dir):
        self.seed = time.time_ns() % 2**32
        self.in_start_up = self.in_training = 0
        self._rng = random.Random(self.seed)
        self._kills, self._steps, self._run_dir = kills, steps, run_dir

    def __call__(self, process, number):
        if number >= self._kills:
            return
        before, most = self._file(), self._most_steps(number)
        if number % 3 == 2 or most < 1:
            time.sleep(self._rng.uniform(0, 6))
        else:
            self._train(process, before, self._rng.randint(1, most))
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        trained = self._file() != before and last_step(self._run_dir) > 0
        self.in_training += trained
        self.in_start_up += not trained

    def _most_steps(self, number):
        """Return how many steps a process may do, so that the run is not done before all kills."""
        left = self._steps - last_step(self._run_dir) - 20
        return 2 * left // (self._kills - number)

    def _train(self, process, before, steps, seconds=120):
        """Wait until the process has done so many steps, and a moment longer."""
        deadline, first = time.monotonic() + seconds, None
        while time.monotonic() < deadline and process.poll() is None:
            if self._file() != before:
                first = last_step(self._run_dir) if first is None else first
                if last_step(self._run_dir) >= first + steps:
                    break
            time.sleep(0.005)
        time.sleep(self._rng.uniform(0, 0.05))

    def _file(self):
        """Identify the file of metrics: each process begins a new one."""
        path = self._run_dir / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else None
