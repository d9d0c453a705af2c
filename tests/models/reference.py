"""The decoder written out a second time, in fp64 numpy, one token after the other where that is
simplest.
"""

import math
from typing import NamedTuple

import numpy as np

from maxlm.sharding.parameters import named_parameters


def weights_of(decoder):
    """Return every parameter in fp64, by its path."""
    return {
        path: np.asarray(parameter[...], np.float64)
        for path, parameter in named_parameters(decoder)
    }


def logits(decoder, tokens, segments, positions, length=None):
    """Return fp64 (B, T, V) of a batch; `length` is that of whole sequences, T if not given."""
    places = Places(segments, positions, length or tokens.shape[1])
    return logits_of(decoder.model, weights_of(decoder), tokens, places)


def objective(model, weights, batch, loss):
    """Return (what is differentiated, nats): the mean loss of a batch with what `loss` adds, and
    the balance losses of its mixtures; the sum of plain cross entropy, and with modules for further
    tokens that of theirs.
    """
    penalties = []
    tokens = batch["tokens"]
    places = Places(batch["segment_ids"], batch["positions"], tokens.shape[1])
    x = hidden_of(model, weights, tokens, places, penalties)
    count = batch["weights"].astype(np.float64).sum()
    total, *nats = _cross_entropy(model, weights, x, batch["targets"], batch["weights"], loss)
    if model.mtp is None:
        return total / count + sum(penalties), *nats
    next_tokens, of_modules = batch["targets"], 0.0
    for k in range(1, model.mtp.depth + 1):
        x = _further(x, next_tokens, weights, k - 1, model, places, penalties)
        next_tokens = batch[f"targets_{k}"]
        parts = _cross_entropy(model, weights, x, next_tokens, batch[f"weights_{k}"], loss)
        total += loss.mtp_weight / model.mtp.depth * parts[0]
        of_modules += parts[1]
    return total / count + sum(penalties), *nats, of_modules


def _cross_entropy(model, weights, x, targets, counted, loss):
    """Return sums over the tokens that count: with what `loss` adds, and plain."""
    z = _head(model, weights, x)
    log_z = np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1)) + z.max(-1)
    target = np.take_along_axis(z, targets[..., None], axis=-1)[..., 0]
    each = log_z - (1 - loss.label_smoothing) * target - loss.label_smoothing * z.mean(-1)
    each += loss.z_loss * log_z**2
    counted = counted.astype(np.float64)
    return (counted * each).sum(), (counted * (log_z - target)).sum()


def _further(x, next_tokens, weights, number, model, places, penalties):
    """arXiv:2412.19437, eq. 21 to 23, with the halves as published weights have them."""
    prefix = f"mtp/{number}/"
    w = {path[len(prefix) :]: v[0] for path, v in weights.items() if path.startswith(prefix)}
    embedded = _norm(_embedded(model, weights, next_tokens, places), w, "embed_norm/", model)
    size = model.embed_dim
    mixed = embedded @ w["project"][:size]
    mixed = mixed + _norm(x, w, "hidden_norm/", model) @ w["project"][size:]
    block = {path[len("block/") :]: v for path, v in w.items() if path.startswith("block/")}
    return _norm(_block(mixed, block, model, model.mtp.block, places, penalties), w, "norm/", model)


def logits_of(model, weights, tokens, places):
    return _head(model, weights, hidden_of(model, weights, tokens, places))


def _embedded(model, weights, tokens, places):
    x = model.embed_scale * weights["embedding/tokens"][tokens]
    if model.position.kind == "learned":
        x = x + weights["embedding/positions"][places.positions]
    if model.position.kind == "sinusoidal":
        x = x + _sinusoids(places.positions, x.shape[-1], model.position.theta)
    return x


def hidden_of(model, weights, tokens, places, penalties=None):
    """Return what the head sees."""
    x = _embedded(model, weights, tokens, places)
    penalties = [] if penalties is None else penalties
    for number, (segment, repeats) in enumerate(zip(model.segments, model.repeats, strict=True)):
        for repeat in range(repeats):
            for place, config in enumerate(segment.blocks):
                prefix = f"stack/{number}/{place}/"
                block = {
                    path[len(prefix) :]: w[repeat]
                    for path, w in weights.items()
                    if path.startswith(prefix)
                }
                x = _block(x, block, model, config, places, penalties)
    return _norm(x, weights, "norm/", model)


