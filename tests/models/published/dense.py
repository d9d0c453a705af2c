"""Published models without experts, and those of Mistral and Qwen."""

from __future__ import annotations

from typing import Any

from tests.models.published.facts import Published, sizes, without_eyes

# --- GPT-2, GPT-NeoX ------------------------------------------------------------------------------


def gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    shape = {"vocab_size": 50257, "n_positions": 1024, "n_ctx": 1024}
    more = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    return {
        "model_type": "gpt2",
        "n_layer": layers,
        "n_embd": width,
        "n_head": heads,
        **shape,
        **more,
    }


def neox(
    layers: int, width: int, heads: int, vocab: int = 50304, act: str = "gelu"
) -> dict[str, Any]:
    shape = sizes(layers, width, heads, heads, 4 * width)
    del shape["num_key_value_heads"]
    more = {"hidden_act": act, "rotary_pct": 0.25, "rotary_emb_base": 10000, "layer_norm_eps": 1e-5}
    more |= {"use_parallel_residual": True, "tie_word_embeddings": False}
    return {"model_type": "gpt_neox", "vocab_size": vocab, **shape, **more}


GPT = {
    "gpt2/gpt2_124m": Published(gpt2(12, 768, 12), 124_439_808),
    "gpt2/gpt2_355m": Published(gpt2(24, 1024, 16), 354_823_168),
    "gpt2/gpt2_774m": Published(gpt2(36, 1280, 20), 774_030_080),
    "gpt2/gpt2_1.5b": Published(gpt2(48, 1600, 25), 1_557_611_200),
    # arXiv:2204.06745, table of section 2; arXiv:2304.01373, table 1
    "gpt_neox/gpt_neox_20b": Published(neox(44, 6144, 64, 50432, "gelu_fast"), 20_554_567_680),
    "gpt_neox/pythia_70m": Published(neox(6, 512, 8), 70_426_624),
    "gpt_neox/pythia_160m": Published(neox(12, 768, 12), 162_322_944),
    "gpt_neox/pythia_410m": Published(neox(24, 1024, 16), 405_334_016),
    "gpt_neox/pythia_1b": Published(neox(16, 2048, 8), 1_011_781_632),
    "gpt_neox/pythia_1.4b": Published(neox(24, 2048, 16), 1_414_647_808),
    "gpt_neox/pythia_2.8b": Published(neox(32, 2560, 32), 2_775_208_960),
    "gpt_neox/pythia_6.9b": Published(neox(32, 4096, 32, 50432), 6_857_302_016),
    "gpt_neox/pythia_12b": Published(neox(36, 5120, 40, 50688), 11_846_072_320),
}

# --- Llama, Mistral, SmolLM3, Granite, OLMo 2, Phi-3 ----------------------------------------------


def llama(
    *shape: int, vocab: int = 128256, factor: float | None = None, **more: Any
) -> dict[str, Any]:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {
        "model_type": "llama",
        "vocab_size": vocab,
        **sizes(*shape),
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0 if vocab == 128256 else 10000.0,
        "rope_scaling": scaling if factor else None,
        "tie_word_embeddings": False,
        **more,
    }


def mistral(*shape: int, vocab: int = 32000, kind: str = "mistral", **more: Any) -> dict[str, Any]:
    base = {"model_type": kind, "vocab_size": vocab, **sizes(*shape), "rms_norm_eps": 1e-5}
    return {**base, "tie_word_embeddings": False, **more}


def mixtral(*shape: int, coefficient: float, **more: Any) -> dict[str, Any]:
    experts = {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": coefficient,
    }
    more = {"rope_theta": 1e6, "sliding_window": None, **experts, **more}
    return mistral(*shape, kind="mixtral", **more)


def granite(*shape: int, score: float, logits: float, theta: float, vocab: int) -> dict[str, Any]:
    factors = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22}
    factors |= {"attention_multiplier": score, "logits_scaling": logits, "rope_theta": theta}
    base = {"model_type": "granite", "vocab_size": vocab, **sizes(*shape), "rms_norm_eps": 1e-5}
    return {**base, **factors, "tie_word_embeddings": True}


