"""What checks make of figures that differ, hosts that are odd and folders that are not one."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from maxlm.config.schema import CheckpointConfig
from maxlm.health import folders, hosts, speed
from maxlm.health.finding import Finding, Level, median, names, worst

GIB = 2**30


def process(host="a", **changed):
    versions = {"maxlm": "1", "jax": "2", "python": "3", "driver": "4", "code of maxlm": "5"}
    return {
        "host": host,
        "devices": ["H100"] * 8,
        "versions": {**versions, **changed.pop("versions", {})},
        "device_memory": [80 * GIB] * 8,
        "host_memory": 500 * GIB,
        **changed,
    }


def test_words():
    assert (
        names(f"h{number}" for number in range(11)) == "h0, h1, h2, h3, h4, h5, h6, h7 and 3 more"
    )
    assert names(["b", "a", "b"]) == "b, a"
    assert median([3.0, 1.0, 2.0]) == median([3.0, 2.0]) == 2.0
    assert worst([]) is Level.OK
    findings = [
        Finding("a", Level.OK, ""),
        Finding("b", Level.PROBLEM, ""),
        Finding("c", Level.WARNING, ""),
    ]
    assert worst(findings) is Level.PROBLEM


def test_versions_that_differ_are_named_with_their_hosts():
    same = [process("a"), process("b")]
    assert hosts.check_versions(same).level is Level.OK
    odd = [
        *same,
        process("c", versions={"jax": "2.1"}),
        process("d", versions={"code of maxlm": "6"}),
    ]
    finding = hosts.check_versions(odd)
    assert finding.level is Level.PROBLEM
    assert finding.text == "jax 2.1 instead of 2 on c; code of maxlm 6 instead of 5 on d"


def test_hosts_with_other_devices_are_named():
    finding = hosts.check_devices([process("a"), process("b"), process("c", devices=["H100"] * 7)])
    assert finding.level is Level.PROBLEM
    assert "23 x H100; 3 processes on 3 hosts" in finding.text
    assert "c has 7, others have 8" in finding.cure
    assert hosts.check_devices([process("a")]).level is Level.OK


@pytest.mark.parametrize(
    ("changed", "needs", "level", "words"),
    [
        ({}, {}, Level.OK, "80.0 GiB a device"),
        ({}, {"state_bytes": 79 * GIB}, Level.OK, "79.00 GiB a device"),
        ({}, {"state_bytes": 81 * GIB}, Level.PROBLEM, "more mesh.fsdp"),
        ({"device_memory": [70 * GIB] * 8}, {}, Level.WARNING, "end what else runs on b"),
        ({"host_memory": 90 * GIB}, {"host_bytes": 80 * GIB}, Level.OK, "90.0 GiB free"),
        ({"host_memory": 70 * GIB}, {"host_bytes": 80 * GIB}, Level.WARNING, "free memory on b"),
        ({"host_memory": None}, {"host_bytes": 80 * GIB}, Level.OK, ""),
    ],
)
def test_memory(changed, needs, level, words):
    finding = hosts.check_memory([process("a"), process("b", **changed)], **needs)
    assert finding.level is level
    assert words in str(finding)


def test_processes_of_one_host_save_into_its_memory_together():
    two = [process("a", host_memory=150 * GIB), process("a", host_memory=150 * GIB)]
    assert hosts.check_memory(two, host_bytes=70 * GIB).level is Level.OK
    finding = hosts.check_memory(two, host_bytes=80 * GIB)
    assert finding.level is Level.WARNING
    assert "saving copies 160.0 GiB" in finding.cure


def test_clocks_count_at_their_best_and_wrong_ones_are_named():
    # The second comes late out of the first barrier, the third's clock is wrong.
    rounds = [
        [(100.0, "a"), (107.0, "b"), (95.0, "c"), (100.0, "d")],
        [(200.0, "a"), (200.1, "b"), (195.0, "c"), (200.0, "d")],
    ]
    finding = hosts.judge_clocks(rounds)
    assert finding.level is Level.WARNING
    assert finding.values["offset_seconds"] == pytest.approx({"a": 0, "b": 0.1, "c": -5, "d": 0})
    assert finding.cure == "set the clock (chrony, ntpd) of c (-5.0 s)"
    assert hosts.judge_clocks([[(1.0, "a"), (1.5, "b")]]).level is Level.OK


def test_code_is_told_apart_by_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts.maxlm, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "a.py").write_text("x = 1\n")
    before = hosts.code_hash()
    assert before == hosts.code_hash()
    (tmp_path / "a.py").write_text("x = 2\n")
    assert hosts.code_hash() != before


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_of_this_host_is_written_and_read(tmp_path):
    finding = folders.check_folder(tmp_path, 2**20)
    assert finding.level in (Level.OK, Level.WARNING)  # by the disk's speed
    assert finding.values.keys() == {"write_bytes_per_second", "read_bytes_per_second"}
    assert not list(tmp_path.iterdir())
    assert folders.check_folder(tmp_path / "none").level is Level.PROBLEM


@pytest.mark.parametrize(
    ("reports", "level", "words"),
    [
        (
            [{"host": "a", "write_seconds": 1, "read_seconds": 1}] * 2,
            Level.OK,
            "writes 100 MB/s and reads 100 MB/s",
        ),
        (
            [
                {"host": "a", "write_seconds": 1, "read_seconds": 1},
                {"host": "b", "write_seconds": 4, "read_seconds": 0.5},
            ],
            Level.WARNING,
            "is seen by 2 hosts; the slowest host writes 25 MB/s",
        ),
        (
            [{"host": "a", "write_seconds": 1, "read_seconds": 1}, {"host": "b", "unseen": True}],
            Level.PROBLEM,
            "not one folder for all hosts: b do not see",
        ),
        (
            [{"host": "a", "error": "cannot be written: Read-only file system"}],
            Level.PROBLEM,
            "on a it cannot be written",
        ),
    ],
)
def test_folders_that_are_not_one_or_slow(reports, level, words):
    finding = folders.judge_folder(Path("/runs/x"), reports, 100_000_000)
    assert finding.level is level
    assert words in str(finding)


def test_room_for_checkpoints(tmp_path, monkeypatch):
    usage = folders.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: usage._replace(free=300))
    config = CheckpointConfig(keep_last=2)
    levels = [folders.check_space(tmp_path / "new", size, config).level for size in (100, 101, 151)]
    assert levels == [Level.OK, Level.WARNING, Level.PROBLEM]
    # What is there already will make room for what comes.
    (tmp_path / "checkpoints" / "00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "00000001" / "x").write_bytes(b"x" * 60)
    assert folders.check_space(tmp_path, 120, config).level is Level.OK


def test_bytes_of_a_checkpoint():
    state = {"a": jax.ShapeDtypeStruct((3, 5), np.float32), "b": jax.ShapeDtypeStruct((), np.int32)}
    assert folders.saved_bytes(state) == 64


def test_compile_cache(tmp_path):
    (tmp_path / "program").write_bytes(b"x" * 2**20)
    finding = folders.check_cache(tmp_path)
    assert finding.text.startswith(f"{tmp_path} has 1 files, 1.0 MiB")
    assert "every start compiles anew" in folders.check_cache(None).text


# --- speed ----------------------------------------------------------------------------------------


def test_the_slow_device_is_named():
    rates = [("a", number, 700e12) for number in range(7)] + [("b", 7, 500e12)]
    finding = speed.judge_matmul(rates, "NVIDIA H100 80GB HBM3")
    assert finding.level is Level.WARNING
    assert "device 7 of b" in finding.cure
    assert "median 700.00 TFLOP/s, slowest 500.00, data sheet 989" in finding.text
    assert speed.judge_matmul(rates[:7], "NVIDIA H100 80GB HBM3").level is Level.OK
    # All of them, or parts of one processor that disturb each other.
    capped = [(host, number, rate / 2) for host, number, rate in rates[:7]]
    assert "power limits" in speed.judge_matmul(capped, "NVIDIA H100 80GB HBM3").cure
    assert speed.judge_matmul(rates, "cpu", shared=True).level is Level.OK


def test_rates_are_measured_on_every_device():
    rates = speed.matmul_rates()
    assert len(rates) == jax.local_device_count()
    assert all(1e7 < rate < 1e14 for rate in rates)


def test_links_are_measured_along_each_axis():
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 1, 4), ("data", "stage", "fsdp"))
    findings = speed.check_links(mesh)
    assert [finding.check for finding in findings] == ["link data", "link fsdp"]
    assert all(1e5 < finding.values["bytes_per_second"] < 1e12 for finding in findings)
    assert all("no nominal rate is known" in finding.text for finding in findings)


class Device:
    def __init__(self, kind, process=0, slice_index=0):
        self.device_kind, self.process_index, self.slice_index = kind, process, slice_index


class FakeMesh:
    axis_names = ("data", "fsdp")

    def __init__(self, devices):
        self.devices = np.asarray(devices, object)
        self.shape = dict(zip(self.axis_names, self.devices.shape, strict=True))


@pytest.mark.parametrize(
    ("devices", "data", "fsdp"),
    [
        # Two slices: `data` goes over the network, `fsdp` over two links of the torus.
        ([[Device("TPU v5p", 0, s) for _ in range(2)] for s in range(2)], 6.25e9, 200e9),
        ([[Device("NVIDIA H100 80GB HBM3", p) for _ in range(2)] for p in range(2)], None, 450e9),
        ([[Device("NVIDIA H100 PCIe") for _ in range(2)] for _ in range(2)], None, None),
        ([[Device("cpu") for _ in range(2)] for _ in range(2)], None, None),
    ],
)
def test_nominal_rates(devices, data, fsdp):
    mesh = FakeMesh(devices)
    assert speed.nominal_rate(mesh, "data") == data
    assert speed.nominal_rate(mesh, "fsdp") == fsdp


def test_a_slow_link_is_told():
    assert speed.judge_link("data", 2, 100e9, 450e9).level is Level.WARNING
    finding = speed.judge_link("fsdp", 8, 300e9, 450e9)
    assert finding.level is Level.OK
    assert (
        finding.text
        == "mesh.fsdp=8: a device receives 300.00 GB/s in an all-gather, 67% of nominal 450"
    )
