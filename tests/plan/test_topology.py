"""What `--topology` may be, and what its mistakes are answered with."""

import importlib.util

import pytest

from maxlm.config.errors import UserError
from maxlm.plan.topology import Topology, devices_of, parse_topology


def test_a_topology_knows_its_devices_and_its_rings():
    assert parse_topology("v5p:4x4x8") == Topology("v5p", (4, 4, 8))
    assert Topology("v5p", (4, 4, 8)).device_count == 128
    assert Topology("tpu7x", (4, 4, 4), slices=2).device_count == 256
    assert Topology("v5p", (4, 4, 8)).wrap == (True, True, True)
    assert Topology("v5p", (4, 4, 2)).wrap == (False, False, False)
    assert Topology("v6e", (8, 16)).wrap == (False, True, False)
    assert str(Topology("v6e", (8, 16), slices=2)) == "2 slices of v6e:8x16"


@pytest.mark.parametrize(
    ("text", "slices", "answer"),
    [
        ("v5x:4x4x4", 1, "did you mean v5p"),
        ("H100", 1, "known are v4, v5e, v5p, v6e, tpu7x"),
        ("v5p:4x4", 1, "a slice of v5p has 3 sides; write it as v5p:4x4x4"),
        ("v6e:4x0", 1, "a slice of v6e has 2 sides"),
        ("v6e:3x4", 1, "use v6e:4x4"),
        ("v5p:4x4x4", 0, "--slices 0"),
    ],
)
def test_mistakes_are_told_with_a_cure(text, slices, answer):
    with pytest.raises(UserError, match=answer):
        parse_topology(text, slices)


def test_without_libtpu_the_cure_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="scripts/setup tpu"):
        devices_of(Topology("v5p", (4, 4, 4)))
