"""DeepSeek-V2, V3, R1 and Kimi K2: latent attention, and experts in groups; arXiv:2405.04434,
arXiv:2412.19437, arXiv:2507.20534.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from maxlm.checkpoint.hf.families import fragments as like
from maxlm.checkpoint.hf.families.family import Family, Row
from maxlm.checkpoint.hf.families.keys import (
    Fixed,
    Ignored,
    Key,
    KeyRow,
    Must,
    Reading,
    TrainingOnly,
    all_of_kind,
)
from maxlm.checkpoint.hf.families.positions import Rope
from maxlm.config.model import ModelConfig

_ATTENTION = like.LAYER + "self_attn."
_MOE = like.LAYER + "mlp."
_KV_DOWN, _KV_UP = _ATTENTION + "kv_a_proj_with_mqa.weight", _ATTENTION + "kv_b_proj.weight"


@dataclass(frozen=True)
class LatentRope:
    """Rotary positions of neighbouring numbers; with YaRN, scores have a factor of their own."""

    rope: Rope

    def read(self, reading: Reading) -> None:
        """Set positions, and the scale that goes with them."""
        self.rope.read(reading)
        dims = reading.get("qk_nope_head_dim", 0) + reading.get("qk_rope_head_dim", 0)
        factor = _score_factor(reading.sections["mla"]["position"].get("scaling") or {})
        if factor != 1.0 and dims:
            reading.set("mla.scale", dims**-0.5 * factor)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write the positions; the scale follows from them."""
        return self.rope.write(model)


def _score_factor(scaling: Any) -> float:
    """Return the square of what YaRN's `mscale_all_dim` makes of the factor."""
    exponent = scaling.get("mscale_all_dim")
    if not exponent or scaling["factor"] <= 1:
        return 1.0
    return float((0.1 * exponent * math.log(scaling["factor"]) + 1) ** 2)


@dataclass(frozen=True)
class FirstDense:
    """The first layers have a plain ffn."""

    def read(self, reading: Reading) -> None:
        """Give it to them."""
        for layer in range(reading.get("first_k_dense_replace", 0)):
            reading.of_block(layer, "ffn", {"kind": "mlp"})
        shared, width = reading.get("n_shared_experts", 0), reading.get("moe_intermediate_size", 0)
        reading.set("moe.shared_dim", shared * width)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Count them, and the shared experts."""
        moe = like.first_of_kind(model, "moe")
        return {
            "first_k_dense_replace": min(all_of_kind(model, "moe")),
            "n_shared_experts": moe.shared_dim // moe.expert_dim,
        }


@dataclass(frozen=True)
class KeyHeads:
    """As many heads of keys as of queries: readers whose default is another must be told."""

    def read(self, reading: Reading) -> None:
        """Count the key as known: latent attention has no groups of heads."""
        reading.seen.add("num_key_value_heads")

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write their number."""
        return {"num_key_value_heads": like.first_of_kind(model, "mla").num_heads}


_ALIKE: tuple[KeyRow, ...] = (
    *like.SHAPE,
    Key("num_attention_heads", "mla.num_heads"),
    Key("q_lora_rank", "mla.query_rank", None),
    Key("kv_lora_rank", "mla.kv_rank"),
    Key("qk_nope_head_dim", "mla.nope_dim"),
    Key("qk_rope_head_dim", "mla.rope_dim"),
    Key("v_head_dim", "mla.value_dim"),
    LatentRope(Rope(kind="mla", layout="interleaved")),
    Must("attention_bias", False),
    TrainingOnly("attention_dropout"),
    KeyHeads(),
    Ignored(("head_dim", "qk_head_dim", "ep_size", "moe_layer_freq")),
    Ignored(("aux_loss_alpha", "seq_aux", "output_router_logits")),
    Key("intermediate_size", "mlp.hidden_dim"),
    Key("hidden_act", "mlp.activation", "silu", like.SILU),
    Key("n_routed_experts", "moe.num_experts"),
    Key("num_experts_per_tok", "moe.experts_per_token"),
    Key("moe_intermediate_size", "moe.expert_dim"),
    FirstDense(),
    like.rms_norm(),
    like.tied(),
)
_LATENT = (
    Row("query", _ATTENTION + "q_proj.weight", "(n h) d -> d n h"),
    Row("query_down", _ATTENTION + "q_a_proj.weight", "r d -> d r"),
    Row("query_norm/scale", _ATTENTION + "q_a_layernorm.weight"),
    Row("query_up", _ATTENTION + "q_b_proj.weight", "(n h) r -> r n h"),
    Row("kv_down", _KV_DOWN, "[r] d -> d r"),
    Row("key_rope", _KV_DOWN, "[r] d -> d r"),
    Row("kv_norm/scale", _ATTENTION + "kv_a_layernorm.weight"),
    Row("key_up", _KV_UP, "(n [h]) r -> r n h"),
    Row("value_up", _KV_UP, "(n [h]) r -> r n h"),
    Row("out", _ATTENTION + "o_proj.weight", "d (n h) -> n h d"),
)
_MIXTURE = (*like.experts(_MOE), *like.shared_expert(_MOE + "shared_experts."))


