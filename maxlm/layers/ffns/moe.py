"""Mixture of experts: every token goes through a few of many feed-forward layers (arXiv:1701.06538,
arXiv:2101.03961).

The router works between `leave` and `enter`, where each token is on one `tensor` device only, so
that nothing about it is computed or counted twice.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from maxlm.config.layers.mlp import MlpConfig
from maxlm.config.layers.moe import MoeConfig, RouterConfig
from maxlm.config.model import ModelConfig
from maxlm.layers.ffns.mlp import GATED, Mlp, activate
from maxlm.layers.layer import Layer
from maxlm.layers.sequence import SequenceInfo
from maxlm.ops.grouped_matmul import add_per_group, grouped_matmul
from maxlm.sharding.experts import (
    Plan,
    add_up,
    capacity_of,
    combine,
    dispatch,
    in_rounds,
    make_plan,
    most_rows,
    take,
)
from maxlm.sharding.mesh import EXPERT_FSDP_AXES, FSDP_AXES, REPORT_AXES
from maxlm.sharding.parameters import Constant, Normal, weight, with_value
from maxlm.sharding.tensor import once_of_tensor


class RouterStats(NamedTuple):
    """What a router did, fp32 sums over the tokens that this device routed.

    Sums of sums are those of more tokens.

    Attributes:
      load_E: copies sent to each expert, dropped ones included.
      score_E: scores, each token's divided by their sum.
      log_z_squared: squared log sum exp of the logits.
      entropy: entropy of each token's scores, in nats.
      dropped: copies that found no room.
    """

    load_E: jax.Array
    score_E: jax.Array
    log_z_squared: jax.Array
    entropy: jax.Array
    dropped: jax.Array


class Moe(Layer):
    """Experts are split over `expert`, their hidden units over `tensor`."""

    def __init__(self, model: ModelConfig, config: MoeConfig):
        experts, dim, hidden = config.num_experts, model.embed_dim, config.expert_dim
        init, init_out = (
            Normal(model.init_std),
            Normal(model.init_std / (2 * model.num_layers) ** 0.5),
        )
        in_spec, out_spec = (
            P("expert", EXPERT_FSDP_AXES, "tensor"),
            P("expert", "tensor", EXPERT_FSDP_AXES),
        )
        used = config.experts_per_token / experts
        self.router = weight(
            (dim, experts), P(FSDP_AXES, None), init, role="router", inputs=(0,), fp32=True
        )
        if config.router.bias:
            self.router_linear_bias = weight(
                (experts,), P(None), Constant(0.0), role="bias", fp32=True
            )
        if config.balance.bias_update:
            self.router_bias = weight((experts,), P(None), Constant(0.0), role="state", fp32=True)
        self.up = weight(
            (experts, dim, hidden), in_spec, init, role="matrix", inputs=(1,), used=used
        )
        if config.activation in GATED:
            self.gate = weight(
                (experts, dim, hidden), in_spec, init, role="matrix", inputs=(1,), used=used
            )
        self.down = weight(
            (experts, hidden, dim), out_spec, init_out, role="matrix", inputs=(1,), used=used
        )
        if config.bias == "all":
            up_bias, zeros = ((experts, hidden), P("expert", "tensor")), Constant(0.0)
            self.up_bias = weight(*up_bias, zeros, role="bias", used=used)
            if config.activation in GATED:
                self.gate_bias = weight(*up_bias, zeros, role="bias", used=used)
            self.down_bias = weight(
                (experts, dim), P("expert", EXPERT_FSDP_AXES), zeros, role="bias", used=used
            )
        if config.shared_dim:
            self.shared = Mlp(
                model, MlpConfig(hidden_dim=config.shared_dim, activation=config.activation)
            )
        if config.shared_gate:
            self.shared_gate = weight(
                (dim,), P(FSDP_AXES), init, role="router", inputs=(0,), fp32=True
            )
        self.config = config

    def __call__(self, x_BTD: jax.Array, info: SequenceInfo) -> tuple[jax.Array, RouterStats]:
        """Map each token on its own; (B, T / tensor, D) -> (B, T / tensor, D), and what the router
        did.
        """
        config = self.config
        weights_BTA, experts_BTA, stats = self.route(x_BTD, info.real_BT)
        x_BTD, weights_BTA, experts_BTA = map(info.enter, (x_BTD, weights_BTA, experts_BTA))
        length, num_choices = experts_BTA.shape[1:]
        length *= lax.axis_size("context")
        capacity = capacity_of(config.capacity_factor, length, num_choices, config.num_experts)
        plan = make_plan(experts_BTA, config.num_experts, capacity)
        most = most_rows(experts_BTA.shape, config.num_experts, capacity)
        rows = most
        if lax.axis_size("expert") > 1:  # alone, a device works on its copies where they lie
            rows = min(most, math.ceil(config.buffer_factor * experts_BTA.size))
        run = functools.partial(_run_round, config, rows)
        weights_NA = weights_BTA.reshape(-1, num_choices).astype(x_BTD.dtype)
        inputs = (x_BTD.reshape(-1, x_BTD.shape[2]), weights_NA, self._matrices())
        y_BTD = in_rounds(run, inputs, plan, rows, most).reshape(x_BTD.shape)
        if config.shared_dim:
            y_BTD += self._shared(x_BTD)
        # The plan is the same on every tensor device, and its drops are counted once.
        dropped = (plan.place_NA == experts_BTA.size).sum() / lax.axis_size("tensor")
        return info.leave(y_BTD), stats._replace(dropped=dropped.astype(jnp.float32))

    def _shared(self, x_BTD: jax.Array) -> jax.Array:
        """Return what this device's hidden units of the shared experts contribute to whole
        sequences, (B, T, D).
        """
        y_BTD = self.shared.partial_sum(x_BTD)
        if not self.config.shared_gate:
            return y_BTD
        # Every tensor device works it out, with D multiplications a token: sending it costs more.
        logit_BT = jnp.einsum("BTD,D->BT", x_BTD.astype(jnp.float32), self.shared_gate[...])
        return y_BTD * jax.nn.sigmoid(logit_BT)[..., None].astype(y_BTD.dtype)

    def route(
        self, x_BTD: jax.Array, real_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array, RouterStats]:
        """Return weights (B, T, A) fp32, experts (B, T, A), and statistics of real tokens (no drops
        yet).
        """
        logits_BTE = jnp.einsum(
            "BTD,DE->BTE",
            x_BTD.astype(jnp.float32),
            self.router[...],
            precision=lax.Precision.HIGHEST,
        )
        if self.config.router.bias:
            logits_BTE += self.router_linear_bias[...]
        bias_E = (
            lax.stop_gradient(self.router_bias[...]) if self.config.balance.bias_update else None
        )
        scores_BTE = SCORES[self.config.router.kind](logits_BTE)
        weights_BTA, experts_BTA = pick(
            scores_BTE, bias_E, self.config.experts_per_token, self.config.router
        )
        return weights_BTA, experts_BTA, _statistics(logits_BTE, scores_BTE, experts_BTA, real_BT)

    def penalty(self, report: RouterStats) -> jax.Array:
        """Return this device's part of the balance losses."""
        return balance_loss(report, self.config)

    def metrics(self, report: RouterStats) -> dict[str, jax.Array]:
        """Return the `moe/<layer>/...` of the catalogue, a number for each row."""
        bias_LE = self.router_bias[...] if self.config.balance.bias_update else None
        return {
            f"moe/{name}": value
            for name, value in router_metrics(report, bias_LE, self.config).items()
        }

    def after_step(self, before: Self, report: RouterStats) -> Self:
        """Move the router's bias against the loads of the step."""
        copy: Self = jax.tree.map(lambda leaf: leaf, self)
        if self.config.balance.bias_update:
            bias_LE = rebalanced_bias(before.router_bias[...], report.load_E, self.config)
            copy.router_bias = with_value(self.router_bias, bias_LE)
        return copy

    def _matrices(self) -> Matrices:
        gated, biased = self.config.activation in GATED, self.config.bias == "all"
        return Matrices(
            self.up[...],
            self.gate[...] if gated else None,
            self.down[...],
            self.up_bias[...] if biased else None,
            self.gate_bias[...] if biased and gated else None,
            self.down_bias[...] if biased else None,
        )


