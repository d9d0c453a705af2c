"""What several families have in common: rows for config.json and for tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maxlm.checkpoint.hf.families.family import Row
from maxlm.checkpoint.hf.families.keys import (
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
BIASES: tuple[KeyRow, ...] = (
    Key("attention_bias", "attention.bias", False, BIAS),
    Key("mlp_bias", "mlp.bias", False, BIAS),
)


def rms_norm(default: float = 1e-6) -> Key:
    """Return the row of an RMSNorm's epsilon."""
    return Key("rms_norm_eps", "norm.epsilon", default)


def tied(default: bool = False) -> Key:
    """Return the row that ties embedding and head."""
    return Key("tie_word_embeddings", "model.tie_embeddings", default)


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


def layers_with_rope(reading: Reading) -> list[int]:
    """Return 1 for each layer with rotary positions, 0 for others: `no_rope_layers`, or all but each
    so manieth.
    """
    count = reading.need("num_hidden_layers") or 0
    every = reading.get("no_rope_layer_interval", 4)
    rule = [int((layer + 1) % every != 0) for layer in range(count)]
    turned = reading.get("no_rope_layers") or rule
    if len(turned) != count:
        reading.refuse("no_rope_layers", turned, f"{count} of 0 and 1")
    return list(turned)


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
