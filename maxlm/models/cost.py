"""What a model costs, from its configuration alone: parameters, FLOPs, bytes. Makes no array and imports no jax."""

from __future__ import annotations

import math
from collections.abc import Iterator

from maxlm.config.schema import (
    AttentionConfig,
    BlockConfig,
    LearnedPosition,
    MeshConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    RunConfig,
)

_FP32_BYTES = 4
_ADAM_SLOTS = 2
_GATED = ("swiglu", "geglu")
# Vectors of mlp_dim per token that automatic differentiation keeps of a feed-forward layer, measured.
_KEPT_HIDDEN = {"swiglu": 6, "geglu": 8, "gelu": 6, "relu": 1}


# --- parameters ------------------------------------------------------------------------------------------------------


def parameter_count(model: ModelConfig) -> int:
    """Count the model's parameters; a tied embedding counts once."""
    return sum(parameter_parts(model).values())


def active_parameter_count(model: ModelConfig) -> int:
    """Count the parameters that one token uses: of the experts, those it is sent to."""
    moes = ((block.ffn, count) for block, count in _blocks(model) if isinstance(block.ffn, MoeConfig))
    return parameter_count(model) - sum(count * _idle_weights(model, moe) for moe, count in moes)


def parameter_parts(model: ModelConfig) -> dict[str, int]:
    """Count parameters by part: embedding, positions, attention, feed-forward, norms, head."""
    attention = sum(count * _attention_parameters(model, block.mixer) for block, count in _blocks(model))
    feed_forward = sum(count * _ffn_parameters(model, block.ffn) for block, count in _blocks(model))
    norm = model.embed_dim * (2 if model.norm.kind == "layernorm" else 1)  # scale, and layernorm's bias
    positions = model.position.max_length if isinstance(model.position, LearnedPosition) else 0
    return {
        "embedding": model.vocab_size * model.embed_dim,
        "positions": positions * model.embed_dim,
        "attention": attention,
        "feed-forward": feed_forward,
        "norms": (2 * model.num_layers + 1) * norm,
        "head": 0 if model.tie_embeddings else model.vocab_size * model.embed_dim,
    }


def _attention_parameters(model: ModelConfig, mixer: AttentionConfig) -> int:
    """Count four projections, their biases, a scale of length head_dim each for queries and keys, and the sinks."""
    scales = 2 * model.head_dim if mixer.qk_norm == "rmsnorm" else 0
    input_bias = 0 if mixer.bias == "none" else _qkv_dim(model)
    output_bias = model.embed_dim if mixer.bias == "all" else 0
    sinks = model.num_heads if mixer.sinks else 0
    return _attention_weights(model) + scales + input_bias + output_bias + sinks


def _ffn_parameters(model: ModelConfig, ffn: MlpConfig | MoeConfig) -> int:
    """Count up (and gate) and down, and their biases; of all experts, with the router and its bias."""
    if isinstance(ffn, MoeConfig):
        bias = ffn.num_experts if ffn.balance.bias_update else 0
        return _ffn_weights(model, ffn) + _idle_weights(model, ffn) + bias
    bias = _input_matrices(ffn) * model.mlp_dim + model.embed_dim if ffn.bias == "all" else 0
    return _ffn_weights(model, ffn) + bias


def _attention_weights(model: ModelConfig) -> int:
    """Count the weights of query, key, value: D x (N + 2K) H, and of the output: N H x D."""
    return model.embed_dim * _qkv_dim(model) + model.num_heads * model.head_dim * model.embed_dim


def _ffn_weights(model: ModelConfig, ffn: MlpConfig | MoeConfig) -> int:
    """Count the weights that a token meets: up and down, D x F each, and a gated layer's third matrix.

    With experts, those of the router, D x E, of the shared expert, and of the experts it is sent to.
    """
    matrices = (_input_matrices(ffn) + 1) * model.embed_dim
    if isinstance(ffn, MoeConfig):
        hidden = ffn.experts_per_token * ffn.expert_dim + ffn.shared_dim
        return matrices * hidden + model.embed_dim * ffn.num_experts
    return matrices * model.mlp_dim


def _expert_weights(model: ModelConfig, moe: MoeConfig) -> int:
    """Count the weights of one expert."""
    return (_input_matrices(moe) + 1) * model.embed_dim * moe.expert_dim


