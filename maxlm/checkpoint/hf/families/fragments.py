"""What several families have in common: rows for config.json and for tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maxlm.checkpoint.hf.family import Row
from maxlm.checkpoint.hf.keys import (
    CannotExpressError,
    Ignored,
    Key,
    KeyRow,
    Reading,
    TrainingOnly,
    first_of_kind,
    same_as,
)
from maxlm.config.model import ModelConfig

# --- config.json ----------------------------------------------------------------------------------

SHAPE: tuple[KeyRow, ...] = (
    Key("vocab_size", "model.vocab_size"),
    Key("hidden_size", "model.embed_dim"),
    Key("num_hidden_layers", "model.num_layers"),
    Key("initializer_range", "model.init_std", 0.02),
    Ignored(("max_position_embeddings",)),
)
"""Most families' sizes. Rotary positions have no last one."""


def heads(head_dim: int | None = None) -> tuple[KeyRow, ...]:
    """Return the rows of attention's heads; `head_dim` is what its absence means (None: D / N)."""

    def width(keys: Reading) -> int:
        return head_dim or keys.get("hidden_size", 0) // keys.get("num_attention_heads", 1)

    return (
        Key("num_attention_heads", "attention.num_heads"),
        Key("num_key_value_heads", "attention.num_kv_heads", same_as("num_attention_heads")),
        Key("head_dim", "attention.head_dim", width),
        TrainingOnly("attention_dropout"),
    )


SILU = {"silu": "swiglu", "swish": "swiglu"}
GATED_MLP: tuple[KeyRow, ...] = (
    Key("intermediate_size", "mlp.hidden_dim"),
    Key("hidden_act", "mlp.activation", "silu", SILU),
)
BIAS = {False: "none", True: "all"}


def rms_norm(default: float = 1e-6) -> Key:
    """Return the row of an RMSNorm's epsilon."""
    return Key("rms_norm_eps", "norm.epsilon", default)


def tied(default: bool = False) -> Key:
    """Return the row that ties embedding and head."""
    return Key("tie_word_embeddings", "model.tie_embeddings", default)


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
        given = {key: value for key, value in given.items() if value is not None}
        if _ORIGINAL in names:
            given = {_ORIGINAL: first, **given}
        if name == "longrope":
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
        outside = {_ORIGINAL: values[_ORIGINAL]} if scaling.kind == "longrope" else {}
        return {**theta, **outside, "rope_scaling": {"rope_type": scaling.kind, **values}}


