import jax
import numpy as np

from maxlm import runtime
from maxlm.config.schema import ProfileConfig


def test_profile_window_traces_its_steps_only(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append(("start", path)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    window = runtime.ProfileWindow(ProfileConfig(start_step=3, num_steps=2), tmp_path)
    seen = []
    for step in range(1, 8):
        window.update(step)
        seen.append((step, len(calls)))
    window.close()
    assert seen == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2)]
    assert calls == [("start", str(tmp_path)), ("stop",)]


def test_profile_window_that_is_over_is_told_once(tmp_path, caplog):
    caplog.set_level("INFO")
    window = runtime.ProfileWindow(ProfileConfig(start_step=3, num_steps=2), tmp_path)
    for step in range(5, 9):
        window.update(step)
    assert caplog.messages == [
        "runtime.profile.start_step=3 was before this process began, at step 5: no trace"
    ]


def test_profile_window_that_the_run_ends_in_is_written(tmp_path):
    window = runtime.ProfileWindow(ProfileConfig(start_step=1, num_steps=100), tmp_path)
    window.update(1)
    jax.block_until_ready(jax.numpy.ones(3) + np.ones(3))
    window.close()
    window.close()
    assert any(path.is_file() for path in tmp_path.rglob("*.xplane.pb"))
    runtime.ProfileWindow(None, tmp_path).update(1)