def olmo2(*shape: int) -> dict[str, Any]:
    base = {"model_type": "olmo2", "vocab_size": 100352, **sizes(*shape), "rms_norm_eps": 1e-6}
    return {**base, "rope_theta": 500000.0, "tie_word_embeddings": False}


def phi3(*shape: int, window: int | None = 2047, **more: Any) -> dict[str, Any]:
    base = {"model_type": "phi3", "vocab_size": 32064, **sizes(*shape), "rms_norm_eps": 1e-5}
    lengths = {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
    rest = {"rope_theta": 10000.0, "sliding_window": window, "tie_word_embeddings": False}
    return {**base, **lengths, **rest, **more}


LONG_FACTORS = """
1.0800000429153442 1.1100000143051147 1.1399999856948853 1.340000033378601 1.5899999141693115
1.600000023841858 1.6200000047683716 2.620000123977661 3.2300000190734863 3.2300000190734863
4.789999961853027 7.400000095367432 7.700000286102295 9.09000015258789 12.199999809265137
17.670000076293945 24.46000099182129 28.57000160217285 30.420001983642578 30.840002059936523
32.590003967285156 32.93000411987305 42.320003509521484 44.96000289916992 50.340003967285156
50.45000457763672 57.55000305175781 57.93000411987305 58.21000289916992 60.1400032043457
62.61000442504883 62.62000274658203 62.71000289916992 63.1400032043457 63.1400032043457
63.77000427246094 63.93000411987305 63.96000289916992 63.970001220703125 64.02999877929688
64.06999969482422 64.08000183105469 64.12000274658203 64.41000366210938 64.4800033569336
64.51000213623047 64.52999877929688 64.83999633789062
"""
SHORT_FACTORS = """
1.0 1.0199999809265137 1.0299999713897705 1.0299999713897705 1.0499999523162842 1.0499999523162842
1.0499999523162842 1.0499999523162842 1.0499999523162842 1.0699999332427979 1.0999999046325684
1.1099998950958252 1.1599998474121094 1.1599998474121094 1.1699998378753662 1.2899998426437378
1.339999794960022 1.679999828338623 1.7899998426437378 1.8199998140335083 1.8499997854232788
1.8799997568130493 1.9099997282028198 1.9399996995925903 1.9899996519088745 2.0199997425079346
2.0199997425079346 2.0199997425079346 2.0199997425079346 2.0199997425079346 2.0199997425079346
2.0299997329711914 2.0299997329711914 2.0299997329711914 2.0299997329711914 2.0299997329711914
2.0299997329711914 2.0299997329711914 2.0299997329711914 2.0299997329711914 2.0799996852874756
2.0899996757507324 2.189999580383301 2.2199995517730713 2.5899994373321533 2.729999542236328
2.749999523162842 2.8399994373321533
"""
LONG_FACTORS_OF_2024 = """
1.0700000524520874 1.1200000047683716 1.149999976158142 1.4199999570846558 1.5699999332427979
1.7999999523162842 2.129999876022339 2.129999876022339 3.009999990463257 5.910000324249268
6.950000286102295 9.070000648498535 9.930000305175781 10.710000038146973 11.130000114440918
14.609999656677246 15.409998893737793 19.809999465942383 37.279998779296875 38.279998779296875
38.599998474121094 40.12000274658203 46.20000457763672 50.940006256103516 53.66000747680664
54.9373893737793 56.89738845825195 57.28738784790039 59.98738479614258 60.86738586425781
60.887386322021484 61.71739196777344 62.91739273071289 62.957393646240234 63.41739273071289
63.8173942565918 63.83739471435547 63.897396087646484 63.93739700317383 64.06739807128906
64.11434936523438 64.12435150146484 64.15435028076172 64.19435119628906 64.24435424804688
64.57435607910156 64.69000244140625 64.76000213623047
"""
SHORT_FACTORS_OF_2024 = """
1.1 1.1 1.1 1.3000000000000003 1.3500000000000003 1.3500000000000003 1.4000000000000004
1.5500000000000005 2.000000000000001 2.000000000000001 2.000000000000001 2.000000000000001
2.000000000000001 2.000000000000001 2.000000000000001 2.000000000000001 2.000000000000001
2.000000000000001 2.000000000000001 2.000000000000001 2.000000000000001 2.000000000000001
2.000000000000001 2.000000000000001 2.000000000000001 2.0500000000000007 2.0500000000000007
2.0500000000000007 2.0500000000000007 2.0500000000000007 2.0500000000000007 2.1000000000000005
2.1000000000000005 2.1500000000000004 2.25 2.25 2.25 2.25 2.25 2.3999999999999995
2.4499999999999993 2.499999999999999 2.6999999999999984 2.6999999999999984 2.7499999999999982
2.799999999999998 2.8999999999999977 3.049999999999997
"""


def phi_long(long: str, short: str) -> dict[str, Any]:
    lists = {"long_factor": long, "short_factor": short}
    factors = {name: [float(text) for text in texts.split()] for name, texts in lists.items()}
    return {"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope", **factors}}


