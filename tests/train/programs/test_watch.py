"""Compilations are counted by name, and late ones are told."""

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from maxlm.metrics.history.events import EventHandler
from maxlm.train.programs.watch import CompileWatch


def test_programs_are_counted_while_it_watches():
    def tripled(x):
        return 3 * x

    jitted = jax.jit(tripled)
    with CompileWatch(lambda: False) as watch:
        for _ in range(3):
            jitted(jnp.ones(3))
        jitted(jnp.ones(4))
    jitted(jnp.ones(5))
    names = [name for name in watch.counts if "tripled" in name]
    assert [watch.counts[name] for name in names] == [2]
    assert watch.seconds > 0
    assert watch.longest(1000)[names[0]]["times"] == 2


def test_what_the_folder_of_programs_has_is_not_compiled_anew(tmp_path):
    def quartered(x):
        return x / 4 + 1

    settings = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    x = jnp.ones(3)
    try:
        compilation_cache.reset_cache()
        for name, value in settings.items():
            jax.config.update(name, value)
        with CompileWatch(lambda: False) as first:
            jax.jit(quartered)(x)
        jax.clear_caches()
        with CompileWatch(lambda: False) as second:
            jax.jit(quartered)(x)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert [(watch.counts.total(), watch.missed.total()) for watch in (first, second)] == [
        (1, 1),
        (1, 0),
    ]


def test_late_compilations_are_events(caplog, monkeypatch):
    monkeypatch.setattr("maxlm.train.programs.watch.LEAST_SECONDS", 0.0)
    caplog.set_level("INFO")
    late = False

    @jax.jit
    def squared(x):
        return x * x

    arrays = [jnp.ones(size) for size in (2, 3, 4)]
    with CompileWatch(lambda: late):
        squared(arrays[0])
        late = True
        squared(arrays[0])  # is there already
        squared(arrays[1])
        jax.jit(lambda x: x - 1)(arrays[2])
    handler = EventHandler()
    for record in caplog.records:
        if hasattr(record, "maxlm_event"):
            handler.handle(record)
    found = [(one.kind, one.level, one.values["times"]) for one in handler._waiting]
    assert found == [("late_compile", "WARNING", 2), ("late_compile", "INFO", 1)]
    assert "squared" in handler._waiting[0].text