def _head(model, weights, x):
    output = weights["embedding/tokens"].T if model.tie_embeddings else weights["head/output"]
    z = model.logit_scale * (x @ output)
    return (
        z if model.logit_softcap is None else model.logit_softcap * np.tanh(z / model.logit_softcap)
    )


class Places(NamedTuple):
    """Where tokens are: documents and positions in them (B, T), and how long whole sequences are."""

    segments: np.ndarray
    positions: np.ndarray
    length: int


def _block(x, block, model, config, places, penalties):
    def mixer(h):
        mix = _latent_attention if config.mixer.kind == "mla" else _attention
        return mix(h, block, model, config.mixer, places)

    def ffn(h):
        if config.ffn.kind == "moe":
            return _moe(h, block, config.ffn, penalties)
        return _mlp(h, block, config.ffn)

    def added(x, name, layer, before):
        h = x if config.norms == "post" else _norm(x, block, f"{before}_norm/", model)
        y = layer(h)
        y = y if config.norms == "pre" else _norm(y, block, f"{name}_post_norm/", model)
        return model.residual_scale * y

    if config.mixer.kind == "none":
        return x + added(x, "ffn", ffn, "ffn")
    if config.ffn.kind == "none":
        return x + added(x, "mixer", mixer, "mixer")
    if config.residual == "sequential":
        x = x + added(x, "mixer", mixer, "mixer")
        return x + added(x, "ffn", ffn, "ffn")
    before = "mixer" if config.residual == "parallel_one_norm" else "ffn"
    return x + added(x, "mixer", mixer, "mixer") + added(x, "ffn", ffn, before)


def _norm(x, weights, prefix, model):
    scale = weights[prefix + "scale"] + (model.norm.scale == "one_plus")
    if model.norm.kind == "layernorm" and prefix + "bias" in weights:
        x = x - x.mean(-1, keepdims=True)
        return (
            x / np.sqrt((x * x).mean(-1, keepdims=True) + model.norm.epsilon) * scale
            + weights[prefix + "bias"]
        )
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + model.norm.epsilon) * scale


def _attention(x, weights, model, config, places):
    heads = {}
    for name in ("query", "key", "value"):
        heads[name] = np.einsum("btd,dnh->btnh", x, weights[f"mixer/{name}"])
        if config.bias != "none":
            heads[name] = heads[name] + weights[f"mixer/{name}_bias"]
        if name != "value":
            heads[name] = _normalised(heads[name], weights, f"mixer/{name}_norm/", model, config)
            heads[name] = _turned(heads[name], config.position, places)
            if config.qk_norm == "l2":
                heads[name] = heads[name] / _rms(heads[name], -1, model)
    if config.temperature is not None:
        stretches = np.floor((places.positions + 1) / config.temperature.floor)
        grown = np.log(stretches + 1) * config.temperature.scale + 1
        heads["query"] = heads["query"] * grown[:, :, None, None]
    out = np.zeros((*x.shape[:2], config.num_heads, config.head_dim))
    for b, t, n in np.ndindex(out.shape[:3]):
        seen = [s for s in range(t + 1) if _sees(config, places, b, t, s)]
        k = n // (config.num_heads // config.num_kv_heads)
        scores = heads["key"][b, seen, k] @ heads["query"][b, t, n]
        scores = scores * (config.scale or 1 / math.sqrt(config.head_dim))
        scores = scores + [_added(config, weights, n, t - s) for s in seen]
        sink = weights["mixer/sink_bias"][n] if config.sinks else -np.inf
        peak = max(scores.max(), sink)
        p = np.exp(scores - peak)
        out[b, t, n] = p @ heads["value"][b, seen, k] / (p.sum() + np.exp(sink - peak))
    y = np.einsum("btnh,nhd->btd", out, weights["mixer/out"])
    return y + weights["mixer/out_bias"] if config.bias == "all" else y