SMOLLM3 = {
    "model_type": "smollm3",
    "vocab_size": 128256,
    **sizes(36, 2048, 16, 4, 11008),
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000.0,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}
LLAMA_LIKE = {
    "llama2/llama2_7b": Published(llama(32, 4096, 32, 32, 11008, vocab=32000), 6_738_415_616),
    "llama2/llama2_13b": Published(llama(40, 5120, 40, 40, 13824, vocab=32000), 13_015_864_320),
    "llama2/llama2_70b": Published(llama(80, 8192, 64, 8, 28672, vocab=32000), 68_976_648_192),
    "llama3/llama3_8b": Published(llama(32, 4096, 32, 8, 14336), 8_030_261_248),
    "llama3/llama3_70b": Published(llama(80, 8192, 64, 8, 28672), 70_553_706_496),
    "llama3/llama3.1_8b": Published(llama(32, 4096, 32, 8, 14336, factor=8.0), 8_030_261_248),
    "llama3/llama3.1_70b": Published(llama(80, 8192, 64, 8, 28672, factor=8.0), 70_553_706_496),
    "llama3/llama3.1_405b": Published(
        llama(126, 16384, 128, 8, 53248, factor=8.0), 405_853_388_800
    ),
    "llama3/llama3.2_1b": Published(
        llama(16, 2048, 32, 8, 8192, factor=32.0, head_dim=64, tie_word_embeddings=True),
        1_235_814_400,
    ),
    "llama3/llama3.2_3b": Published(
        llama(28, 3072, 24, 8, 8192, factor=32.0, head_dim=128, tie_word_embeddings=True),
        3_212_749_824,
    ),
    "mistral/mistral_7b_v0.1": Published(
        mistral(32, 4096, 32, 8, 14336, sliding_window=4096, rope_theta=10000.0), 7_241_732_096
    ),
    "mistral/mistral_7b_v0.3": Published(
        mistral(32, 4096, 32, 8, 14336, vocab=32768, sliding_window=None, rope_theta=1e6),
        7_248_023_552,
    ),
    "mistral/mixtral_8x7b": Published(
        mixtral(32, 4096, 32, 8, 14336, coefficient=0.02), 46_702_792_704, 12.9
    ),
    "mistral/mixtral_8x22b": Published(
        mixtral(56, 6144, 48, 8, 16384, coefficient=0.001), 140_620_634_112, 39
    ),
    "smollm3/smollm3_3b": Published(SMOLLM3, 3_075_098_624),
    "granite/granite3.0_2b": Published(
        granite(40, 2048, 32, 8, 8192, score=0.015625, logits=8.0, theta=1e4, vocab=49155),
        2_533_531_648,
    ),
    "granite/granite3.0_8b": Published(
        granite(40, 4096, 32, 8, 12800, score=0.0078125, logits=16.0, theta=1e4, vocab=49155),
        8_170_848_256,
    ),
    "granite/granite3.3_2b": Published(
        granite(40, 2048, 32, 8, 8192, score=0.015625, logits=8.0, theta=1e7, vocab=49159), None
    ),
    "granite/granite3.3_8b": Published(
        granite(40, 4096, 32, 8, 12800, score=0.0078125, logits=16.0, theta=1e7, vocab=49159), None
    ),
    "olmo2/olmo2_1b": Published(olmo2(16, 2048, 16, 16, 8192), 1_484_916_736),
    "olmo2/olmo2_7b": Published(olmo2(32, 4096, 32, 32, 11008), 7_298_617_344),
    "olmo2/olmo2_13b": Published(olmo2(40, 5120, 40, 40, 13824), 13_716_198_400),
    "olmo2/olmo2_32b": Published(olmo2(64, 5120, 40, 8, 27648), 32_234_279_936),
    "phi3/phi3_mini_4k": Published(phi3(32, 3072, 32, 32, 8192), 3_821_079_552),
    **{
        f"phi3/{name}_mini_128k": Published(
            phi3(32, 3072, 32, 32, 8192, window=262144, **phi_long(*factors)), 3_821_079_552
        )
        for name, factors in {
            "phi3": (LONG_FACTORS_OF_2024, SHORT_FACTORS_OF_2024),
            "phi3.5": (LONG_FACTORS, SHORT_FACTORS),
        }.items()
    },
    "phi3/phi3_medium_4k": Published(phi3(40, 5120, 40, 10, 17920), 13_960_238_080),
}

