"""The side of bench_train.py that is plain PyTorch: the same decoder and step, as one would write
them by hand.

RMSNorm, rotary positions, optional QK-norm, grouped-query attention by
scaled_dot_product_attention, SwiGLU or a mixture of such experts, tied or untied head, cross
entropy on full logits, clipping, fused AdamW; fp32 on the CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (what everyone calls it)
from bench_train import cpus, make_batch, serve
from torch import nn

from maxlm.config import RunConfig
from maxlm.config.layers.moe import BalanceConfig, RouterConfig
from maxlm.config.model import ModelConfig
from maxlm.config.positions.rope import RopePosition

NUM_BATCHES = 4


class Attention(nn.Module):
    """Causal attention over whole rows."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        mixer = model.layers[0].mixer
        self.head_dim = mixer.head_dim
        self.query = nn.Linear(model.embed_dim, mixer.num_heads * mixer.head_dim, bias=False)
        self.key = nn.Linear(model.embed_dim, mixer.num_kv_heads * mixer.head_dim, bias=False)
        self.value = nn.Linear(model.embed_dim, mixer.num_kv_heads * mixer.head_dim, bias=False)
        self.out = nn.Linear(mixer.num_heads * mixer.head_dim, model.embed_dim, bias=False)
        self.qk_norm = mixer.qk_norm == "rmsnorm"
        if self.qk_norm:
            self.query_norm = nn.RMSNorm(mixer.head_dim, model.norm.epsilon)
            self.key_norm = nn.RMSNorm(mixer.head_dim, model.norm.epsilon)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = self.query(x).view(heads), self.key(x).view(heads), self.value(x).view(heads)
        if self.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(out.transpose(1, 2).flatten(2))


class GatedMlp(nn.Module):
    """SwiGLU."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """The experts one after the other, each on the tokens that picked it; none is dropped."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        ffn = model.layers[0].ffn
        self.num_choices = ffn.experts_per_token
        self.router = nn.Linear(model.embed_dim, ffn.num_experts, bias=False)
        self.experts = nn.ModuleList(
            GatedMlp(model.embed_dim, ffn.expert_dim) for _ in range(ffn.num_experts)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, 1)
        scores, picked = self.router(rows).softmax(dim=-1).topk(self.num_choices, dim=-1)
        scores = scores / scores.sum(dim=-1, keepdim=True)
        y = torch.zeros_like(rows)
        for index, expert in enumerate(self.experts):
            row, place = torch.where(picked == index)
            y = y.index_add(0, row, scores[row, place, None] * expert(rows[row]))
        return y.view_as(x)


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.mixer_norm = nn.RMSNorm(model.embed_dim, model.norm.epsilon)
        self.mixer = Attention(model)
        self.ffn_norm = nn.RMSNorm(model.embed_dim, model.norm.epsilon)
        ffn = model.layers[0].ffn
        moe = ffn.kind == "moe"
        self.ffn = Experts(model) if moe else GatedMlp(model.embed_dim, ffn.hidden_dim)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.mixer(self.mixer_norm(x), cos, sin)
        return x + self.ffn(self.ffn_norm(x))


