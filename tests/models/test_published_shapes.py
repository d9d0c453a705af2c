"""Presets against published config.json files: the same model, the published number of parameters,
and both again by formulas of their own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from maxlm.checkpoint.hf.families import FAMILIES
from maxlm.checkpoint.hf.published import model_of
from maxlm.config import load_run
from maxlm.config.model import ModelConfig
from maxlm.models import cost
from tests.models.published import dense, mixtures
from tests.models.published.facts import without_eyes

PUBLISHED = {**dense.PUBLISHED, **mixtures.PUBLISHED}
PRESETS = Path(__file__).parents[2] / "configs" / "model"
OF_NOBODY = {"ladder", "tiny", "tiny_moe"}
NAMES = sorted(PUBLISHED)
MIXTURES = [name for name in NAMES if PUBLISHED[name].active]


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that loads a preset's model, each once."""
    run, loaded = tmp_path_factory.mktemp("run") / "run.yaml", dict[str, ModelConfig]()

    def load(name: str) -> ModelConfig:
        if name not in loaded:
            run.write_text(
                f"include: {PRESETS / name}.yaml\nrun_dir: x\ntrain: {{num_steps: 1, batch_size: 1}}\n"
                "data: {sources: {a: {path: x}}, tokenizer: t, sequence_length: 8}\n"
            )
            loaded[name] = load_run(run).config.model
        return loaded[name]

    return load


def test_every_preset_is_of_a_published_model() -> None:
    files = {str(path.relative_to(PRESETS).with_suffix("")) for path in PRESETS.rglob("*.yaml")}
    assert files == PUBLISHED.keys() | OF_NOBODY


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_what_the_published_config_says(name: str, preset: Any) -> None:
    config, model = PUBLISHED[name].config, preset(name)
    published, _ = model_of(FAMILIES[config["model_type"]], config, name)
    # Written in other segments, the layers are the same.
    alike = {"segments": (), "block": model.block}
    assert model.model_copy(update=alike) == published.model_copy(update=alike)
    for number, (ours, theirs) in enumerate(zip(model.layers, published.layers, strict=True)):
        assert ours.model_copy(update={"repeat": 1}) == theirs.model_copy(update={"repeat": 1}), (
            number
        )


@pytest.mark.parametrize("name", [*NAMES, *sorted(OF_NOBODY)])
def test_the_header_states_the_size(name: str, preset: Any) -> None:
    text, model = Path(f"{PRESETS / name}.yaml").read_text(encoding="utf-8"), preset(name)
    stated = re.search(r"([0-9,]{6,}) parameters", text)
    assert stated, "the header of a model preset states the number of parameters"
    assert f"{cost.parameter_count(model):,}" == stated[1]
    active = re.search(r"([0-9,]{6,}) active", text)
    assert f"{cost.active_parameter_count(model):,}" == (active or stated)[1]


# --- parameters by formula ------------------------------------------------------------------------


def attention_weights(config: dict[str, Any], kind: str) -> int:
    """Count one layer's attention, from the keys of config.json alone."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if "kv_lora_rank" in config:
        nope, rope, value = (
            config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        rank, latent = config["q_lora_rank"], config["kv_lora_rank"]
        queries = heads * (nope + rope)
        into = rank * (width + 1 + queries) if rank else width * queries
        kept = width * (latent + rope) + latent + latent * heads * (nope + value)
        return into + kept + heads * value * width
    size = config.get("head_dim", width // heads)
    queries = heads * size
    keys = config.get("num_key_value_heads", heads) * size
    weights = width * (2 * queries + 2 * keys)
    biases = {"qwen2": queries + 2 * keys, "gpt_neox": 3 * queries + width}
    biases["gpt_oss"] = queries + 2 * keys + width + heads  # and sinks
    norms = {"olmo2": queries + keys, "qwen3": 2 * size, "qwen3_moe": 2 * size}
    norms["gemma3_text"] = 2 * size
    return weights + biases.get(kind, 0) + norms.get(kind, 0)


def expert_weights(config: dict[str, Any], kind: str) -> int:
    """Count one expert of a mixture."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    hidden = config.get("moe_intermediate_size", hidden)
    return 3 * width * hidden + (2 * hidden + width if kind == "gpt_oss" else 0)