# --- Qwen -----------------------------------------------------------------------------------------


def qwen2(*shape: int, epsilon: float = 1e-6, tied: bool = False) -> dict[str, Any]:
    vocab = 151936 if shape[1] <= 2048 else 152064
    base = {"model_type": "qwen2", "vocab_size": vocab, **sizes(*shape), "rms_norm_eps": epsilon}
    rest = {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": shape[0]}
    return {**base, **rest, "rope_theta": 1e6, "tie_word_embeddings": tied}


def qwen3(*shape: int, tied: bool = False, **more: Any) -> dict[str, Any]:
    base = {"model_type": "qwen3", "vocab_size": 151936, **sizes(*shape), "rms_norm_eps": 1e-6}
    rest = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": shape[0]}
    heads = {"head_dim": 128, "attention_bias": False, "rope_theta": 1e6}
    return {**base, **heads, **rest, "tie_word_embeddings": tied, **more}


def qwen3_moe(*shape: int, expert: int) -> dict[str, Any]:
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": expert}
    rest = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    kind = {"model_type": "qwen3_moe", "router_aux_loss_coef": 0.001}
    return qwen3(*shape, **experts, **rest, **kind)


QWEN = {
    "qwen2.5/qwen2.5_0.5b": Published(qwen2(24, 896, 14, 2, 4864, tied=True), 494_032_768),
    "qwen2.5/qwen2.5_1.5b": Published(qwen2(28, 1536, 12, 2, 8960, tied=True), 1_543_714_304),
    "qwen2.5/qwen2.5_3b": Published(qwen2(36, 2048, 16, 2, 11008, tied=True), 3_085_938_688),
    "qwen2.5/qwen2.5_7b": Published(qwen2(28, 3584, 28, 4, 18944), 7_615_616_512),
    "qwen2.5/qwen2.5_14b": Published(qwen2(48, 5120, 40, 8, 13824, epsilon=1e-5), 14_770_033_664),
    "qwen2.5/qwen2.5_32b": Published(qwen2(64, 5120, 40, 8, 27648, epsilon=1e-5), 32_763_876_352),
    "qwen2.5/qwen2.5_72b": Published(qwen2(80, 8192, 64, 8, 29568, epsilon=1e-5), 72_706_203_648),
    "qwen3/qwen3_0.6b": Published(qwen3(28, 1024, 16, 8, 3072, tied=True), 596_049_920),
    "qwen3/qwen3_1.7b": Published(qwen3(28, 2048, 16, 8, 6144, tied=True), 1_720_574_976),
    "qwen3/qwen3_4b": Published(qwen3(36, 2560, 32, 8, 9728, tied=True), 4_022_468_096),
    "qwen3/qwen3_8b": Published(qwen3(36, 4096, 32, 8, 12288), 8_190_735_360),
    "qwen3/qwen3_14b": Published(qwen3(40, 5120, 40, 8, 17408), 14_768_307_200),
    "qwen3/qwen3_32b": Published(qwen3(64, 5120, 64, 8, 25600), 32_762_123_264),
    "qwen3/qwen3_30b_a3b": Published(
        qwen3_moe(48, 2048, 32, 4, 6144, expert=768), 30_532_122_624, 3.3
    ),
    "qwen3/qwen3_235b_a22b": Published(
        qwen3_moe(94, 4096, 64, 4, 12288, expert=1536), 235_093_634_560, 22
    ),
}

# --- Gemma ----------------------------------------------------------------------------------------


def gemma(kind: str, *shape: int, head_dim: int = 256, **more: Any) -> dict[str, Any]:
    act = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
    base = {"model_type": kind, **sizes(*shape), "head_dim": head_dim, "rms_norm_eps": 1e-6}
    return {**base, **act, "vocab_size": 256000, "tie_word_embeddings": True, **more}


def gemma2(*shape: int, scalar: int = 256, **more: Any) -> dict[str, Any]:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    rest = {"sliding_window": 4096, "query_pre_attn_scalar": scalar, "rope_theta": 10000.0}
    return gemma("gemma2", *shape, **caps, **rest, **more)


def gemma3(*shape: int, scalar: int = 256, window: int = 1024, **more: Any) -> dict[str, Any]:
    scaling = {"rope_type": "linear", "factor": 8.0} if window == 1024 else None
    vocab = 262208 if window == 1024 else 262144
    ropes = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": scaling}
    rest = {"vocab_size": vocab, "sliding_window": window, "sliding_window_pattern": 6}
    return gemma("gemma3_text", *shape, query_pre_attn_scalar=scalar, **ropes, **rest, **more)


GEMMA = {
    "gemma/gemma_2b": Published(gemma("gemma", 18, 2048, 8, 1, 16384), 2_506_172_416),
    "gemma/gemma_7b": Published(gemma("gemma", 28, 3072, 16, 16, 24576), 8_537_680_896),
    "gemma2/gemma2_2b": Published(gemma2(26, 2304, 8, 4, 9216), 2_614_341_888),
    "gemma2/gemma2_9b": Published(gemma2(42, 3584, 16, 8, 14336), 9_241_705_984),
    "gemma2/gemma2_27b": Published(
        gemma2(46, 4608, 32, 16, 36864, scalar=144, head_dim=128), 27_227_128_320
    ),
    "gemma3/gemma3_270m": Published(gemma3(18, 640, 4, 1, 2048, window=512), 268_098_176),
    "gemma3/gemma3_1b": Published(gemma3(26, 1152, 4, 1, 6912, window=512), 999_885_952),
    "gemma3/gemma3_4b": Published(gemma3(34, 2560, 8, 4, 10240), without_eyes(4_300_079_472, 2560)),
    "gemma3/gemma3_12b": Published(
        gemma3(48, 3840, 16, 8, 15360), without_eyes(12_187_325_040, 3840)
    ),
    "gemma3/gemma3_27b": Published(
        gemma3(62, 5376, 32, 16, 21504, scalar=168, head_dim=128),
        without_eyes(27_432_406_640, 5376),
    ),
}

PUBLISHED = {**GPT, **LLAMA_LIKE, **QWEN, **GEMMA}
