"""Published mixtures of experts: DeepSeek, Kimi K2, gpt-oss, Llama 4."""

from __future__ import annotations

from typing import Any

from tests.models.published.dense import llama
from tests.models.published.facts import Published, sizes


def deepseek(*shape: int, kind: str, scale: float, **more: Any) -> dict[str, Any]:
    layers, width, heads, hidden, expert = shape
    latent = {
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
    scaling = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
    scaling |= {"beta_fast": 32, "beta_slow": 1, "mscale": scale, "mscale_all_dim": scale}
    return {
        "model_type": kind,
        **sizes(layers, width, heads, heads, hidden),
        **latent,
        "moe_intermediate_size": expert,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {**scaling, **more.pop("stretched", {})},
        "max_position_embeddings": 163840,
        "tie_word_embeddings": False,
        **more,
    }


V2_LITE = deepseek(
    *(27, 2048, 16, 10944, 1408),
    kind="deepseek_v2",
    scale=0.707,
    vocab_size=102400,
    q_lora_rank=None,
    n_routed_experts=64,
    num_experts_per_tok=6,
    n_shared_experts=2,
    first_k_dense_replace=1,
    topk_method="greedy",
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.0,
    norm_topk_prob=False,
)
V2 = deepseek(
    *(60, 5120, 128, 12288, 1536),
    kind="deepseek_v2",
    scale=0.707,
    vocab_size=102400,
    q_lora_rank=1536,
    n_routed_experts=160,
    num_experts_per_tok=6,
    n_shared_experts=2,
    first_k_dense_replace=1,
    topk_method="group_limited_greedy",
    n_group=8,
    topk_group=3,
    routed_scaling_factor=16.0,
    norm_topk_prob=False,
)
V3 = deepseek(
    *(61, 7168, 128, 18432, 2048),
    kind="deepseek_v3",
    scale=1.0,
    vocab_size=129280,
    q_lora_rank=1536,
    n_routed_experts=256,
    num_experts_per_tok=8,
    n_shared_experts=1,
    first_k_dense_replace=3,
    n_group=8,
    topk_group=4,
    routed_scaling_factor=2.5,
    norm_topk_prob=True,
    num_nextn_predict_layers=1,
)
KIMI_K2 = {
    **deepseek(
        *(61, 7168, 64, 18432, 2048),
        kind="kimi_k2",
        scale=1.0,
        stretched={"factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0},
        vocab_size=163840,
        q_lora_rank=1536,
        n_routed_experts=384,
        num_experts_per_tok=8,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=2.827,
        norm_topk_prob=True,
        num_nextn_predict_layers=0,
    ),
    "rope_theta": 50000.0,
    "max_position_embeddings": 131072,
}


def gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    scaling = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
    scaling |= {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    return {
        "model_type": "gpt_oss",
        "vocab_size": 201088,
        **sizes(layers, 2880, 64, 8, 2880),
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "rope_theta": 150000.0,
        "rope_scaling": scaling,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "router_aux_loss_coef": 0.9,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
    }


def llama4(experts: int, every: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama4_text",
        "vocab_size": 202048,
        **sizes(48, 5120, 40, 8, 8192),
        "head_dim": 128,
        "intermediate_size_mlp": 16384,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "no_rope_layers": [1, 1, 1, 0] * 12,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": 4,
        "attn_scale": 0.1,
        "floor_scale": 8192,
        "num_local_experts": experts,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": every,
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": False,
        **more,
    }


LLAMA4_EYES = 871_932_416  # 34 layers of width 1408, the adapter, the projection to 5120
SCOUT_SCALING = llama(1, 1, 1, 1, 1, factor=8.0)["rope_scaling"]
PUBLISHED = {
    "deepseek/deepseek_v2_lite": Published(V2_LITE, 15_706_484_224, 2.4),
    "deepseek/deepseek_v2": Published(V2, 235_741_434_880, 21),
    "deepseek/deepseek_v3": Published(V3, 682_636_487_424, 37),
    "deepseek/kimi_k2": Published(KIMI_K2, 1_026_408_232_448, 32),
    "gpt_oss/gpt_oss_20b": Published(gpt_oss(24, 32), 20_914_757_184, 3.61),
    "gpt_oss/gpt_oss_120b": Published(gpt_oss(36, 128), 116_829_156_672, 5.13),
    "llama4/llama4_scout": Published(
        llama4(16, 1, use_qk_norm=True, rope_scaling=SCOUT_SCALING),
        108_641_793_536 - LLAMA4_EYES,
        17,
    ),
    "llama4/llama4_maverick": Published(
        llama4(128, 2, use_qk_norm=False, rope_scaling=None),
        401_583_781_376 - LLAMA4_EYES,
        17,
    ),
}
