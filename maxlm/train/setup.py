"""From a config to everything the loop needs, in a straight line."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from maxlm.config.checks import resolve_mesh
from maxlm.config.errors import ConfigError, Problem
from maxlm.config.schema import MeshConfig, RunConfig
from maxlm.data.dataset import Dataset, build_dataset, validation_sources
from maxlm.jax_versions import FUSED_GATHERS
from maxlm.kernels.shape import AttentionShape
from maxlm.models.decoder import Decoder
from maxlm.ops.attention import choose_kernel
from maxlm.optim.adamw import build_optimizer
from maxlm.optim.schedule import make_schedule
from maxlm.sharding.host import HOST_MEMORY, has_host_memory
from maxlm.sharding.mesh import batch_sharding, build_mesh
from maxlm.sharding.pipeline import layer_order
from maxlm.train.loss import Batch, Numerics, Sums, compute_dtype_of, make_gradients, make_losses, numerics
from maxlm.train.state import TrainState, declare_state
from maxlm.train.step import make_train_step

log = logging.getLogger(__name__)

COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    # Parameter gathers run behind the matrix products before them; each option alone leaves them synchronous.
    FUSED_GATHERS: {
        "xla_enable_async_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    },
    # Gradients are scattered by the SparseCores, behind the computation, instead of summed whole in front of it (both
    # options are needed; v7x does so by itself, v5e has no SparseCores): see benchmarks/communication.md.
    r"TPU v5p?$|TPU v6": {
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
        "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": True,
    },
}
"""Per kind of device, the start of its name, what the compiler is told for the training step: all that match."""

BATCH_FIELDS = {
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "segment_ids": jnp.int32,
    "positions": jnp.int32,
    "target_bytes": jnp.int32,
    "weights": jnp.float32,
}


class Program(NamedTuple):
    """The model on its mesh, nothing allocated yet.

    Attributes:
      mesh_sizes: the mesh without -1.
      mesh: the devices.
      declared: the decoder without values.
      optimizer: the gradient transformation.
      state: the train state as `jax.ShapeDtypeStruct`s with shardings.
      how: what decides how the loss is computed here.
      layer_order: which group of layers each row of a stacked parameter holds (see `sharding.pipeline.layer_order`).
      attention_kernel: its name in the table.
    """

    mesh_sizes: MeshConfig
    mesh: Mesh
    declared: Decoder
    optimizer: optax.GradientTransformation
    state: TrainState
    how: Numerics
    layer_order: list[int]
    attention_kernel: str

    def activations(self, config: RunConfig) -> tuple[int, int, int]:
        """Return the shape (B, T, D) of a microbatch's activations between blocks, on one device."""
        mesh = self.mesh_sizes
        sequences = config.train.batch_size // (mesh.data * mesh.fsdp * mesh.expert * config.train.microbatches)
        length = config.data.sequence_length // (mesh.context * mesh.tensor)
        return sequences, length, config.model.embed_dim


class CompiledStep(NamedTuple):
    """The training step for this mesh, and what compiling it took."""

    run: jax.stages.Compiled  # (TrainState, Batch) -> (TrainState, StepMetrics)
    compile_seconds: float
    peak_memory_bytes: int


class Datasets(NamedTuple):
    """Training data, and validation data by source."""

    train: Dataset
    validation: dict[str, Dataset]


def open_datasets(config: RunConfig) -> Datasets:
    """Open all token shards and check what is cheap to check, before any device work.

    Raises:
      UserError: something is missing, damaged or does not fit the tokenizer.
    """
    shared: dict[str, Any] = {
        "seed": config.runtime.seed,
        "batch_size": config.train.batch_size,
        "vocab_size": config.model.vocab_size,
    }
    train = build_dataset(config.data, split="train", **shared)
    sources = validation_sources(config.data)
    return Datasets(
        train, {name: build_dataset(config.data, split="validation", source=name, **shared) for name in sources}
    )


def build_program(config: RunConfig, devices: list[Any] | None = None) -> Program:
    """Lay the model out on the mesh.

    Raises:
      ConfigError: the mesh does not fit the devices, the model does not fit the mesh, or there is no host memory.
    """
    devices = jax.devices() if devices is None else devices
    mesh_sizes = resolve_mesh(config, len(devices))
    _check_host_memory(config, devices[0])
    mesh = build_mesh(mesh_sizes, devices)
    compute_dtype = compute_dtype_of(config, devices[0].platform)
    shapes = attention_shapes(config, mesh_sizes, devices[0].device_kind, compute_dtype)
    choice = choose_kernel(config.runtime.attention_kernel, devices[0].platform, shapes)
    log.info("attention kernel: %s (%s)", choice.name, choice.reason)
    declared = Decoder(config.model)
    optimizer = build_optimizer(config.optimizer, declared)
    how = numerics(config, mesh_sizes, choice.kernel, compute_dtype)
    groups = (config.model.num_layers - len(config.model.prefix)) // len(config.model.pattern)
    order = layer_order(groups, how.schedule)
    state = declare_state(declared, optimizer, mesh, offload="optimizer" in config.train.offload)
    return Program(mesh_sizes, mesh, declared, optimizer, state, how, order, choice.name)


