"""Fully sharded parameters: gathered at use, gradients scattered back by the transpose of the
gather.

Nothing here reduces a gradient: `vary` and `gather` are linear, and autodiff turns them around. The
transpose of the gather is a reduce-scatter over the fsdp axes; the transpose of `vary` is a psum
over exactly the axes that hold copies. Because `vary` comes first on the way in, that psum comes
last on the way out and moves only the shard.
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

GATHERED_AXES = (FSDP_AXES, EXPERT_FSDP_AXES)
"""What a gather may undo: entries of specs, literally."""


def vary(module: Module, axes: tuple[str, ...] = AXES) -> Module:
    """Mark every parameter as varying over the mesh axes, so that its gradient is reduced once,
    here.
    """

    return map_parameters(
        lambda parameter: with_value(parameter, vary_over(parameter.get_value(), axes)), module
    )


def cast(module: Module, dtype: Any) -> Module:
    """Cast every parameter, before it is gathered: half the bytes on the wire in bfloat16.

    Some stay fp32.
    """

    def narrow(parameter: nnx.Param) -> nnx.Param:
        return (
            parameter
            if stays_fp32(parameter)
            else with_value(parameter, parameter.get_value().astype(dtype))
        )

    return map_parameters(narrow, module)


def gather(module: Module) -> Module:
    """All-gather every parameter along the dimension that the fsdp axes split.

    How often in a step of M microbatches, by `train.gather`: step gathers and scatters everything
    once, microbatch M times. layer scatters M times; it gathers the stack 2 M times (again in the
    backward pass, but for the norms' vectors) and what is outside M times.

    With S stages, what is outside is gathered and scattered once, and each stage's part of the
    stack is scattered in each of M + S - 1 backward ticks (M V + V S - 1 with V chunks, of 1/V of
    it). step gathers it once; microbatch in every tick, of which M + 2 S - 2; layer once in a
    forward tick and twice in a backward tick, to compute it again and to differentiate it: 3 (M + S
    - 1) times. A module behind the layers is treated as those are, in the M ticks in which a
    microbatch ends.

    Works on one block and on a stack of them: dimensions are counted from the end, as the spec's
    entries are.
    """

    def gathered(parameter: nnx.Param) -> nnx.Param:
        value, spec = parameter.get_value(), parameter.get_metadata("spec")
        for dimension, axes in enumerate(spec):
            if axes in GATHERED_AXES and lax.axis_size(axes) > 1:  # alone, it would still be a copy
                value = lax.all_gather(
                    value, axes, axis=value.ndim - len(spec) + dimension, tiled=True
                )
        return with_value(parameter, value)

    return map_parameters(gathered, module)


def tied_to_loop(module: Module, index: Any) -> Module:
    """Return the module, for the compiler another one in every iteration of the loop that the
    arrays of `index` count.

    It would gather once, before the loop, and hold whole parameters until the loop ends.
    """
    return lax.optimization_barrier((module, index))[0]  # type: ignore[no-any-return]


def is_parameter_gather(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Recognise the equation that `gather` writes (for rematerialisation policies)."""
    return primitive is lax.all_gather_p and tuple(parameters["axis_name"]) in GATHERED_AXES


def zeros_like_fp32(module: Module) -> Module:
    """Return fp32 zeros with the parameters' local shapes and varying axes, to accumulate gradients
    in.
    """

    def zeros(parameter: nnx.Param) -> nnx.Param:
        value = parameter.get_value()
        return with_value(
            parameter, vary_over(jnp.zeros(value.shape, jnp.float32), varying_axes(value))
        )

    return map_parameters(zeros, module)