class Decoder(nn.Module):
    """Returns the mean loss."""

    def __init__(self, config: RunConfig):
        super().__init__()
        model = config.model
        self.embedding = nn.Embedding(model.vocab_size, model.embed_dim)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.num_layers))
        self.norm = nn.RMSNorm(model.embed_dim, model.norm.epsilon)
        self.head = nn.Linear(model.embed_dim, model.vocab_size, bias=False)
        if model.tie_embeddings:
            self.head.weight = self.embedding.weight
        mixer = model.layers[0].mixer
        half = torch.arange(0, mixer.head_dim, 2, dtype=torch.float64) / mixer.head_dim
        angles = torch.outer(torch.arange(config.data.sequence_length), mixer.position.theta**-half)
        self.register_buffer("cos", angles.cos().float()[None, :, None])
        self.register_buffer("sin", angles.sin().float()[None, :, None])

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def main() -> None:
    folder = Path(sys.argv[1])
    config = RunConfig.model_validate_json((folder / "config.json").read_text())
    refuse_unsupported(config)
    torch.set_num_threads(len(cpus()))
    decoder = Decoder(config)
    load(decoder, np.load(folder / "parameters.npz"))
    optimizer = build_optimizer(config, decoder)
    compute_loss = torch.compile(decoder) if "--compile" in sys.argv else decoder
    batches = [
        tuple(torch.from_numpy(array.astype(np.int64)) for array in make_batch(config, index))
        for index in range(NUM_BATCHES)
    ]
    done = 0

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = compute_loss(tokens, targets)
        loss.backward()
        if config.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(decoder.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def run_steps(count: int) -> list[float]:
        nonlocal done
        losses = []
        for _ in range(count):
            losses.append(step(*batches[done % NUM_BATCHES]))
            done += 1
        return [float(loss) for loss in losses]

    serve(run_steps)


def refuse_unsupported(config: RunConfig) -> None:
    """Stop where the model above is not the configured one."""
    model = config.model
    mixer, ffn = model.layers[0].mixer, model.layers[0].ffn
    if mixer.kind != "attention" or ffn.kind not in ("mlp", "moe"):
        raise SystemExit(f"the PyTorch step has no {mixer.kind} with {ffn.kind}")
    wrong = {
        "model.norm": (model.norm.kind, model.norm.scale) != ("rmsnorm", "plain"),
        "block.norms, residual": (model.layers[0].norms, model.layers[0].residual)
        != ("pre", "sequential"),
        "model.embed_scale, residual_scale, logit_scale": {
            model.embed_scale,
            model.residual_scale,
            model.logit_scale,
        }
        != {1.0},
        "model.logit_softcap": model.logit_softcap is not None,
        "model.position": model.position.kind != "none",
        "mixer.position": not isinstance(mixer.position, RopePosition)
        or mixer.position != RopePosition(theta=mixer.position.theta),
        "model.segments": len(model.segments) > 1 or len(model.segments[0].pattern) > 1,
        "mixer.window, chunk, softcap, sinks": mixer.window is not None
        or mixer.chunk is not None
        or mixer.softcap is not None
        or mixer.sinks,
        "mixer.scale, temperature": mixer.scale is not None or mixer.temperature is not None,
        "mixer.qk_norm": mixer.qk_norm not in ("none", "rmsnorm"),
        "ffn.activation": ffn.activation != "swiglu",
        "bias": mixer.bias != "none" or ffn.bias != "none",
        "ffn.shared_dim, router, balance, capacity_factor": ffn.kind == "moe"
        and (ffn.shared_dim, ffn.router, ffn.balance, ffn.capacity_factor)
        != (0, RouterConfig(), BalanceConfig(auxiliary_loss=0.0), None),
        "optimizer.overrides": bool(config.optimizer.overrides),
        "objective.z_loss, label_smoothing": config.objective.z_loss > 0
        or config.objective.label_smoothing > 0,
        "train.compute_dtype": config.train.compute_dtype == "bfloat16",
    }
    if any(wrong.values()):
        raise SystemExit(
            f"the PyTorch step has no such {', '.join(key for key, bad in wrong.items() if bad)}"
        )


def load(decoder: Decoder, parameters: np.lib.npyio.NpzFile) -> None:
    """Copy maxlm's parameters; a matrix there maps (in) -> (out), here it is stored (out, in)."""

    def fill(weight: torch.Tensor, array: np.ndarray, *, inputs: int = 1) -> None:
        if array.ndim > 1:
            array = array.reshape(int(np.prod(array.shape[:inputs])), -1).T
        weight.data.copy_(torch.from_numpy(np.ascontiguousarray(array)))

    fill(decoder.embedding.weight, parameters["embedding/tokens"].T)
    fill(decoder.norm.weight, parameters["norm/scale"])
    if decoder.head.weight is not decoder.embedding.weight:
        fill(decoder.head.weight, parameters["head/output"])
    stacked = {
        path.removeprefix("stack/0/0/"): parameters[path]
        for path in parameters.files
        if path.startswith("stack/")
    }
    for index, block in enumerate(decoder.blocks):
        own = {path: rows[index] for path, rows in stacked.items()}
        fill(block.mixer_norm.weight, own["mixer_norm/scale"])
        fill(block.ffn_norm.weight, own["ffn_norm/scale"])
        for name in ("query", "key", "value"):
            fill(getattr(block.mixer, name).weight, own[f"mixer/{name}"])
        fill(block.mixer.out.weight, own["mixer/out"], inputs=2)
        if block.mixer.qk_norm:
            fill(block.mixer.query_norm.weight, own["mixer/query_norm/scale"])
            fill(block.mixer.key_norm.weight, own["mixer/key_norm/scale"])
        is_moe = isinstance(block.ffn, Experts)
        if is_moe:
            fill(block.ffn.router.weight, own["ffn/router"])
        for name in ("gate", "up", "down"):
            arrays = own[f"ffn/{name}"] if is_moe else [own[f"ffn/{name}"]]
            for mlp, array in zip(
                block.ffn.experts if is_moe else [block.ffn], arrays, strict=True
            ):
                fill(getattr(mlp, name).weight, array)


def build_optimizer(config: RunConfig, decoder: Decoder) -> torch.optim.AdamW:
    """Build fused AdamW; matrices of the blocks decay, and what `optimizer.no_decay` does not name."""
    settings = config.optimizer
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in decoder.named_parameters():
        kind = "norm" if "norm" in name else "embedding" if name.startswith("embedding") else None
        groups[kind not in settings.no_decay].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": group, "weight_decay": settings.weight_decay if decays else 0.0}
            for decays, group in groups.items()
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )


if __name__ == "__main__":
    main()
