"""Rotary positions of config.json, and the ways to stretch them for long contexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maxlm.checkpoint.hf.families.keys import CannotExpressError, Reading, first_of_kind
from maxlm.config.model import ModelConfig

_ORIGINAL = "original_max_position_embeddings"
_YARN = ("attention_factor", "mscale", "mscale_all_dim", "truncate")
SCALINGS: Mapping[str, Mapping[str, str]] = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor", _ORIGINAL: "original_length"},
    "yarn": {
        "factor": "factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        _ORIGINAL: "original_length",
        **{name: name for name in _YARN},
    },
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
        _ORIGINAL: "original_length",
    },
    "longrope": {
        "short_factor": "short_factor",
        "long_factor": "long_factor",
        "factor": "factor",
        "attention_factor": "attention_factor",
        _ORIGINAL: "original_length",
    },
}
"""Ways to stretch rotary positions, by the name they have in both worlds, with their settings."""
_SPELT = {"su": "longrope"}
_OPTIONAL = {"beta_fast", "beta_slow", *_YARN}


@dataclass(frozen=True)
class Rope:
    """Rotary positions: `rope_theta` and `rope_scaling`, or both in `rope_parameters`.

    Attributes:
      kind: the kind of mixers that have them.
      theta: the base where the file has none.
      fraction: the share of a head's numbers that is turned, where the file says none.
      share: the key that says it besides `partial_rotary_factor`.
      layout: which numbers make a pair.
    """

    kind: str = "attention"
    theta: float = 10_000.0
    fraction: float = 1.0
    share: str = "partial_rotary_factor"
    layout: str = "half"

    def read(self, reading: Reading) -> None:
        """Set the mixers' positions."""
        scaling, newer = reading.get("rope_scaling"), reading.get("rope_parameters")
        base = float(reading.get("rope_theta", self.theta))
        share = reading.get(self.share, self.fraction)
        given = {"rope_theta": base, self.share: share, **(newer or {}), **(scaling or {})}
        reading.set(f"{self.kind}.position", self.position(reading, given))

    def position(self, reading: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the position that a set of keys says, and note what it cannot say."""
        left = dict(given)
        position: dict[str, Any] = {"kind": "rope", "theta": float(left.pop("rope_theta"))}
        position["scaling"] = None  # said, for a block would take the one of `model.block`
        share = float(left.pop("partial_rotary_factor", left.pop(self.share, self.fraction)))
        left.pop(self.share, None)
        if share != 1.0:
            position["rotary_dim"] = int(self._head_dim(reading) * share)
        if self.layout != "half":
            position["layout"] = self.layout
        name = left.pop("rope_type", left.pop("type", "default"))
        left.pop("type", None)
        name = _SPELT.get(name, name)
        if name != "default" and name not in SCALINGS:
            reading.refuse("rope_type", name, "default or " + " or ".join(SCALINGS))
        elif name != "default":
            position["scaling"] = self._scaling(reading, name, left)
        elif left:
            reading.problems.append(f"rope_parameters has {sorted(left)}, which are not known")
        return position

    def _head_dim(self, reading: Reading) -> int:
        width = reading.get("hidden_size", 0) // reading.get("num_attention_heads", 1)
        return int(reading.get("head_dim", width))

    def _scaling(self, reading: Reading, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        names = SCALINGS[name]
        longest = reading.get("max_position_embeddings")
        first = reading.get(_ORIGINAL, longest)
        if _ORIGINAL in names:
            given = {_ORIGINAL: first, **given}
        given = {key: value for key, value in given.items() if value is not None}
        if name == "longrope" and longest and _ORIGINAL in given:
            given = {"factor": longest / given[_ORIGINAL], **given}
        unknown = sorted(given.keys() - names)
        lacking = sorted(names.keys() - given - _OPTIONAL)
        if unknown:
            reading.problems.append(f"rope_type={name} with {unknown}, which are not known")
        if lacking:
            reading.problems.append(f"rope_type={name} without {lacking}")
        values = {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
        if name == "yarn" and not (values.get("mscale") and values.get("mscale_all_dim")):
            values = {k: v for k, v in values.items() if k not in ("mscale", "mscale_all_dim")}
        return {"kind": name, **{key: _as_number(key, value) for key, value in values.items()}}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write them the older way, which every reader of config.json knows."""
        mixer = first_of_kind(model, self.kind)
        return self.keys(mixer.position, getattr(mixer, "head_dim", 0))

    def keys(self, position: Any, head_dim: int) -> dict[str, Any]:
        """Return the keys of a position.

        Raises:
          CannotExpressError: there are none for it.
        """
        if not hasattr(position, "theta"):
            raise CannotExpressError(
                f"{self.kind}.position.kind={position.kind}: it has rope alone"
            )
        scaling = position.scaling
        share = {self.share: position.rotary_dim / head_dim} if position.rotary_dim else {}
        if not share and self.fraction != 1.0:
            share = {self.share: 1.0}
        theta = {"rope_theta": position.theta, **share}
        if scaling is None:
            return {**theta, "rope_scaling": None}
        if scaling.kind not in SCALINGS:
            raise CannotExpressError(f"{self.kind}.position.scaling.kind={scaling.kind}")
        names = SCALINGS[scaling.kind]
        values = {theirs: _plain(getattr(scaling, ours)) for theirs, ours in names.items()}
        values = {name: value for name, value in values.items() if value is not None}
        outside = _outside(scaling.kind, values)
        return {**theta, **outside, "rope_scaling": {"rope_type": scaling.kind, **values}}


def _outside(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lengths that readers look up beside the scaling, not in it."""
    original = values.get(_ORIGINAL)
    if kind == "longrope":
        longest = round(original * values["factor"])
        return {_ORIGINAL: original, "max_position_embeddings": longest}
    return {"max_position_embeddings": original} if kind == "dynamic" else {}


def _as_number(name: str, value: Any) -> Any:
    if name in ("original_length", "truncate"):
        return value
    return [float(one) for one in value] if isinstance(value, list) else float(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