class Matrices(NamedTuple):
    """The parameters of this device's experts; None where there is no gate, or no bias."""

    up_EDF: jax.Array
    gate_EDF: jax.Array | None
    down_EFD: jax.Array
    up_bias_EF: jax.Array | None
    gate_bias_EF: jax.Array | None
    down_bias_ED: jax.Array | None


def _run_round(
    config: MoeConfig,
    rows: int,
    inputs: tuple[jax.Array, jax.Array, Matrices],
    plan: Plan,
    number: jax.Array,
) -> jax.Array:
    """Return what this device's hidden units of all experts add to its tokens in a round of `rows`
    rows, (N, D).

    Args:
      config: the mixture.
      rows: rows that a device takes in a round.
      inputs: tokens (N, D), weights of their copies (N, A), the experts' parameters.
      plan: the copies, sorted.
      number: which round, from 0.
    """
    x_ND, weights_NA, matrices = inputs
    token_M = plan.copy_M // weights_NA.shape[1]
    rows_MD = take(x_ND, token_M, plan.place_NA)
    weights_M1 = take(weights_NA.reshape(-1, 1), plan.copy_M, plan.place_NA.reshape(-1, 1))
    weights_B1 = None
    if config.router.apply_to == "input":
        rows_MD *= weights_M1
    else:
        weights_B1, _ = dispatch(weights_M1, plan, number, rows)
    rows_BD, blocks = dispatch(rows_MD, plan, number, rows)
    sizes_E = blocks[1].sizes_PE.sum(axis=0)
    rows_BD = _experts(config, rows_BD, weights_B1, matrices, sizes_E)
    return add_up(combine(rows_BD, blocks, plan.copy_M.shape[0]), plan.place_NA, token_M)


