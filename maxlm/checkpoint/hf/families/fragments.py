"""What several families have in common: rows for config.json and for tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "original_max_position_embeddings": "original_length",
}
SCALINGS: Mapping[str, Mapping[str, str]] = {"llama3": _LLAMA3}
"""Ways to stretch rotary positions, by the name they have in both worlds, with their settings."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions: `rope_theta` and `rope_scaling`, or both in `rope_parameters`.

    Attributes:
      kind: the kind of mixers that have them.
      theta: the base where the file has none.
    """

    kind: str = "attention"
    theta: float = 10_000.0

    def read(self, reading: Reading) -> None:
        """Set the mixers' positions."""
        base = float(reading.get("rope_theta", self.theta))
        scaling = reading.get("rope_scaling")
        newer = reading.get("rope_parameters")
        given = dict(newer if scaling is None else scaling) if (newer or scaling) else {}
        base = float(given.pop("rope_theta", base))
        name = given.pop("rope_type", given.pop("type", "default"))
        given.pop("type", None)
        position = {"kind": "rope", "theta": base, "scaling": None}
        if name != "default" and name not in SCALINGS:
            reading.refuse("rope_type", name, "default or " + " or ".join(SCALINGS))
        elif name != "default":
            position["scaling"] = self._scaling(reading, name, given)
        elif given:
            reading.problems.append(f"rope_parameters has {sorted(given)}, which are not known")
        reading.set(f"{self.kind}.position", position)

    def _scaling(self, reading: Reading, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        names = SCALINGS[name]
        if "original_max_position_embeddings" in names:
            length = reading.get("max_position_embeddings")
            given = {"original_max_position_embeddings": length, **given}
        unknown, lacking = sorted(given.keys() - names), sorted(names.keys() - given)
        if unknown:
            reading.problems.append(f"rope_type={name} with {unknown}, which are not known")
        if lacking:
            reading.problems.append(f"rope_type={name} without {lacking}")
        values = {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
        numbers = {k: float(v) if k != "original_length" else v for k, v in values.items()}
        return {"kind": name, **numbers}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write them the older way, which every reader of config.json knows."""
        position = first_of_kind(model, self.kind).position
        if not hasattr(position, "theta"):
            raise CannotExpressError(
                f"{self.kind}.position.kind={position.kind}: it has rope alone"
            )
        scaling = position.scaling
        if scaling is None:
            return {"rope_theta": position.theta, "rope_scaling": None}
        if scaling.kind not in SCALINGS:
            raise CannotExpressError(f"{self.kind}.position.scaling.kind={scaling.kind}")
        names = SCALINGS[scaling.kind]
        values = {theirs: getattr(scaling, ours) for theirs, ours in names.items()}
        return {
            "rope_theta": position.theta,
            "rope_scaling": {"rope_type": scaling.kind, **values},
        }


@dataclass(frozen=True)
class LayerTypes:
    """Windows of single layers: `layer_types`, or a rule that older files leave to the reader.

    Attributes:
      switch: the key that says whether there are windows at all; none where there always are.
      first: the key of the number of first layers without one, where `layer_types` is absent.
    """

    switch: str = "use_sliding_window"
    first: str = "max_window_layers"

    def read(self, reading: Reading) -> None:
        """Set the windows."""
        window, count = reading.get("sliding_window"), reading.need("num_hidden_layers") or 0
        first, types = reading.get(self.first, count), reading.get("layer_types")
        if not reading.get(self.switch, False):
            window = None
        if types is None:
            types = [_WINDOW if window and layer >= first else _FULL for layer in range(count)]
        if not isinstance(types, list) or len(types) != count or set(types) - {_WINDOW, _FULL}:
            reading.refuse("layer_types", types, f"{count} of {_FULL} and {_WINDOW}")
            return
        if len(set(types)) == 1:
            reading.set("attention.window", window if types[0] == _WINDOW else None)
            return
        for layer, kind in enumerate(types):
            reading.of_block(layer, "mixer", {"window": window if kind == _WINDOW else None})

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write the type of each layer, and the window where there is one."""
        windows = [getattr(block.mixer, "window", None) for block in model.layers]
        given = sorted({window for window in windows if window})
        if len(given) > 1:
            raise CannotExpressError(f"windows of {given}: it has one size for all layers")
        return {
            self.switch: bool(given),
            "sliding_window": given[0] if given else None,
            self.first: next((i for i, window in enumerate(windows) if window), len(windows)),
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
ROTARY_BUFFERS = (".rotary_emb.inv_freq",)