def _idle_weights(model: ModelConfig, moe: MoeConfig) -> int:
    """Count the weights of the experts that a token is not sent to."""
    return (moe.num_experts - moe.experts_per_token) * _expert_weights(model, moe)


def _qkv_dim(model: ModelConfig) -> int:
    return (model.num_heads + 2 * model.num_kv_heads) * model.head_dim


def _input_matrices(ffn: MlpConfig | MoeConfig) -> int:
    return 2 if ffn.activation in _GATED else 1


def _blocks(model: ModelConfig) -> Iterator[tuple[BlockConfig, int]]:
    """Yield each block of the prefix and of the pattern, and how often it stands in the model."""
    yield from ((block, 1) for block in model.prefix)
    yield from ((block, (model.num_layers - len(model.prefix)) // len(model.pattern)) for block in model.pattern)


# --- FLOPs -----------------------------------------------------------------------------------------------------------


def flops_per_token(model: ModelConfig, sequence_length: int) -> float:
    """Count the FLOPs that training needs per token: forward and backward pass, matrix multiplications only.

    Derivation. A multiply-add is 2 FLOPs. A token meets each weight of a matrix once in the forward pass (2 FLOPs) and
    twice in the backward pass, for the gradient of the input and of the weight (4 FLOPs):

        weights = 6 (N_layers + D V)     per token

    N_layers are the weights of the attention projections and feed-forward layers; with experts, of the router and of
    those experts that the token is sent to (copies dropped by a capacity count all the same). D V is the projection to
    the vocabulary, also when it shares the embedding's table; the embedding itself is a lookup and counts nothing.

    Attention multiplies each query with each key it sees (2 H FLOPs per head) and each weight with a value (2 H): with
    N heads 4 N H per pair, and 12 N H with the backward pass. Pairs hidden by the causal mask or by a sliding window W
    are not counted. Query t = 1 ... T sees min(t, W) keys, on average

        keys = (1 + ... + W + (T - W) W) / T,  which is (T + 1) / 2 without a window (W = T)
        attention = 12 N H keys          per token and layer

    This is what the model needs, not what the hardware does: recomputation (remat), the masked half that a kernel may
    compute anyway, and flash attention's second look at the scores are not counted. Norms, rotary positions, softmax
    and biases are left out (under 1 % for the usual shapes). Sequences count as one document each: packing makes the
    real attention a little cheaper. Same count as PaLM's (arXiv:2204.02311, appendix B), but causal.

    Args:
      model: the architecture.
      sequence_length: T, tokens per training sequence.
    """
    return sum(flops_parts(model, sequence_length).values())


def flops_parts(model: ModelConfig, sequence_length: int) -> dict[str, float]:
    """Split `flops_per_token` by part: attention projections, attention scores, feed-forward, head."""
    pair = 12 * model.num_heads * model.head_dim
    scores = sum(count * pair * _mean_keys(sequence_length, block.mixer.window) for block, count in _blocks(model))
    feed_forward = sum(count * _ffn_weights(model, block.ffn) for block, count in _blocks(model))
    return {
        "attention projections": 6.0 * model.num_layers * _attention_weights(model),
        "attention scores": scores,
        "feed-forward": 6.0 * feed_forward,
        "head": 6.0 * model.embed_dim * model.vocab_size,
    }


def prefix_work(model: ModelConfig, sequence_length: int) -> float:
    """Return the FLOPs of the blocks before the pattern, relative to those of all the pattern's blocks."""

    def flops(block: BlockConfig) -> float:
        pairs = 12 * model.num_heads * model.head_dim * _mean_keys(sequence_length, block.mixer.window)
        return 6 * (_attention_weights(model) + _ffn_weights(model, block.ffn)) + pairs

    before = sum(flops(block) for block in model.prefix)
    everything = sum(count * flops(block) for block, count in _blocks(model))
    return before / (everything - before)


def _mean_keys(sequence_length: int, window: int | None) -> float:
    """Average how many keys a query sees: itself and what lies before it, within the window."""
    window = min(window or sequence_length, sequence_length)
    pairs = window * (window + 1) // 2 + (sequence_length - window) * window
    return pairs / sequence_length


# --- memory ----------------------------------------------------------------------------------------------------------


def memory_per_device(config: RunConfig, mesh: MeshConfig, *, compute_bytes: int | None = None) -> dict[str, int]:
    """Estimate the bytes on one device by part: parameters, optimizer, gradients, ..., logits.

    An estimate to see what dominates and whether a run has a chance to fit, not a promise. Against the compiler's
    figures for float32 steps on the CPU it is up to 20 % high, with fsdp up to 50 %. What the optimizer needs while it
    runs is not counted: the activations are gone by then. Nor are an attention kernel's blocks of scores.

    Args:
      config: the run.
      mesh: devices along each axis, without -1.
      compute_bytes: size of an activation: 2 for bfloat16, 4 for float32. By default from `train.compute_dtype`, where
        auto counts as bfloat16 unless `runtime.platform` is cpu.
    """
    compute_bytes = compute_bytes or _compute_bytes(config)
    parts = parameter_parts(config.model)
    in_stack = parts["attention"] + parts["feed-forward"] + parts["norms"]
    outside = sum(parts.values()) - in_stack
    split = mesh.fsdp * mesh.expert * mesh.context
    shard = (in_stack / (mesh.stage * mesh.tensor) + outside / mesh.tensor) / split
    # Gathering does not bring the experts of other devices.
    held = in_stack - _experts_elsewhere(config.model, mesh)
    block = held / config.model.num_layers / mesh.tensor
    whole = held / (mesh.stage * mesh.tensor) + outside / mesh.tensor
    # Besides fp32 shards of the gradient, the sum so far and this microbatch's, a device holds the gradient of what was
    # gathered: of one block in the compute dtype, of everything, or, summed in fp32, of everything.
    gathered, unreduced_bytes = {
        "layer": (block + outside / mesh.tensor, block * compute_bytes),
        "microbatch": (whole, whole * compute_bytes),
        "step": (whole, whole * _FP32_BYTES),
    }[config.train.gather]
    memory = {
        "parameters": shard * _FP32_BYTES,
        "optimizer": 0 if "optimizer" in config.train.offload else shard * _FP32_BYTES * _ADAM_SLOTS,
        "gradients": 2 * shard * _FP32_BYTES + unreduced_bytes,
        "gathered weights": gathered * compute_bytes,
        "activations": _activation_bytes(config, mesh, compute_bytes),
        "logits": _logit_bytes(config, mesh),
    }
    return {part: math.ceil(size) for part, size in memory.items()}


def _experts_elsewhere(model: ModelConfig, mesh: MeshConfig) -> int:
    """Count the parameters of experts that lie on other devices of `expert`."""
    moes = ((block.ffn, count) for block, count in _blocks(model) if isinstance(block.ffn, MoeConfig))
    return sum(
        count * (moe.num_experts - moe.num_experts // mesh.expert) * _expert_weights(model, moe) for moe, count in moes
    )


def _activation_bytes(config: RunConfig, mesh: MeshConfig, compute_bytes: int) -> float:
    """Estimate what the forward pass keeps of every block, and the block that the backward pass is in.

    The latter is there whole, recomputed if need be, and half as much again for the gradients flowing through it; if
    its experts may need further rounds, with one of them.
    """
    model, remat = config.model, config.train.remat
    kept, largest = 0.0, 0.0
    for block, count in _blocks(model):
        whole: float = _block_bytes(model, block, mesh, compute_bytes)
        largest = max(largest, 1.5 * whole + _further_round_bytes(model, block.ffn, mesh, compute_bytes))
        if remat != "none":
            choices = {} if remat == "full" else remat.model_dump()
            named = _named_bytes(model, block, mesh, compute_bytes)
            at_start = 0 if "activations" in config.train.offload else model.embed_dim * compute_bytes
            whole = (at_start + sum(named[name] for name in choices if choices[name] == "save")) / mesh.tensor
        kept += count * whole
    return _tokens_per_device(config, mesh) * (kept / mesh.stage + largest)


def _block_bytes(model: ModelConfig, block: BlockConfig, mesh: MeshConfig, compute_bytes: int) -> float:
    """Count what automatic differentiation keeps of one block, per token.

    Norms keep two fp32 vectors each; their results are gathered over `tensor`, all else is split over it. Experts keep
    their rows, with room for the worst case, and what came back of each token's copies.
    """
    tensor = mesh.tensor
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim * compute_bytes
    norms = 2 * 2 * model.embed_dim * _FP32_BYTES
    if block.mixer.qk_norm == "rmsnorm":
        norms += 2 * (model.num_heads + model.num_kv_heads) * model.head_dim * _FP32_BYTES
    hidden = _KEPT_HIDDEN[block.ffn.activation] * _hidden_units(model, block.ffn, mesh) * compute_bytes
    inputs: float = 2 * model.embed_dim * compute_bytes
    if isinstance(block.ffn, MoeConfig):
        inputs += (_slots(block.ffn, mesh) + block.ffn.experts_per_token) * model.embed_dim * compute_bytes
        norms += 3 * block.ffn.num_experts * _FP32_BYTES
    return (norms + heads + model.num_heads * _FP32_BYTES + hidden) / tensor + inputs


def _hidden_units(model: ModelConfig, ffn: MlpConfig | MoeConfig, mesh: MeshConfig) -> float:
    """Count the hidden units of a token, with those of empty rows that experts make room for."""
    if isinstance(ffn, MoeConfig):
        return _slots(ffn, mesh) * ffn.expert_dim + ffn.shared_dim
    return model.mlp_dim


def _further_round_bytes(model: ModelConfig, ffn: MlpConfig | MoeConfig, mesh: MeshConfig, compute_bytes: int) -> float:
    """Count what a round of experts after the first holds, and as much for its gradients, per token."""
    if not isinstance(ffn, MoeConfig) or _slots(ffn, mesh) == _most_slots(ffn, mesh):
        return 0.0
    hidden = _KEPT_HIDDEN[ffn.activation] * ffn.expert_dim / mesh.tensor
    return 2 * _slots(ffn, mesh) * (2 * model.embed_dim + hidden) * compute_bytes


def _slots(moe: MoeConfig, mesh: MeshConfig) -> float:
    """Count the rows for experts that a device holds room for, per token of its own (`maxlm/sharding/experts.py`)."""
    return min(_most_slots(moe, mesh), moe.buffer_factor * moe.experts_per_token)


def _most_slots(moe: MoeConfig, mesh: MeshConfig) -> float:
    """Count the rows that may come to a device's experts, per token of its own."""
    choices = moe.experts_per_token
    if mesh.expert == 1:
        return choices
    most = float(mesh.expert) * min(choices, moe.num_experts // mesh.expert)
    if moe.capacity_factor is not None:
        most = min(most, moe.capacity_factor * choices * mesh.context)
    return most


def _named_bytes(model: ModelConfig, block: BlockConfig, mesh: MeshConfig, compute_bytes: int) -> dict[str, float]:
    """Count the activations that `train.remat` can keep, per token, before `tensor` splits them."""
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    units = _hidden_units(model, block.ffn, mesh)
    hidden = {"mlp_hidden": units, "mlp_gate": units}
    widths: dict[str, float] = {"query": queries, "key": keys, "value": keys, "attention_out": queries, **hidden}
    widths["mixer_out"] = model.embed_dim
    sizes = {name: width * compute_bytes for name, width in widths.items()}
    return {**sizes, "attention_lse": model.num_heads * _FP32_BYTES}


def _logit_bytes(config: RunConfig, mesh: MeshConfig) -> float:
    """Count the fp32 logits of one chunk of the loss, and their gradient."""
    tokens = min(config.train.loss_chunk_tokens, _tokens_per_device(config, mesh))
    return 2 * tokens * config.model.vocab_size / mesh.tensor * _FP32_BYTES


def _tokens_per_device(config: RunConfig, mesh: MeshConfig) -> float:
    """Count the tokens of one microbatch on one device (before `tensor` splits what it splits)."""
    sequences = config.train.batch_size / (mesh.data * mesh.fsdp * mesh.expert * config.train.microbatches)
    return sequences * config.data.sequence_length / mesh.context


def _compute_bytes(config: RunConfig) -> int:
    dtype, platform = config.train.compute_dtype, config.runtime.platform
    return 4 if dtype == "float32" or (dtype == "auto" and platform == "cpu") else 2