def sparse_layers(config: dict[str, Any]) -> int:
    """Count the layers that are mixtures."""
    layers = config["num_hidden_layers"]
    return (layers - config.get("first_k_dense_replace", 0)) // config.get(
        "interleave_moe_layer_step", 1
    )


def experts_of(config: dict[str, Any]) -> int:
    keys = ("num_experts", "num_local_experts", "n_routed_experts")
    return next((config[key] for key in keys if key in config), 0)


def ffn_weights(config: dict[str, Any], kind: str) -> int:
    """Count the feed-forward layers of all blocks."""
    width, hidden, layers = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    if kind == "gpt_neox":
        return layers * (2 * width * hidden + hidden + width)
    experts = experts_of(config)
    if not experts:
        return layers * 3 * width * hidden
    shared = config.get("n_shared_experts", int(kind == "llama4_text"))
    router = width * experts + (experts if kind in ("deepseek_v3", "kimi_k2", "gpt_oss") else 0)
    sparse = sparse_layers(config)
    dense = config.get("intermediate_size_mlp", hidden)
    return (
        sparse * ((experts + shared) * expert_weights(config, kind) + router)
        + (layers - sparse) * 3 * width * dense
    )


def module_weights(config: dict[str, Any], kind: str, experts: int) -> int:
    """Count what is in modules for further tokens, with so many experts each."""
    width, shared = config["hidden_size"], config.get("n_shared_experts", 0)
    mixture = (experts + shared) * expert_weights(config, kind) + (width + 1) * experts_of(config)
    projection, norms = 2 * width * width, (2 + 3) * width  # a block's norms, and theirs
    one = attention_weights(config, kind) + mixture + projection + norms
    return int(config.get("num_nextn_predict_layers", 0)) * one


def parameters_by_formula(config: dict[str, Any]) -> int:
    """Count a model's parameters from config.json alone."""
    kind = config["model_type"]
    if kind == "gpt2":
        width, layers = config["n_embd"], config["n_layer"]
        inside = 12 * width**2 + 13 * width  # 4 + 8 matrices; 9 biases and 4 of two norms
        return (config["vocab_size"] + config["n_positions"] + 2) * width + layers * inside
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    norms = {"gemma2": 4, "gemma3_text": 4, "gpt_neox": 4}.get(kind, 2)
    tables = 1 if config["tie_word_embeddings"] else 2
    return (
        tables * config["vocab_size"] * width
        + layers * (attention_weights(config, kind) + norms * width)
        + ffn_weights(config, kind)
        + module_weights(config, kind, experts_of(config))
        + (2 if kind == "gpt_neox" else 1) * width
    )


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_formula_and_the_published_count(
    name: str, preset: Any
) -> None:
    published, count = PUBLISHED[name], cost.parameter_count(preset(name))
    assert count == parameters_by_formula(published.config)
    assert published.parameters in (None, count)


def test_a_module_has_what_was_published(preset: Any) -> None:
    """The file of DeepSeek-V3's weights counts 671B, and in the module 11.5B of its own."""
    parts = cost.parameter_parts(preset("deepseek/deepseek_v3"))
    assert parts.pop("mtp") == pytest.approx(11.5e9, rel=0.01)
    assert sum(parts.values()) == 671_026_419_200
    assert "mtp" not in cost.parameter_parts(preset("deepseek/kimi_k2"))


def test_almost_all_counts_are_published_ones() -> None:
    unknown = {name for name, published in PUBLISHED.items() if published.parameters is None}
    assert unknown == {"granite/granite3.3_2b", "granite/granite3.3_8b"}