def _as_number(name: str, value: Any) -> Any:
    if name in ("original_length", "truncate"):
        return value
    return [float(one) for one in value] if isinstance(value, list) else float(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class LayerTypes:
    """Windows of single layers: `layer_types`, or a rule that older files leave to the reader.

    Attributes:
      switch: the key that says whether there are windows at all; none where there always are.
      first: the key of the number of first layers without one, where `layer_types` is absent.
      every: in place of `first`: each so manieth layer has no window.
    """

    switch: str | None = "use_sliding_window"
    first: str | None = "max_window_layers"
    every: int = 0

    def read(self, reading: Reading) -> None:
        """Set the windows."""
        window, count = reading.get("sliding_window"), reading.need("num_hidden_layers") or 0
        types = reading.get("layer_types")
        reading.seen |= {key for key in (self.switch, self.first) if key}
        if self.switch and not reading.get(self.switch, False):
            window = None
        if types is None:
            types = [
                _WINDOW if window and self._has(reading, n, count) else _FULL for n in range(count)
            ]
        if not isinstance(types, list) or len(types) != count or set(types) - {_WINDOW, _FULL}:
            reading.refuse("layer_types", types, f"{count} of {_FULL} and {_WINDOW}")
            return
        if len(set(types)) == 1:
            reading.set("attention.window", window if types[0] == _WINDOW else None)
            return
        for layer, kind in enumerate(types):
            reading.of_block(layer, "mixer", {"window": window if kind == _WINDOW else None})

    def _has(self, reading: Reading, layer: int, count: int) -> bool:
        """Return whether a layer has a window, by the rule that stands for absent types."""
        if self.every:
            return (layer + 1) % self.every != 0
        return layer >= int(reading.get(self.first, count) if self.first else 0)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write the type of each layer, and the window where there is one."""
        windows = [getattr(block.mixer, "window", None) for block in model.layers]
        given = sorted({window for window in windows if window})
        if len(given) > 1:
            raise CannotExpressError(f"windows of {given}: it has one size for all layers")
        first = next((i for i, window in enumerate(windows) if window), len(windows))
        return {
            **({self.switch: bool(given)} if self.switch else {}),
            "sliding_window": given[0] if given else None,
            **({self.first: first} if self.first else {}),
            "layer_types": [_WINDOW if window else _FULL for window in windows],
        }


_WINDOW, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Window:
    """One window for all layers; null is none, and `absent` is what an absent key means."""

    absent: int | None

    def read(self, reading: Reading) -> None:
        """Set the window."""
        given = "sliding_window" in reading.config
        window = reading.get("sliding_window") if given else self.absent
        reading.set("attention.window", window)
        reading.seen.add("sliding_window")

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write the window, null where there is none."""
        return {"sliding_window": first_of_kind(model, "attention").window}


@dataclass(frozen=True)
class Router:
    """How a mixture's router picks experts and weighs them.

    Attributes:
      fixed: settings of `moe.router` that are the same in all of the family.
      normalised: the key that says whether weights are divided by their sum; None: it is in `fixed`.
      keys: numbers of `moe.router` by their keys, whose absence means 1.
    """

    fixed: Mapping[str, Any] = field(default_factory=lambda: {"kind": "softmax"})
    normalised: str | None = "norm_topk_prob"
    keys: Mapping[str, str] = field(default_factory=dict)

    def read(self, reading: Reading) -> None:
        """Set the router."""
        router = dict(self.fixed)
        if self.normalised:
            router["weights"] = _WEIGHTS[bool(reading.get(self.normalised, False))]
        for theirs, ours in self.keys.items():
            value = reading.get(theirs, 1)
            router[ours] = float(value) if ours == "scale" else value
        reading.set("moe.router", router)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write what differs between models of the family."""
        router = first_of_kind(model, "moe").router
        weights = {self.normalised: router.weights == "normalised"} if self.normalised else {}
        return {**weights, **{theirs: getattr(router, ours) for theirs, ours in self.keys.items()}}


_WEIGHTS = {True: "normalised", False: "as_scored"}


@dataclass(frozen=True)
class AuxiliaryLoss:
    """The weight of the loss that keeps experts busy, there a coefficient c of f that sums to k.

    Ours is of f that sums to 1, summed over layers, theirs of the mean over layers: c k / L.
    """

    theirs: str = "router_aux_loss_coef"
    default: float = 0.001
    per_token: str = "num_experts_per_tok"

    def read(self, reading: Reading) -> None:
        """Set the balance."""
        choices, layers = reading.need(self.per_token), reading.need("num_hidden_layers")
        if choices and layers:
            weight = reading.get(self.theirs, self.default) * choices / layers
            reading.set("moe.balance", {"auxiliary_loss": weight})

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write the coefficient."""
        moe = first_of_kind(model, "moe")
        weight = moe.balance.auxiliary_loss * model.num_layers / moe.experts_per_token
        return {self.theirs: weight}


# --- tensors --------------------------------------------------------------------------------------

OUTSIDE = (
    Row("embedding/tokens", "model.embed_tokens.weight", "v d -> v d"),
    Row("norm/scale", "model.norm.weight"),
    Row("head/output", "lm_head.weight", "v d -> d v"),
)
LAYER = "model.layers.{layer}."
PRE_NORMS = (
    Row("mixer_norm/scale", LAYER + "input_layernorm.weight"),
    Row("ffn_norm/scale", LAYER + "post_attention_layernorm.weight"),
)
ATTENTION = (
    Row("query", LAYER + "self_attn.q_proj.weight", "(n h) d -> d n h"),
    Row("key", LAYER + "self_attn.k_proj.weight", "(n h) d -> d n h"),
    Row("value", LAYER + "self_attn.v_proj.weight", "(n h) d -> d n h"),
    Row("out", LAYER + "self_attn.o_proj.weight", "d (n h) -> n h d"),
    Row("query_bias", LAYER + "self_attn.q_proj.bias", "(n h) -> n h"),
    Row("key_bias", LAYER + "self_attn.k_proj.bias", "(n h) -> n h"),
    Row("value_bias", LAYER + "self_attn.v_proj.bias", "(n h) -> n h"),
    Row("out_bias", LAYER + "self_attn.o_proj.bias"),
)
QK_NORM = (
    Row("query_norm/scale", LAYER + "self_attn.q_norm.weight"),
    Row("key_norm/scale", LAYER + "self_attn.k_norm.weight"),
)
MLP = (
    Row("gate", LAYER + "mlp.gate_proj.weight", "f d -> d f"),
    Row("up", LAYER + "mlp.up_proj.weight", "f d -> d f"),
    Row("down", LAYER + "mlp.down_proj.weight", "d f -> f d"),
    Row("gate_bias", LAYER + "mlp.gate_proj.bias"),
    Row("up_bias", LAYER + "mlp.up_proj.bias"),
    Row("down_bias", LAYER + "mlp.down_proj.bias"),
)
ROWS: Mapping[str, tuple[Row, ...]] = {
    "model": OUTSIDE,
    "block": PRE_NORMS,
    "attention": ATTENTION,
    "mlp": MLP,
}
"""Of a model that is like Llama; a family says what differs: `{**ROWS, "moe": ...}`."""
SANDWICH_NORMS = (
    Row("mixer_norm/scale", LAYER + "input_layernorm.weight"),
    Row("mixer_post_norm/scale", LAYER + "post_attention_layernorm.weight"),
    Row("ffn_norm/scale", LAYER + "pre_feedforward_layernorm.weight"),
    Row("ffn_post_norm/scale", LAYER + "post_feedforward_layernorm.weight"),
)


def experts(within: str, gate: str = "gate") -> tuple[Row, ...]:
    """Return the rows of a router, and of experts that have a tensor each.

    Args:
      within: what names of the layer's tensors begin with.
      gate: name of the router.
    """
    one = within + "experts.{e}."
    return (
        Row("router", within + gate + ".weight", "e d -> d e"),
        Row("gate", one + "gate_proj.weight", "f d -> e d f"),
        Row("up", one + "up_proj.weight", "f d -> e d f"),
        Row("down", one + "down_proj.weight", "d f -> e f d"),
    )


def shared_expert(within: str) -> tuple[Row, ...]:
    """Return the rows of the expert that sees every token; names begin with `within`."""
    return (
        Row("shared/gate", within + "gate_proj.weight", "f d -> d f"),
        Row("shared/up", within + "up_proj.weight", "f d -> d f"),
        Row("shared/down", within + "down_proj.weight", "d f -> f d"),
    )


ROTARY_BUFFERS = (".rotary_emb.inv_freq",)