def _latent_attention(x, weights, model, config, places):
    """arXiv:2405.04434, eq. 9-19, a head and a token at a time."""
    w = {path.removeprefix("mixer/"): weight for path, weight in weights.items()}
    queries = w.get("query")
    c_q = x
    if config.query_rank is not None:
        c_q, queries = _norm(x @ w["query_down"], w, "query_norm/", model), w["query_up"]
    c_kv = _norm(x @ w["kv_down"], w, "kv_norm/", model)
    rope = lambda x: _turned(x[:, :, None], config.position, places)[:, :, 0]  # noqa: E731
    shared = rope(x @ w["key_rope"])
    scale = config.scale or 1 / math.sqrt(config.nope_dim + config.rope_dim)
    y = np.zeros_like(x)
    for n in range(config.num_heads):
        q = c_q @ queries[:, n]
        q_c, q_r = q[..., : config.nope_dim], rope(q[..., config.nope_dim :])
        k_c, v_c = c_kv @ w["key_up"][:, n], c_kv @ w["value_up"][:, n]
        for b in range(len(x)):
            for t in range(x.shape[1]):
                seen = [s for s in range(t + 1) if places.segments[b, s] == places.segments[b, t]]
                scores = scale * (k_c[b, seen] @ q_c[b, t] + shared[b, seen] @ q_r[b, t])
                p = np.exp(scores - scores.max())
                y[b, t] += (p / p.sum()) @ v_c[b, seen] @ w["out"][n]
    return y


def _sees(config, places, b, t, s):
    """Whether token t sees token s, which is not after it."""
    chunk = config.chunk or places.length
    same_chunk = places.positions[b, s] // chunk == places.positions[b, t] // chunk
    in_window = config.window is None or t - s < config.window
    return places.segments[b, s] == places.segments[b, t] and same_chunk and in_window


def _added(config, weights, n, distance):
    """Return what is added to a head's score."""
    position = config.position
    if position.kind == "alibi":
        return -_slope(n, config.num_heads) * distance
    if position.kind == "relative":
        return weights["mixer/relative_bias"][n, _bucket(position, distance)]
    return 0.0


def _slope(n, num_heads):
    """Return the slope of a head, of as many as a power of two."""
    assert num_heads & (num_heads - 1) == 0
    return (2 ** (-8 / num_heads)) ** (n + 1)


def _bucket(position, distance):
    """Return the bucket of a distance, arXiv:1910.10683's, in logarithms."""
    exact = position.num_buckets // 2
    if distance < exact:
        return distance
    share = math.log(distance / exact) / math.log(position.max_distance / exact)
    return min(exact + int(share * (position.num_buckets - exact)), position.num_buckets - 1)


def _rms(x, axes, model):
    return np.sqrt((x * x).mean(axes, keepdims=True) + model.norm.epsilon)


def _normalised(x, weights, prefix, model, config):
    if config.qk_norm == "rmsnorm":
        return _norm(x, weights, prefix, model)
    if config.qk_norm == "rmsnorm_all":
        scale = weights[prefix + "scale"] + (model.norm.scale == "one_plus")
        return x / _rms(x, (2, 3), model) * scale
    return x


def _turned(x, position, places):
    """Turn queries or keys, with the scalings that depend on the length of sequences."""
    if position.kind != "rope":
        return x
    scaling, turned, more = position.scaling, position.rotary_dim or x.shape[-1], {}
    theta, factor = position.theta, 1.0
    if scaling is not None and scaling.kind == "dynamic":
        longer = max(places.length, scaling.original_length) / scaling.original_length
        stretch = scaling.factor * longer - scaling.factor + 1
        theta = theta * stretch ** (turned / (turned - 2))
    elif scaling is not None:
        assert scaling.kind == "longrope"
        long = places.length > scaling.original_length
        more = {"divisors": np.asarray(scaling.long_factor if long else scaling.short_factor)}
        factor = math.sqrt(1 + math.log(scaling.factor, scaling.original_length))
    first = _rope(x[..., :turned], places.positions, theta, position.layout, **more)
    return np.concatenate([factor * first, x[..., turned:]], axis=-1)