def test_what_models_that_see_have_besides() -> None:
    # SigLIP: 27 layers of width 1152; the projection to 2560 with its norm
    patches = 3 * 14**2 * 1152 + 1152 + 4096 * 1152 + 2 * 1152
    layer = 4 * (1152**2 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    assert without_eyes(0, 2560) == -(patches + 27 * layer + 1152 * 2560 + 1152)


@pytest.mark.parametrize("name", MIXTURES)
def test_active_parameters_of_mixtures(name: str, preset: Any) -> None:
    """Exactly by formula; what was published in billions is with or without the embedding."""
    published, active = PUBLISHED[name], cost.active_parameter_count(preset(name))
    config = published.config
    idle = experts_of(config) - config["num_experts_per_tok"]
    expert = expert_weights(config, config["model_type"])
    mixtures = sparse_layers(config) + config.get("num_nextn_predict_layers", 0)
    assert active == parameters_by_formula(config) - mixtures * idle * expert
    embedding = config["vocab_size"] * config["hidden_size"]
    assert published.active is not None
    assert (active - embedding) / 1.03 < published.active * 1e9 < active * 1.03


# --- FLOPs and what is kept, by formula -----------------------------------------------------------


def seen(length: int, window: int) -> float:
    """Return how many keys a query sees, on average over a sequence."""
    return sum(min(position + 1, window) for position in range(length)) / length


@pytest.mark.parametrize(
    ("name", "layers_and_windows", "head_sizes"),
    [
        ("llama3/llama3.1_8b", [(32, None)], 32 * (128 + 128)),
        ("gemma2/gemma2_2b", [(13, 4096), (13, None)], 8 * (256 + 256)),
        ("qwen3/qwen3_30b_a3b", [(48, None)], 32 * (128 + 128)),
        ("deepseek/deepseek_v3", [(62, None)], 128 * (192 + 128)),
    ],
)
def test_flops_per_token(name: str, layers_and_windows: Any, head_sizes: int, preset: Any) -> None:
    """6 for each weight of a product, 6 for each number of a query and of a value, pair by pair."""
    config, model, length = PUBLISHED[name].config, preset(name), 8192
    width, layers, kind = config["hidden_size"], config["num_hidden_layers"], config["model_type"]
    norms = (4 if kind == "gemma2" else 2) * layers * width + width
    norms += 2 * 128 * layers if kind == "qwen3_moe" else 0
    head = looked_up = 0 if config["tie_word_embeddings"] else config["vocab_size"] * width
    if kind == "deepseek_v3":  # and the router's biases; its module has three norms more
        norms += (layers + 1) * (1536 + 512) + 59 * 256 + 5 * width
        looked_up -= head  # for that module has the head once more
    weights = cost.active_parameter_count(model) - norms - looked_up
    pairs = sum(count * seen(length, window or length) for count, window in layers_and_windows)
    expected = 6 * weights + 6 * head_sizes * pairs
    assert cost.flops_per_token(model, length) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("llama3/llama3.1_8b", 32 * 2 * 8 * 128),  # grouped queries
        ("llama2/llama2_7b", 32 * 2 * 32 * 128),
        ("gemma/gemma_2b", 18 * 2 * 1 * 256),  # one head of keys
        ("deepseek/deepseek_v3", 61 * (512 + 64)),  # a latent and a rotated key
        ("gemma3/gemma3_4b", 34 * 2 * 4 * 256),  # layers with a window keep everything
        ("llama4/llama4_maverick", 48 * 2 * 8 * 128),
    ],
)
def test_cache_bytes_per_token(name: str, numbers: int, preset: Any) -> None:
    assert cost.cache_bytes_per_token(preset(name), "bfloat16") == 2 * numbers
    assert cost.cache_bytes_per_token(preset(name), "float32") == 4 * numbers
