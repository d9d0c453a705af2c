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
from maxlm.data.examples import Purpose, fields_of
from maxlm.jax_versions import FUSED_GATHERS
from maxlm.layers.layer import Local
from maxlm.models import cost
from maxlm.models.decoder import Decoder
from maxlm.ops import OPERATIONS
from maxlm.ops.kernel_choice import Choice, choose
from maxlm.optim import build_optimizer
from maxlm.optim.schedule import make_schedule
from maxlm.runtime import compute_dtype_of
from maxlm.sharding.host import HOST_MEMORY, has_host_memory
from maxlm.sharding.mesh import batch_sharding, build_mesh
from maxlm.sharding.stages import recorded_layout
from maxlm.train.faults.spikes import declare_window, steps_as_saved
from maxlm.train.loss.execution import Execution, build_execution
from maxlm.train.loss.gradients import Batch, Sums, make_gradients, make_losses
from maxlm.train.memory import memory_per_device
from maxlm.train.state import TrainState, declare_state
from maxlm.train.step import make_train_step

log = logging.getLogger(__name__)

COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    # Parameter gathers run behind the matrix products before them; each option alone leaves them
    # synchronous.
    FUSED_GATHERS: {
        "xla_enable_async_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    },
    # Gradients are scattered by the SparseCores, behind the computation, instead of summed whole in
    # front of it (both options are needed; v7x does so by itself, v5e has no SparseCores): see
    # benchmarks/communication.md.
    r"TPU v5p?$|TPU v6": {
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
        "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": True,
    },
    # This pass makes an attention kernel whose results are stacked over layers run twice: once into
    # the stack, and once for those who read its results.
    r"NVIDIA": {"xla_gpu_enable_dynamic_slice_fusion": False},
}
"""Per kind of device, the start of its name, what the compiler is told for the training step: all
that match.
"""

CPU_UNROLL = 4
"""So many layers are unrolled on a single CPU: what a loop keeps for its backward pass is copied into
and out of stacks there (benchmarks/README.md). Every layer makes the compilation longer, and past a
few, with larger products, nothing is gained.
"""


class Program(NamedTuple):
    """The model on its mesh, nothing allocated yet.

    Attributes:
      mesh_sizes: the mesh without -1.
      mesh: the devices.
      declared: the decoder without values.
      optimizer: the gradient transformation.
      state: the train state as `jax.ShapeDtypeStruct`s with shardings.
      execution: how the loss is computed here.
      kernels: the names of the kernels that were chosen, by operation.
    """

    mesh_sizes: MeshConfig
    mesh: Mesh
    declared: Decoder
    optimizer: optax.GradientTransformation
    state: TrainState
    execution: Execution
    kernels: dict[str, str]

    def activations(self, config: RunConfig) -> tuple[int, int, int]:
        """Return the shape (B, T, D) of a microbatch's activations between blocks, on one device."""
        mesh = self.mesh_sizes
        sequences = config.train.batch_size // (mesh.batch_devices * config.train.microbatches)
        length = config.data.sequence_length // (mesh.context * mesh.tensor)
        return sequences, length, config.model.embed_dim

    def memory_per_device(self, config: RunConfig) -> dict[str, int]:
        """Estimate the bytes that a step needs on one device, by part."""
        batch = batch_shapes(config, self.mesh)
        return memory_per_device(config, self.state, self.mesh, self.execution, batch)


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
    learned = Purpose(config.objective, config.model.mtp_depth)
    train = build_dataset(
        config.data, split="train", num_steps=config.train.num_steps, purpose=learned, **shared
    )
    # Held-out text is for the next token alone.
    shared["purpose"] = Purpose(config.objective)
    sources = validation_sources(config.data)
    return Datasets(
        train,
        {
            name: build_dataset(config.data, split="validation", source=name, **shared)
            for name in sources
        },
    )


def build_program(
    config: RunConfig, devices: list[Any] | None = None, *, num_ids: int | None = None
) -> Program:
    """Lay the model out on the mesh.

    Args:
      config: the run.
      devices: all that there are, by default.
      num_ids: ids that the tokenizer has: the model's vocabulary may be larger, and the others are
        never predicted.

    Raises:
      ConfigError: the mesh does not fit the devices, the model does not fit the mesh, or there is
        no host memory.
    """
    devices = jax.devices() if devices is None else devices
    mesh_sizes = resolve_mesh(config, len(devices))
    _check_host_memory(config, devices[0])
    mesh = build_mesh(mesh_sizes, devices)
    compute_dtype = compute_dtype_of(config.train.compute_dtype, devices[0].platform)
    layout = cost.lay_out_on(config, mesh_sizes)
    declared = Decoder(config.model, layout)
    choices = choose_kernels(config, mesh_sizes, declared, device=devices[0], dtype=compute_dtype)
    for operation, choice in choices.items():
        log.info("%s kernel: %s (%s)", operation, choice.name, choice.reason)
    kernels = {operation: choice.kernel for operation, choice in choices.items()}
    alone_on_cpu = len(devices) == 1 and devices[0].platform == "cpu"
    how: dict[str, Any] = {
        "compute_dtype": compute_dtype,
        "kernels": kernels,
        "num_ids": num_ids,
        "unroll": CPU_UNROLL if alone_on_cpu else 1,
    }
    execution = build_execution(config, mesh_sizes, layout, **how)
    if alone_on_cpu and compute_dtype == jnp.float32:
        # Parameters are whole as they are. Gathering them block by block, for nothing, would put
        # barriers between what a block keeps for its backward pass and what makes and reads it.
        execution = execution._replace(gather="step")
    optimizer = build_optimizer(config.optimizer, declared)
    offload = "optimizer" in config.train.offload
    state = declare_state(
        declared,
        optimizer,
        mesh,
        batch_size=config.train.batch_size,
        offload=offload,
        window=config.train.spikes.steps_held,
    )
    names = {operation: choice.name for operation, choice in choices.items()}
    return Program(mesh_sizes, mesh, declared, optimizer, state, execution, names)


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
    for name, choice in config.train.remat_choices.items():
        if choice == "offload":
            asked[f"train.remat.{name}"] = (choice, "save or recompute")
    reason = f"needs {HOST_MEMORY} memory, which the {device.platform} devices here do not have"
    problems = [
        Problem(path, f"{path}={value} {reason}; use {path}={cure}")
        for path, (value, cure) in asked.items()
    ]
    if problems:
        raise ConfigError(problems, f"the configuration on {device.platform}")