def _rope(x, positions, theta, layout="half", divisors=1.0):
    half = x.shape[-1] // 2
    angles = positions[..., None, None] * theta ** (-np.arange(half) / half) / divisors
    if layout == "interleaved":
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
        return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _sinusoids(positions, dim, theta):
    """Return arXiv:1706.03762's, a number at a time."""
    of_position = np.zeros((positions.max() + 1, dim))
    for p, number in np.ndindex(of_position.shape):
        angle = p / theta ** (number // 2 * 2 / dim)
        of_position[p, number] = math.cos(angle) if number % 2 else math.sin(angle)
    return of_position[positions]


def _mlp(x, weights, config, prefix="ffn/"):
    bias = (
        (lambda name: weights[f"{prefix}{name}_bias"])
        if config.bias == "all"
        else (lambda name: 0.0)
    )
    up = x @ weights[prefix + "up"] + bias("up")
    gate = x @ weights[prefix + "gate"] + bias("gate") if prefix + "gate" in weights else None
    return _activated(config.activation, gate, up) @ weights[prefix + "down"] + bias("down")


def _activated(name, gate, up):
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    erf = np.vectorize(math.erf)
    gelu = {
        "tanh": lambda z: 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
        "exact": lambda z: 0.5 * z * (1 + erf(z / math.sqrt(2))),
    }
    if name == "swiglu_clamped":
        gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
        return (up + 1) * gate * sigmoid(1.702 * gate)
    if name == "swiglu":
        return gate * sigmoid(gate) * up
    kind, _, form = name.partition("_")
    if kind == "geglu":
        return gelu[form](gate) * up
    return gelu[form](up) if kind == "gelu" else np.maximum(up, 0) ** (2 if kind == "relu2" else 1)


def _moe(x, weights, config, penalties):
    """One token after the other, each through its experts."""
    rows = x.reshape(-1, x.shape[-1])
    router, balance = config.router, config.balance
    out, loads, shares, squares = np.zeros_like(rows), 0.0, 0.0, 0.0
    for token, row in enumerate(rows):
        logit = row @ weights["ffn/router"]
        if router.bias:
            logit = logit + weights["ffn/router_linear_bias"]
        z = np.exp(logit - logit.max())
        scores = z / z.sum() if router.kind == "softmax" else 1 / (1 + np.exp(-logit))
        judged = (scores + weights.get("ffn/router_bias", 0.0)).reshape(router.num_groups, -1)
        best = np.sort(judged, axis=1)[:, -(2 if router.group_score == "top2" else 1) :].sum(axis=1)
        judged[np.argsort(best)[: router.num_groups - router.top_groups]] = -np.inf
        picked = np.argsort(judged.reshape(-1))[-config.experts_per_token :]
        total = scores[picked].sum() if router.weights == "normalised" else 1.0
        for expert in picked:
            own = {f"ffn/{name}": weights[f"ffn/{name}"][expert] for name in _of_experts(config)}
            factor = router.scale * scores[expert] / total
            if router.apply_to == "input":
                out[token] += _mlp(factor * row, own, config)
            else:
                out[token] += factor * _mlp(row, own, config)
        if config.shared_dim:
            shared = _mlp(row, weights, config.model_copy(update={"bias": "none"}), "ffn/shared/")
            gate = (
                1 / (1 + np.exp(-row @ weights["ffn/shared_gate"])) if config.shared_gate else 1.0
            )
            out[token] += gate * shared
        loads = loads + np.isin(np.arange(config.num_experts), picked)
        shares = shares + scores / scores.sum()
        squares += (np.log(z.sum()) + logit.max()) ** 2
    auxiliary = config.num_experts * (loads / loads.sum()) @ (shares / len(rows))
    penalties.append(balance.auxiliary_loss * auxiliary + balance.z_loss * squares / len(rows))
    return out.reshape(x.shape)


def _of_experts(config):
    names = ["up", "down"] + ["gate"] * config.activation.startswith(("swiglu", "geglu"))
    return names + [f"{name}_bias" for name in names if config.bias == "all"]
