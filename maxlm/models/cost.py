"""What a model costs: parameters, FLOPs and what decoding keeps, read from its parameter lines and
its layers' sections and declarations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.config.model import ModelConfig
from maxlm.config.schema import MeshConfig, RunConfig
from maxlm.layers.layer import StateArray
from maxlm.models.decoder import Decoder
from maxlm.sharding.parameters import named_parameters, path_in_block, role_of
from maxlm.sharding.stages import Layout, lay_out


def parameter_count(model: ModelConfig) -> int:
    """Count the model's parameters; a tied embedding counts once."""
    return sum(parameter_parts(model).values())


def active_parameter_count(model: ModelConfig) -> int:
    """Count the parameters that one token uses: of the experts, those it is sent to."""
    idle = sum(
        (1 - _used(parameter)) * size
        for _, parameter, size in _parameters(model)
        if parameter.get_metadata("inputs") or role_of(parameter) == "bias"
    )
    return parameter_count(model) - round(idle)


def parameter_parts(model: ModelConfig) -> dict[str, int]:
    """Count parameters by part: embedding, mixers, feed-forward layers, norms, head, and what is in
    modules for further tokens, if there are some.
    """
    parts = dict.fromkeys(("embedding", "mixers", "feed-forward", "norms", "head"), 0)
    parts |= {"mtp": 0} if model.mtp else {}
    for path, _, size in _parameters(model):
        parts[_part_of(path)] += size
    return parts


def flops_per_token(model: ModelConfig, sequence_length: int) -> float:
    """Count the FLOPs that training needs per token: forward and backward pass, products only.

    Derivation. A multiply-add is 2 FLOPs. A token meets each weight of a matrix once in the forward
    pass (2 FLOPs) and twice in the backward pass, for the gradient of the input and of the weight
    (4 FLOPs):

        weights = 6 N_used     per token

    N_used are the weights of all matrices, of which a token meets the share that their lines state
    (`used`); with experts, those that the token is sent to (copies dropped by a capacity count all
    the same). The projection to the vocabulary counts, also when it shares the embedding's table;
    the embedding itself is a lookup and counts nothing. What a layer multiplies besides, such as
    queries and keys, its section counts (`mixing_flops`).

    This is what the model needs, not what the hardware does: recomputation (remat), the masked half
    that a kernel may compute anyway, and flash attention's second look at the scores are not
    counted. Norms, rotary positions, softmax and biases are left out (under 1 % for the usual
    shapes). Sequences count as one document each: packing makes the real attention a little
    cheaper. Same count as PaLM's (arXiv:2204.02311, appendix B), but causal.

    Args:
      model: the architecture.
      sequence_length: T, tokens per training sequence.
    """
    return sum(flops_parts(model, sequence_length).values())


def flops_parts(model: ModelConfig, sequence_length: int) -> dict[str, float]:
    """Split `flops_per_token` by part; `mixing` is what layers multiply besides weights, and `mtp`
    all of the modules for further tokens, each of which has the head predict once more.
    """
    parts = dict.fromkeys(("mixers", "mixing", "feed-forward", "head"), 0.0)
    parts |= {"mtp": 0.0} if model.mtp else {}
    for path, parameter, size in _parameters(model):
        if flops := 6 * _multiplied(parameter) * size:
            parts["head" if path.startswith("embedding/") else _part_of(path)] += flops
    for block in model.layers:
        parts["mixing"] += block.mixer.mixing_flops(model, sequence_length)
        parts["mixing"] += block.ffn.mixing_flops(model, sequence_length)
    for layer in (model.mtp.block.mixer, model.mtp.block.ffn) if model.mtp else ():
        parts["mtp"] += model.mtp_depth * layer.mixing_flops(model, sequence_length)
    if model.mtp:
        parts["mtp"] += model.mtp_depth * parts["head"]
    return parts


def cache_bytes_per_token(model: ModelConfig, dtype: Any) -> int:
    """Count the bytes that decoding keeps for each token of each sequence, over all layers.

    What is kept for a sequence whatever its length is not counted.

    Args:
      model: the architecture.
      dtype: of the activations that are kept.
    """
    total = 0
    for segment, repeat in zip(_declared(model).stack, model.repeats, strict=True):
        for block in segment:
            one, two = (_bytes(block.decoding_state(1, tokens, dtype)) for tokens in (1, 2))
            total += repeat * (two - one)
    return total


def _bytes(states: Any) -> int:
    arrays = jax.tree.leaves(states, is_leaf=lambda node: isinstance(node, StateArray))
    return sum(math.prod(array.shape) * jnp.dtype(array.dtype).itemsize for array in arrays)


def lay_out_on(config: RunConfig, mesh: MeshConfig) -> Layout:
    """Share the model's layers out among the stages of a mesh, by their FLOPs."""
    if mesh.virtual_stages == 1:
        return lay_out(config.model.repeats)
    model, length = config.model, config.data.sequence_length
    return lay_out(
        model.repeats,
        _segment_work(model, length),
        stages=mesh.stage,
        chunks=mesh.stage_repeats,
        behind=_module_work(model, length),
        skipped=mesh.context == 1 or mesh.context_kind != "ring",
    )


@functools.lru_cache(maxsize=8)
def _segment_work(model: ModelConfig, length: int) -> tuple[float, ...]:
    """Return the FLOPs per token of one repetition of each segment's pattern."""
    work = [0.0] * len(model.segments)
    for path, parameter, size in _parameters(model):
        if path.startswith("stack/"):
            segment = int(path.split("/")[1])
            work[segment] += 6 * _multiplied(parameter) * size / model.repeats[segment]
    for number, pattern in enumerate(model.segments):
        layers = [layer for block in pattern.blocks for layer in (block.mixer, block.ffn)]
        work[number] += sum(layer.mixing_flops(model, length) for layer in layers)
    return tuple(work)


def _module_work(model: ModelConfig, length: int) -> float:
    """Return the FLOPs per token of all modules for further tokens, without their part of the head:
    that is shared out evenly, as the head's own is.
    """
    parts = flops_parts(model, length)
    return parts.get("mtp", 0.0) - model.mtp_depth * parts["head"]


@functools.lru_cache(maxsize=8)
def _declared(model: ModelConfig) -> Decoder:
    return Decoder(model)


def _parameters(model: ModelConfig) -> Iterator[tuple[str, nnx.Param, int]]:
    """Yield (path, parameter, elements) of a model that lies on one stage."""
    for path, parameter in named_parameters(_declared(model)):
        yield path, parameter, math.prod(parameter.get_value().shape)


def _part_of(path: str) -> str:
    """Name the part of a model that a parameter belongs to, by the beginning of its path."""
    if not path.startswith("stack/"):
        first = path.split("/")[0]
        return {"norm": "norms"}.get(first, first)
    layer = path_in_block(path).split("/")[0]
    return {"mixer": "mixers", "ffn": "feed-forward"}.get(layer, "norms")


def _used(parameter: nnx.Param) -> float:
    return float(parameter.get_metadata("used"))


def _multiplied(parameter: nnx.Param) -> float:
    """Return the share of a parameter that a token is multiplied with: a bias is added."""
    return 0.0 if role_of(parameter) == "bias" else _used(parameter)
