"""Where compiled programs are kept, and what a kill has torn of them."""

import os
import zlib
from pathlib import Path

import jax
import pytest
import zstandard

from maxlm.train.programs import cache
from maxlm.train.programs.cache import drop_torn, folder_of_programs, kept_programs


@pytest.fixture
def no_cache():
    """No folder of programs, as a user's process begins."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    yield
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_folder(tmp_path, monkeypatch, no_cache):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert folder_of_programs(None, tmp_path) is None
    assert folder_of_programs("~/x", tmp_path) == Path("~/x").expanduser()
    own = folder_of_programs("auto", tmp_path)
    assert own.parent == tmp_path / "compiled"
    monkeypatch.setattr(cache, "_processor", lambda: "another")
    assert folder_of_programs("auto", tmp_path) not in (None, own)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert folder_of_programs("auto", tmp_path) == tmp_path / "compiled"
    jax.config.update("jax_compilation_cache_dir", "/named")
    assert folder_of_programs("auto", tmp_path) == Path("/named")


def test_several_devices_of_the_cpu_get_no_programs_that_were_kept(tmp_path, no_cache, caplog):
    assert jax.device_count() == 8
    caplog.set_level("INFO")
    assert folder_of_programs("auto", tmp_path) is None
    assert folder_of_programs(str(tmp_path / "named"), tmp_path) is None
    with kept_programs("auto", tmp_path):
        assert "is not used" not in caplog.text
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "named"))
    assert folder_of_programs(None, tmp_path) is None
    with kept_programs(None, tmp_path):
        assert f"{tmp_path}/named is not used: several devices of the CPU" in caplog.text


def test_programs_are_kept_in_the_run_and_nowhere_after_it(tmp_path, monkeypatch, no_cache):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(cache, "LEAST_SECONDS", 0.0)
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    try:
        with kept_programs("auto", tmp_path):
            jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()
        kept = list((tmp_path / "compiled").rglob("*-cache"))
        assert kept
        with kept_programs(None, tmp_path):
            jax.jit(lambda x: x * 5 + 1)(2.0).block_until_ready()
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    assert list((tmp_path / "compiled").rglob("*-cache")) == kept
    assert jax.config.jax_compilation_cache_dir is None


def test_torn_programs_are_deleted_and_whole_ones_stay(tmp_path):
    packed = {
        "a": zstandard.ZstdCompressor().compress(os.urandom(10_000)),
        "b": zlib.compress(os.urandom(10_000)),
    }
    for name, data in packed.items():
        (tmp_path / f"{name}-whole-cache").write_bytes(data)
        (tmp_path / f"{name}-torn-cache").write_bytes(data[:-10])
        (tmp_path / f"{name}-empty-cache").write_bytes(b"")
        old = tmp_path / f"{name}-old-cache"  # looked at by a start before
        old.write_bytes(data[:-10])
        os.utime(old, (0, 0))
    drop_torn(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["a-old-cache", "a-whole-cache", "b-old-cache", "b-whole-cache"]
    drop_torn(tmp_path / "nothing")
