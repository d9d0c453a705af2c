"""Cross entropy over a vocabulary split across devices, in chunks of tokens: full logits never
exist.

The loss is linear in its cotangent, so the forward pass of a training step computes the gradients
too, chunk by chunk while the chunk's logits are there; the backward pass only scales them. Logits
are thus computed once, and what is kept between the passes is one gradient of x and one of the
output projection.

Products p = x w with the output projection become logits by a factor a and a soft cap c, where
there is one:

  z = c tanh(a p / c)        dz / dp = a (1 - (z / c)^2)

For a token with logits z of V ids, lse = log sum exp z, target y, weight w, smoothing s and z-loss
coefficient k:

  loss = w (lse - (1 - s) z_y - s mean(z) + k lse^2)
  d loss / d z = w ((1 + 2 k lse) softmax(z) - (1 - s) onehot(y) - s / V)

Columns from V on fill a vocabulary up to a round number. They are no ids: their logits count as
-inf, so they are in neither lse nor mean, and their gradient is 0.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import vary_over, varying_axes
from maxlm.products import einsum_fp32


@dataclasses.dataclass(frozen=True)
class LogitRule:
    """How products with the output projection become logits.

    Attributes:
      scale: a factor on them.
      softcap: what then bounds them, by a tanh; None: nothing does.
    """

    scale: float = 1.0
    softcap: float | None = None

    def logits(self, products: jax.Array) -> jax.Array:
        """Return the logits of fp32 products."""
        scaled = products * self.scale
        return scaled if self.softcap is None else self.softcap * jnp.tanh(scaled / self.softcap)

    def slope(self, logits: jax.Array) -> jax.Array | float:
        """Return the derivative of logits with respect to their products."""
        if self.softcap is None:
            return self.scale
        return self.scale * (1 - jnp.square(logits / self.softcap))


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """What the loss adds to plain cross entropy, how many tokens have logits at once, and which
    columns are ids.

    Attributes:
      logit_rule: how logits come from products.
      num_ids: the ids are the columns [0, num_ids) of the whole vocabulary; None: all columns.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    chunk_tokens: int = 1024
    axis: str = "tensor"
    logit_rule: LogitRule = LogitRule()
    num_ids: int | None = None


def cross_entropy(
    x_TD: jax.Array,
    output_DV: jax.Array,
    targets_T: jax.Array,
    weights_T: jax.Array,
    options: LossOptions,
) -> tuple[jax.Array, jax.Array]:
    """Sum the weighted losses of all tokens, over a vocabulary split across `options.axis`.

    Args:
      x_TD: last hidden states, the same on every device of the axis.
      output_DV: this device's columns of the output projection.
      targets_T: int32 global token ids; the loss of one that is not below `options.num_ids` is
        infinite.
      weights_T: fp32, 0 for tokens that do not count.

    Returns:
      objective: fp32 scalar to differentiate, with z-loss and smoothing; differentiable once, in x
        and output.
      nats: fp32 scalar, plain cross entropy; not differentiable.
    """
    return _cross_entropy(x_TD, output_DV, targets_T, weights_T, options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(x, output, targets, weights, options):  # type: ignore[no-untyped-def]
    chunks = _chunks(options.chunk_tokens, x, targets, weights)

    def loss(chunk):  # type: ignore[no-untyped-def]
        x_chunk, targets_chunk, weights_chunk = chunk
        return _chunk_loss(x_chunk, targets_chunk, weights_chunk, output, options)[:2]

    objective, nats = lax.map(loss, chunks)
    return objective.sum(), nats.sum()


def _cross_entropy_forward(x, output, targets, weights, options):  # type: ignore[no-untyped-def]
    def body(d_output, chunk):  # type: ignore[no-untyped-def]
        x_chunk, targets_chunk, weights_chunk = chunk
        objective, nats, d_products = _chunk_loss(
            x_chunk, targets_chunk, weights_chunk, output, options
        )
        d_products = d_products.astype(x.dtype)
        d_output += einsum_fp32("TD,TV->DV", x_chunk, d_products)
        return d_output, (objective, nats, jnp.einsum("TV,DV->TD", d_products, output))

    chunks = _chunks(options.chunk_tokens, x, targets, weights)
    zeros = vary_over(jnp.zeros(output.shape, jnp.float32), varying_axes(x, output))
    d_output, (objective, nats, d_x) = lax.scan(body, zeros, chunks)
    d_x = d_x.reshape(-1, x.shape[1])[: x.shape[0]]
    return (objective.sum(), nats.sum()), (d_x, d_output.astype(output.dtype))


def _cross_entropy_backward(options, saved, cotangents):  # type: ignore[no-untyped-def]
    del options
    d_x, d_output = saved
    d_objective, _ = cotangents
    return (
        d_x * d_objective.astype(d_x.dtype),
        d_output * d_objective.astype(d_output.dtype),
        None,
        None,
    )


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _chunk_loss(x, targets, weights, output, options):  # type: ignore[no-untyped-def]
    """Return the chunk's (objective, nats) and the gradient of its products, each device's own
    columns.
    """
    axis = options.axis
    logits = options.logit_rule.logits(einsum_fp32("TD,DV->TV", x, output))
    slope = options.logit_rule.slope(logits)
    num_columns = logits.shape[1]
    ids = lax.axis_index(axis) * num_columns + jnp.arange(num_columns, dtype=jnp.int32)
    num_all = num_columns * lax.axis_size(axis)
    num_ids = num_all if options.num_ids is None else options.num_ids
    is_id = ids < num_ids
    if num_ids < num_all:
        logits = jnp.where(is_id, logits, -jnp.inf)
    peak = lax.pmax(logits.max(axis=-1), axis)
    exp = jnp.exp(logits - peak[:, None])
    total = lax.psum(exp.sum(axis=-1), axis)
    lse = jnp.log(total) + peak
    hit = targets[:, None] == ids
    target_logit = lax.psum(jnp.where(hit, logits, 0.0).sum(axis=-1), axis)
    nats = weights * (lse - target_logit)
    smoothing = options.label_smoothing
    objective = nats + weights * options.z_loss * lse**2
    d_logits = exp * ((1 + 2 * options.z_loss * lse) / total)[:, None] - (1 - smoothing) * hit
    if smoothing:
        mean_logit = lax.psum(jnp.where(is_id, logits, 0.0).sum(axis=-1), axis) / num_ids
        objective += weights * smoothing * (target_logit - mean_logit)
        d_logits -= smoothing / num_ids * is_id
    return objective.sum(), nats.sum(), d_logits * slope * weights[:, None]


def _chunks(size, x, *per_token):  # type: ignore[no-untyped-def]
    """Cut tokens into chunks of a size, the last one filled with tokens of weight 0."""
    size = min(size, x.shape[0])
    missing = -x.shape[0] % size

    def cut(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)])
        return padded.reshape(-1, size, *array.shape[1:])

    return tuple(cut(array) for array in (x, *per_token))
