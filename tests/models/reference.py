"""The decoder written out a second time, in fp64 numpy, one token after the other where that is
simplest.
"""

import math

import numpy as np

from maxlm.sharding.parameters import named_parameters


def logits(decoder, tokens, segments, positions):
    """Return fp64 (B, T, V) of a batch."""
    model = decoder.model
    weights = {
        path: np.asarray(parameter[...], np.float64)
        for path, parameter in named_parameters(decoder)
    }
    x = weights["embedding/tokens"][tokens]
    if model.position.kind == "learned":
        x = x + weights["embedding/positions"][positions]
    for number, (segment, repeats) in enumerate(zip(model.segments, model.repeats, strict=True)):
        for repeat in range(repeats):
            for place, config in enumerate(segment.blocks):
                prefix = f"stack/{number}/{place}/"
                block = {
                    path[len(prefix) :]: w[repeat]
                    for path, w in weights.items()
                    if path.startswith(prefix)
                }
                x = _block(x, block, model, config, segments, positions)
    x = _norm(x, weights, "norm/", model)
    return x @ (weights["embedding/tokens"].T if model.tie_embeddings else weights["head/output"])


def _block(x, block, model, config, segments, positions):
    if config.mixer.kind != "none":
        x = x + _attention(
            _norm(x, block, "mixer_norm/", model), block, model, config.mixer, segments, positions
        )
    if config.ffn.kind != "none":
        x = x + _mlp(_norm(x, block, "ffn_norm/", model), block, config.ffn)
    return x


def _norm(x, weights, prefix, model):
    if model.norm.kind == "layernorm":
        x = x - x.mean(-1, keepdims=True)
        return (
            x
            / np.sqrt((x * x).mean(-1, keepdims=True) + model.norm.epsilon)
            * weights[prefix + "scale"]
            + weights[prefix + "bias"]
        )
    return (
        x
        / np.sqrt((x * x).mean(-1, keepdims=True) + model.norm.epsilon)
        * weights[prefix + "scale"]
    )


def _attention(x, weights, model, config, segments, positions):
    heads = {}
    for name in ("query", "key", "value"):
        heads[name] = np.einsum("btd,dnh->btnh", x, weights[f"mixer/{name}"])
        if config.bias != "none":
            heads[name] = heads[name] + weights[f"mixer/{name}_bias"]
        if config.qk_norm == "rmsnorm" and name != "value":
            heads[name] = _norm(heads[name], weights, f"mixer/{name}_norm/", model)
        if config.position.kind == "rope" and name != "value":
            heads[name] = _rope(heads[name], positions, config.position.theta)
    out = np.zeros_like(heads["query"])
    batch, length, num_heads, head_dim = out.shape
    for b in range(batch):
        for t in range(length):
            first = 0 if config.window is None else max(0, t - config.window + 1)
            seen = [s for s in range(first, t + 1) if segments[b, s] == segments[b, t]]
            for n in range(num_heads):
                k = n // (num_heads // config.num_kv_heads)
                scores = heads["key"][b, seen, k] @ heads["query"][b, t, n] / math.sqrt(head_dim)
                p = np.exp(scores - scores.max())
                out[b, t, n] = p @ heads["value"][b, seen, k] / p.sum()
    y = np.einsum("btnh,nhd->btd", out, weights["mixer/out"])
    return y + weights["mixer/out_bias"] if config.bias == "all" else y


def _rope(x, positions, theta):
    half = x.shape[-1] // 2
    angles = positions[..., None, None] * theta ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _mlp(x, weights, config):
    bias = (
        (lambda name: weights[f"ffn/{name}_bias"]) if config.bias == "all" else (lambda name: 0.0)
    )
    up = x @ weights["ffn/up"] + bias("up")
    gate = x @ weights["ffn/gate"] + bias("gate") if "ffn/gate" in weights else up
    gelu = lambda z: 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))  # noqa: E731
    activate = {
        "swiglu": lambda z: z / (1 + np.exp(-z)),
        "geglu": gelu,
        "gelu": gelu,
        "relu": lambda z: np.maximum(z, 0),
    }[config.activation]
    hidden = activate(gate) * up if "ffn/gate" in weights else activate(gate)
    return hidden @ weights["ffn/down"] + bias("down")
