"""What a step needs on one device, estimated before it is compiled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import RunConfig
from maxlm.jax_versions import vary_over
from maxlm.layers.block import Block
from maxlm.layers.layer import Streams
from maxlm.layers.mtp import run_module
from maxlm.layers.stack import BlockExecution, Remat, run_block
from maxlm.models.decoder import Decoder
from maxlm.sharding.fsdp import GATHERED_AXES, vary
from maxlm.sharding.host import is_on_host
from maxlm.sharding.mesh import AXES, BATCH_SPEC
from maxlm.sharding.parameters import named_parameters, partition_spec, partition_specs
from maxlm.train.loss.execution import Execution
from maxlm.train.loss.gradients import microbatches

_FP32_BYTES = 4


def memory_per_device(
    config: RunConfig,
    state: Any,
    mesh: Mesh,
    execution: Execution,
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, int]:
    """Estimate the bytes on one device by part: parameters, optimizer, gradients, ..., logits.

    What lies between steps is exact. Activations are what automatic differentiation keeps of each
    block, found by tracing it: the compiler keeps less where it merges operations, and more where
    it copies. The block that the backward pass is in is there whole, recomputed if need be, and
    half as much again for the gradients flowing through.

    Left out: what the optimizer needs while it runs, when the activations are gone; an attention
    kernel's blocks of scores; rounds of experts after the first; the inputs that a pipeline's
    stages keep; and what the compiler copies.

    Args:
      config: the run.
      state: the declared train state, laid out.
      mesh: its devices.
      execution: how the loss is computed.
      batch: the fields of the global batch.
    """
    decoder: Decoder = state.decoder
    itemsize = execution.compute_dtype.itemsize
    shard = sum(map(_bytes_on_device, jax.tree.leaves(decoder)))
    whole = _whole_sizes(decoder, mesh)
    # Besides fp32 shards of the gradient, the sum so far and this microbatch's, a device holds the
    # gradient of what was
    # gathered: of one block in the compute dtype, of everything, or, summed in fp32, of everything.
    gathered, unreduced_bytes = {
        "layer": (whole["block"] + whole["outside"], whole["block"] * itemsize),
        "microbatch": (whole["all"], whole["all"] * itemsize),
        "step": (whole["all"], whole["all"] * _FP32_BYTES),
    }[config.train.gather]
    slots = [leaf for leaf in jax.tree.leaves(state.optimizer) if not is_on_host(leaf)]
    tokens = config.tokens_per_step / (mesh.size // (mesh.shape["tensor"] * mesh.shape["stage"]))
    chunk = min(config.objective.chunk_tokens, tokens / config.train.microbatches)
    memory = {
        "parameters": shard,
        "optimizer": sum(map(_bytes_on_device, slots)),
        "gradients": 2 * shard + unreduced_bytes,
        "gathered weights": gathered * itemsize,
        "activations": _activation_bytes(decoder, mesh, execution, batch),
        "logits": 2 * chunk * config.model.vocab_size / mesh.shape["tensor"] * _FP32_BYTES,
    }
    return {part: math.ceil(size) for part, size in memory.items()}


def _bytes_on_device(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize


def _whole_sizes(decoder: Decoder, mesh: Mesh) -> dict[str, float]:
    """Count the elements of gathered parameters on a device: outside the stack, of its largest
    block, and of all.
    """
    outside, blocks = 0.0, dict[str, float]()
    rows: dict[str, int] = {}
    for path, parameter in named_parameters(decoder):
        shape, spec = parameter.get_value().shape, partition_spec(parameter)
        kept = [axes for axes in spec if axes is not None and axes not in GATHERED_AXES]
        names = [name for axes in kept for name in ((axes,) if isinstance(axes, str) else axes)]
        size = math.prod(shape) / math.prod(mesh.shape[name] for name in names)
        if path.startswith(("stack/", "mtp/")):
            # A module behind the stack is whole where it runs, as a block is.
            block = "/".join(path.split("/")[: 3 if path.startswith("stack/") else 2])
            blocks[block] = blocks.get(block, 0.0) + size
            rows[block] = shape[0] // mesh.shape["stage"]
        else:
            outside += size
    largest = max(size / rows[block] for block, size in blocks.items())
    return {"outside": outside, "block": largest, "all": outside + sum(blocks.values())}


def _activation_bytes(
    decoder: Decoder, mesh: Mesh, execution: Execution, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> float:
    """Trace each block of a pattern, and add up what its backward pass finds of its forward pass."""
    # (rows, bytes kept, bytes if everything were) of each block.
    found: list[tuple[int, float, float]] = []

    def trace(decoder: Decoder, batch: dict[str, jax.Array]) -> jax.Array:
        decoder = vary(decoder)
        piece = {name: field[0] for name, field in microbatches(batch, execution).items()}
        info = decoder.prepared(execution.sequence_info(piece))
        num_rows, length = piece["tokens"].shape
        shape = (num_rows, length // lax.axis_size("tensor"), decoder.model.embed_dim)
        x_BTD = vary_over(jnp.zeros(shape, execution.compute_dtype), AXES)
        streams = Streams(x_BTD, decoder.embed(piece["tokens"], info).shared)
        everything = BlockExecution(execution.whole, Remat(everything=True))
        ways = execution.blocks._replace(gather=execution.whole), everything

        for stacked in (block for segment in decoder.stack for block in segment):
            rows = jax.tree.leaves(stacked)[0].shape[0]
            runs = (run_block(how, info, prevent_cse=False) for how in ways)
            kept, whole = (
                _saved_bytes(_with_carried(run, stacked, num_rows), stacked, streams)
                for run in runs
            )
            found.append((rows, kept, whole))
        for module in decoder.mtp:
            kept, whole = (
                _saved_bytes(run_module(how, info), module, (x_BTD, x_BTD)) for how in ways
            )
            found.append((1, kept, whole))
        return lax.psum(x_BTD.sum(), AXES)

    specs = partition_specs(decoder), dict.fromkeys(batch, BATCH_SPEC)
    jax.eval_shape(
        jax.shard_map(trace, mesh=mesh, in_specs=specs, out_specs=P()), decoder, dict(batch)
    )
    return sum(rows * kept for rows, kept, _ in found) + 1.5 * max(whole for *_, whole in found)


def _with_carried(run: Any, stacked: Block, num_rows: int) -> Any:
    """Return run(block, streams), with zeros for what the block's mixer carries."""
    block = jax.tree.map(lambda x: x[0], stacked)
    carried = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), block.carried_state(num_rows))
    return lambda block, streams: run(block, streams, carried)


