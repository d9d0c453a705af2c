"""Fully sharded parameters: gathered at use, gradients scattered back by the transpose of the gather.

Nothing here reduces a gradient: `vary` and `gather` are linear, and autodiff turns them around. The transpose of the
gather is a reduce-scatter over the fsdp axes; the transpose of `vary` is a psum over exactly the axes that hold copies.
Because `vary` comes first on the way in, that psum comes last on the way out and moves only the shard.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx
from jax import lax

from maxlm.jax_versions import vary_over, varying_axes
from maxlm.sharding.mesh import AXES, EXPERT_FSDP_AXES, FSDP_AXES
from maxlm.sharding.parameters import map_parameters, stays_fp32, with_value

Module = TypeVar("Module")

_SPLITS = (FSDP_AXES, EXPERT_FSDP_AXES)
"""What a gather may undo: entries of specs, literally."""


def vary(module: Module, axes: tuple[str, ...] = AXES) -> Module:
    """Mark every parameter as varying over the mesh axes, so that its gradient is reduced once, here."""

    return map_parameters(lambda parameter: with_value(parameter, vary_over(parameter.get_value(), axes)), module)


def cast(module: Module, dtype: Any) -> Module:
    """Cast every parameter, before it is gathered: half the bytes on the wire in bfloat16. Some stay fp32."""

    def narrow(parameter: nnx.Param) -> nnx.Param:
        return parameter if stays_fp32(parameter) else with_value(parameter, parameter.get_value().astype(dtype))

    return map_parameters(narrow, module)


def gather(module: Module) -> Module:
    """All-gather every parameter along the dimension that the fsdp axes split.

    In bytes that a device receives, with M microbatches: `train.gather` layer takes 2 M times the stack (again in the
    backward pass, but for the norms' vectors) and once what is outside; microbatch and step take everything once, since
    the compiler moves a gather that all microbatches repeat out of their loop. Gradients are scattered once a
    microbatch, with `step` once a step.

    Works on one block and on a stack of them: dimensions are counted from the end, as the spec's entries are.
    """

    def gathered(parameter: nnx.Param) -> nnx.Param:
        value, spec = parameter.get_value(), parameter.get_metadata("spec")
        for dimension, axes in enumerate(spec):
            if axes in _SPLITS and lax.axis_size(axes) > 1:  # alone, it would still be a copy
                value = lax.all_gather(value, axes, axis=value.ndim - len(spec) + dimension, tiled=True)
        return with_value(parameter, value)

    return map_parameters(gathered, module)


def is_parameter_gather(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Recognise the equation that `gather` writes (for rematerialisation policies)."""
    return primitive is lax.all_gather_p and tuple(parameters["axis_name"]) in _SPLITS


def zeros_like_fp32(module: Module) -> Module:
    """Return fp32 zeros with the parameters' local shapes and varying axes, to accumulate gradients in."""

    def zeros(parameter: nnx.Param) -> nnx.Param:
        value = parameter.get_value()
        return with_value(parameter, vary_over(jnp.zeros(value.shape, jnp.float32), varying_axes(value)))

    return map_parameters(zeros, module)