def _experts(
    config: MoeConfig,
    rows_BD: jax.Array,
    weights_B1: jax.Array | None,
    matrices: Matrices,
    sizes_E: jax.Array,
) -> jax.Array:
    """Return what this device's hidden units make of rows that lie by expert, (B, D).

    Weights are multiplied with the hidden units, not with what comes out: their gradients then need
    neither the last product nor its way back, so no backward pass computes those again.
    """
    hidden_BF = _project(rows_BD, matrices.up_EDF, matrices.up_bias_EF, sizes_E)
    hidden_BF, gate_BF = checkpoint_name(hidden_BF, "mlp_hidden"), None
    if matrices.gate_EDF is not None:
        gate_BF = _project(rows_BD, matrices.gate_EDF, matrices.gate_bias_EF, sizes_E)
        gate_BF = checkpoint_name(gate_BF, "mlp_gate")
    bias_ED = None if matrices.down_bias_ED is None else once_of_tensor(matrices.down_bias_ED)
    active_BF = activate(config.activation, hidden_BF, gate_BF)
    if weights_B1 is not None:
        active_BF *= weights_B1
    return _project(active_BF, matrices.down_EFD, bias_ED, sizes_E, weights_B1)


def _project(
    x_RI: jax.Array,
    w_EIO: jax.Array,
    bias_EO: jax.Array | None,
    sizes_E: jax.Array,
    weights_R1: jax.Array | None = None,
) -> jax.Array:
    y_RO = grouped_matmul(x_RI, w_EIO, sizes_E)
    return y_RO if bias_EO is None else add_per_group(y_RO, bias_EO, sizes_E, weights_R1)


# --- routers --------------------------------------------------------------------------------------

SCORES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}
BEST_OF_GROUP = {"top2": 2, "max": 1}
"""How many of its best scores count for a group."""


def pick(
    scores_BTE: jax.Array, bias_E: jax.Array | None, num_choices: int, config: RouterConfig
) -> tuple[jax.Array, jax.Array]:
    """Pick the experts with the largest biased scores; their weights come from the scores without
    bias.

    Returns:
      weights: fp32 (B, T, A).
      experts: int32 (B, T, A), distinct.
    """
    biased_BTE = lax.stop_gradient(scores_BTE if bias_E is None else scores_BTE + bias_E)
    if config.top_groups < config.num_groups:
        biased_BTE = _within_top_groups(biased_BTE, config)
    experts_BTA = lax.top_k(biased_BTE, num_choices)[1]
    # Not a gather: its gradient would be a scatter, which a TPU sorts first.
    picked_BTAE = experts_BTA[..., None] == jnp.arange(scores_BTE.shape[2])
    weights_BTA = jnp.where(picked_BTAE, scores_BTE[:, :, None], 0).sum(axis=3)
    if config.weights == "normalised":
        weights_BTA /= weights_BTA.sum(axis=2, keepdims=True) + 1e-20
    return weights_BTA * config.scale, experts_BTA