def _saved_bytes(run: Any, stacked: Any, inputs: Any) -> float:
    """Count what automatic differentiation keeps of a block or a module, without its parameters and
    what is there for all blocks.

    The same value, worked out in two places, counts once, as the compiler merges them.
    """

    def saved(block: Any, inputs: Any) -> list[jax.Array]:
        _, pull = jax.vjp(run, block, inputs)
        return [leaf for leaf in jax.tree.leaves(pull) if isinstance(leaf, jax.Array)]

    block = jax.tree.map(lambda x: x[0], stacked)
    program = jax.make_jaxpr(saved)(block, inputs).jaxpr
    # Values by how they are computed; None for what depends on nothing that is different in every
    # block.
    names: dict[Any, Any] = {variable: (place,) for place, variable in enumerate(program.invars)}
    numbers: dict[Any, tuple[int]] = {}
    for equation in program.eqns:
        inputs = tuple(
            names.get(value) if isinstance(value, type(program.invars[0])) else str(value)
            for value in equation.invars
        )
        if any(isinstance(name, tuple) for name in inputs):
            computed = (equation.primitive.name, str(equation.params), inputs)
            for place, variable in enumerate(equation.outvars):
                names[variable] = numbers.setdefault(
                    (computed, place), (len(program.invars) + len(numbers),)
                )
    given = set(program.invars)
    kept = {
        names[value]: value.aval
        for value in program.outvars
        if names.get(value) and value not in given
    }
    return float(sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in kept.values()))