@dataclass(frozen=True)
class Groups:
    """V2's groups of experts, which the method `greedy` has none of."""

    def read(self, reading: Reading) -> None:
        """Set the router."""
        method = reading.get("topk_method", "greedy")
        if method not in ("greedy", "group_limited_greedy"):
            reading.refuse("topk_method", method, "greedy or group_limited_greedy")
        grouped = method == "group_limited_greedy"
        router = {
            "kind": "softmax",
            "weights": "as_scored",
            "scale": float(reading.get("routed_scaling_factor", 1.0)),
            "num_groups": reading.get("n_group", 1) if grouped else 1,
            "top_groups": reading.get("topk_group", 1) if grouped else 1,
            "group_score": "max",
        }
        reading.seen |= {"n_group", "topk_group"}
        reading.set("moe.router", router)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write the method and its groups."""
        router = like.first_of_kind(model, "moe").router
        grouped = router.num_groups > 1
        return {
            "topk_method": "group_limited_greedy" if grouped else "greedy",
            "n_group": router.num_groups if grouped else None,
            "topk_group": router.top_groups if grouped else None,
            "routed_scaling_factor": router.scale,
        }


DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    mixer="mla",
    ffn="moe",
    keys=(*_ALIKE, Groups(), Must("norm_topk_prob", False), Ignored(("scoring_func", "mlp_bias"))),
    rows={**like.ROWS, "mla": _LATENT, "moe": _MIXTURE},
    unused=like.ROTARY_BUFFERS,
)

MODULES = "num_nextn_predict_layers"


@dataclass(frozen=True)
class Modules:
    """Modules for further tokens; their block is like the last layers'."""

    def read(self, reading: Reading) -> None:
        """Add them."""
        depth = reading.get(MODULES, 0)
        reading.set("model.mtp", {"depth": depth} if depth else None)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Count them."""
        return {MODULES: model.mtp_depth}


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    mixer="mla",
    ffn="moe",
    keys=(
        *_ALIKE,
        like.Router(
            fixed={"kind": "sigmoid"},
            keys={
                "routed_scaling_factor": "scale",
                "n_group": "num_groups",
                "topk_group": "top_groups",
            },
        ),
        # The bias is theirs; how fast it moves is not in the file. 0.001 is the paper's.
        Fixed("moe.balance", {"auxiliary_loss": 0.0, "bias_update": 0.001}),
        Must("rope_interleave", True),
        Modules(),
        Ignored(("scoring_func", "topk_method")),
    ),
    rows={
        **like.ROWS,
        "mla": _LATENT,
        "moe": (*_MIXTURE, Row("router_bias", _MOE + "gate.e_score_correction_bias")),
        "mtp": (
            Row("embed_norm/scale", like.LAYER + "enorm.weight"),
            Row("hidden_norm/scale", like.LAYER + "hnorm.weight"),
            Row("project", like.LAYER + "eh_proj.weight", "d e -> e d"),
            Row("norm/scale", like.LAYER + "shared_head.norm.weight"),
        ),
    },
    # The modules' embedding and head are copies of the model's.
    unused=(*like.ROTARY_BUFFERS, ".embed_tokens.weight", ".shared_head.head.weight"),
    modules=MODULES,
)
KIMI_K2 = Family(**{**DEEPSEEK_V3.__dict__, "name": "kimi_k2"})