def _check_host_memory(config: RunConfig, device: Any) -> None:
    """Refuse to offload where devices have no host memory to do it to.

    Raises:
      ConfigError: they have none.
    """
    if has_host_memory(device):
        return
    asked = {}
    if config.train.offload:
        asked["train.offload"] = (f"[{', '.join(config.train.offload)}]", "[]")
    if not isinstance(config.train.remat, str):
        for name, choice in config.train.remat.model_dump().items():
            if choice == "offload":
                asked[f"train.remat.{name}"] = (choice, "save or recompute")
    reason = f"needs {HOST_MEMORY} memory, which the {device.platform} devices here do not have"
    problems = [Problem(path, f"{path}={value} {reason}; use {path}={cure}") for path, (value, cure) in asked.items()]
    if problems:
        raise ConfigError(problems, f"the configuration on {device.platform}")


def attention_shapes(config: RunConfig, mesh: MeshConfig, device_kind: str, dtype: jnp.dtype) -> list[AttentionShape]:
    """Return what each kind of attention layer asks of the kernel on one device."""
    model, whole = config.model, config.data.sequence_length
    by_heads = mesh.context if mesh.context_kind == "ulysses" else 1
    spread = mesh.context > by_heads
    chunk = whole // (2 * mesh.context) if spread else whole
    mixers = dict.fromkeys(block.mixer for block in (*model.prefix, *model.pattern))
    return [
        AttentionShape(
            device_kind=device_kind,
            dtype=dtype.name,
            num_heads=model.num_heads // (mesh.tensor * by_heads),
            num_kv_heads=model.num_kv_heads // (mesh.tensor * by_heads),
            key_size=model.head_dim,
            value_size=model.head_dim,
            query_length=chunk,
            key_length=whole if mesh.context_kind == "all_gather" else chunk,
            window=mixer.window,
            softcap=mixer.softcap,
            sinks=mixer.sinks,
            spread=spread,
        )
        for mixer in mixers
    ]


def compiler_options(device_kind: str) -> dict[str, str | bool]:
    """Return what the compiler is told for the training step on these devices."""
    matching = [options for pattern, options in COMPILER_OPTIONS.items() if re.match(pattern, device_kind)]
    return {name: value for options in matching for name, value in options.items()}


def compile_step(
    config: RunConfig, program: Program, more_options: Mapping[str, str | bool] | None = None
) -> CompiledStep:
    """Compile the training step ahead of its first use; `more_options` go to the compiler too."""
    began = time.perf_counter()
    peak_rate = config.optimizer.learning_rate
    learning_rate = make_schedule(config.schedule, peak=peak_rate, num_steps=config.train.num_steps)
    gradients = make_gradients(program.declared, program.mesh, program.how)
    step = make_train_step(gradients, program.optimizer, learning_rate)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, program.state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None))
    options = {**compiler_options(program.mesh.devices.flat[0].device_kind), **(more_options or {})}
    compiled = jitted.lower(program.state, batch_shapes(config, program.mesh)).compile(compiler_options=options)
    return CompiledStep(compiled, time.perf_counter() - began, _peak_memory_bytes(compiled, program.mesh))


def _peak_memory_bytes(compiled: jax.stages.Compiled, mesh: Mesh) -> int:
    """Return the most that the step holds at once on one device, its state included."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    bound = int(held + memory.temp_size_in_bytes)
    # The CPU's compiler reports the arguments alone as the peak, the TPU's counts what lies in host memory too.
    return bound if mesh.devices.flat[0].platform == "cpu" else min(bound, int(memory.peak_memory_in_bytes))


def compile_losses(program: Program) -> Callable[[Decoder, Batch], Sums]:
    """Return the forward pass alone, compiled at its first use."""
    compiled: Callable[[Decoder, Batch], Sums] = jax.jit(make_losses(program.declared, program.mesh, program.how))
    return compiled


def batch_shapes(config: RunConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the global batch as `jax.ShapeDtypeStruct`s."""
    shape, sharding = (config.train.batch_size, config.data.sequence_length), batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in BATCH_FIELDS.items()}