def state_as_saved(record: Mapping[str, Any], config: RunConfig, program: Program) -> TrainState:
    """Declare the state as a checkpoint has it: with its layers on another number of stages, and
    with the window of spikes that the saved run had.
    """
    layout, window = recorded_layout(record), steps_as_saved(record)
    if layout.record() == program.execution.layout.record():
        return program.state._replace(spikes=declare_window(window, program.mesh))
    declared = Decoder(config.model, layout)
    optimizer = build_optimizer(config.optimizer, declared)
    offload = "optimizer" in config.train.offload
    return declare_state(
        declared,
        optimizer,
        program.mesh,
        batch_size=config.train.batch_size,
        offload=offload,
        window=window,
    )


def choose_kernels(
    config: RunConfig, mesh: MeshConfig, declared: Decoder, *, device: Any, dtype: jnp.dtype
) -> dict[str, Choice]:
    """Choose the kernels that the model's layers ask for, by operation.

    Raises:
      UserError: a kernel that the settings name cannot do what layers ask.
    """
    shapes = kernel_shapes(config, mesh, declared, device_kind=device.device_kind, dtype=dtype)
    wanted = config.runtime.kernels
    return {
        operation: choose(OPERATIONS[operation], getattr(wanted, operation), device.platform, asked)
        for operation, asked in shapes.items()
    }


def kernel_shapes(
    config: RunConfig, mesh: MeshConfig, declared: Decoder, *, device_kind: str, dtype: jnp.dtype
) -> dict[str, list[Any]]:
    """Return what the model's layers ask of kernels on one device, by operation, each shape once."""
    local = Local(
        device_kind=device_kind,
        dtype=dtype.name,
        length=config.data.sequence_length,
        tensor=mesh.tensor,
        context=mesh.context,
        context_kind=mesh.context_kind,
    )
    shapes: dict[str, dict[Any, None]] = {}
    for block in (block for segment in declared.segments() for block in segment):
        for _, layer in block.layers():
            for operation, asked in layer.kernel_shapes(local).items():
                shapes.setdefault(operation, {}).update(dict.fromkeys(asked))
    return {operation: list(asked) for operation, asked in shapes.items()}


def compiler_options(device_kind: str) -> dict[str, str | bool]:
    """Return what the compiler is told for the training step on these devices."""
    matching = [
        options for pattern, options in COMPILER_OPTIONS.items() if re.match(pattern, device_kind)
    ]
    return {name: value for options in matching for name, value in options.items()}


def compile_step(
    config: RunConfig, program: Program, more_options: Mapping[str, str | bool] | None = None
) -> CompiledStep:
    """Compile the training step ahead of its first use; `more_options` go to the compiler too."""
    began = time.perf_counter()
    peak_rate = config.optimizer.learning_rate
    learning_rate = make_schedule(config.schedule, peak=peak_rate, num_steps=config.train.num_steps)
    gradients = make_gradients(
        program.declared, program.mesh, program.execution, program.state.carried
    )
    step = make_train_step(gradients, program.optimizer, learning_rate, config.train.spikes)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, program.state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None))
    options = {**compiler_options(program.mesh.devices.flat[0].device_kind), **(more_options or {})}
    compiled = jitted.lower(program.state, batch_shapes(config, program.mesh)).compile(
        compiler_options=options
    )
    return CompiledStep(
        compiled, time.perf_counter() - began, _peak_memory_bytes(compiled, program.mesh)
    )


def _peak_memory_bytes(compiled: jax.stages.Compiled, mesh: Mesh) -> int:
    """Return the most that the step holds at once on one device, its state included."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    bound = int(held + memory.temp_size_in_bytes)
    # The CPU's compiler reports the arguments alone as the peak, the TPU's counts what lies in host
    # memory too.
    return (
        bound
        if mesh.devices.flat[0].platform == "cpu"
        else min(bound, int(memory.peak_memory_in_bytes))
    )


def compile_losses(config: RunConfig, program: Program) -> Callable[[Decoder, Batch], Sums]:
    """Compile the forward pass alone ahead of its first use: a signal that comes while a run compiles
    finds nothing to save, while it trains much.
    """
    jitted = jax.jit(make_losses(program.declared, program.mesh, program.execution))
    shapes = _batch_shapes(config, program.mesh, depth=0)
    compiled: Callable[[Decoder, Batch], Sums] = jitted.lower(
        program.state.decoder, shapes
    ).compile()
    return compiled


def batch_shapes(config: RunConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the global batch as `jax.ShapeDtypeStruct`s."""
    return _batch_shapes(config, mesh, depth=config.model.mtp_depth)


def _batch_shapes(config: RunConfig, mesh: Mesh, *, depth: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape, sharding = (config.train.batch_size, config.data.sequence_length), batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, dtype in fields_of(config.objective, depth).items()
    }