def _within_top_groups(scores_BTE: jax.Array, config: RouterConfig) -> jax.Array:
    """Put -inf outside the groups with the largest sums of their two best scores (arXiv:2412.19437,
    section 2.1.2), or with the largest best ones (arXiv:2405.04434, section 2.1.3).
    """
    grouped_BTGE = scores_BTE.reshape(*scores_BTE.shape[:2], config.num_groups, -1)
    best = min(BEST_OF_GROUP[config.group_score], grouped_BTGE.shape[3])
    group_BTG = lax.top_k(grouped_BTGE, best)[0].sum(axis=3)
    top = lax.top_k(group_BTG, config.top_groups)[1]
    allowed_BTG = (top[..., None] == jnp.arange(config.num_groups)).any(axis=2)
    return jnp.where(allowed_BTG[..., None], grouped_BTGE, -jnp.inf).reshape(scores_BTE.shape)


# --- balance --------------------------------------------------------------------------------------


def _statistics(
    logits_BTE: jax.Array, scores_BTE: jax.Array, experts_BTA: jax.Array, real_BT: jax.Array
) -> RouterStats:
    real_BT1 = real_BT[..., None].astype(jnp.float32)
    share_BTE = real_BT1 * scores_BTE / scores_BTE.sum(axis=2, keepdims=True)
    chosen_BTE = (experts_BTA[..., None] == jnp.arange(scores_BTE.shape[2])).sum(axis=2) * real_BT[
        ..., None
    ]
    log_z = real_BT * jax.nn.logsumexp(logits_BTE, axis=2)
    entropy = -lax.stop_gradient(jax.scipy.special.xlogy(share_BTE, share_BTE)).sum()
    return RouterStats(
        load_E=chosen_BTE.sum(axis=(0, 1)).astype(jnp.float32),
        score_E=share_BTE.sum(axis=(0, 1)),
        log_z_squared=(log_z * log_z).sum(),
        entropy=entropy,
        dropped=jnp.zeros((), jnp.float32),
    )


def balance_loss(stats_L: RouterStats, config: MoeConfig) -> jax.Array:
    """Return this device's part of the balance losses of L layers; the sum over `TOKEN_AXES` is the
    loss.

    With load fractions f_e (sum 1) and mean scores p_e over the N tokens of all devices, summed
    over layers

      auxiliary_loss E sum_e f_e p_e + z_loss mean(log(Z)^2)

    as in Switch (arXiv:2101.03961) and per layer in DeepSeek-V2 (arXiv:2405.04434, eq. 23). Others
    count differently: docs/architecture.md says which coefficient here is worth one of theirs.
    Filling counts as no token.

    f is a count and has no gradient, so with the global f the loss is linear in what devices add to
    p: no gradient crosses devices. It is no linear function of the batch: microbatches (the same
    ones on every mesh) are balanced each for itself and averaged.
    """
    load_LE = lax.psum(lax.stop_gradient(stats_L.load_E), REPORT_AXES)
    copies_L = jnp.maximum(load_LE.sum(axis=1), 1)  # a row of a pipeline's stage may hold no layer
    auxiliary_L = config.num_experts * (load_LE * stats_L.score_E).sum(axis=1) / copies_L
    partial_L = (
        config.balance.auxiliary_loss * auxiliary_L + config.balance.z_loss * stats_L.log_z_squared
    )
    return lax.psum((partial_L * config.experts_per_token / copies_L).sum(), "tensor")


def router_metrics(
    stats_L: RouterStats, bias_LE: jax.Array | None, config: MoeConfig
) -> dict[str, jax.Array]:
    """Return what a step's statistics say of L layers, (L,) by name: the `moe/<layer>/...` of the
    catalogue.
    """
    copies_L = stats_L.load_E.sum(axis=1)
    tokens_L = copies_L / config.experts_per_token
    score_LE = stats_L.score_E / tokens_L[:, None]
    metrics = {
        "load_max": stats_L.load_E.max(axis=1) * config.num_experts / copies_L,
        "balance": config.num_experts * (stats_L.load_E * score_LE).sum(axis=1) / copies_L,
        "entropy": stats_L.entropy / tokens_L,
        "dropped": stats_L.dropped / copies_L,
    }
    return (
        metrics if bias_LE is None else {**metrics, "bias_norm": jnp.linalg.norm(bias_LE, axis=1)}
    )


def rebalanced_bias(bias_LE: jax.Array, load_LE: jax.Array, config: MoeConfig) -> jax.Array:
    """Move the bias of experts with more than their share of the load down, of the others up
    (arXiv:2408.15664).
    """
    mean_L1 = load_LE.mean(axis=1, keepdims=True)
    return bias_LE + config.balance.bias_update * jnp.sign(mean_L1 - load_LE)
