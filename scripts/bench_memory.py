"""Memory and recomputation of the training step by `train.remat` and `train.offload`, compiled for
TPU v5p without one.

    scripts/setup dev && JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 .venv/bin/python
    scripts/bench_memory.py [variant ...]

One sequence of 8,192 tokens a chip on 4 chips (fsdp 4), 8 layers of 2,048, 0.6 B parameters. Each
takes minutes to compile.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies
from jax.extend.core import jaxprs_in_params

from maxlm.config import RunConfig
from maxlm.models.cost import flops_parts
from maxlm.ops.attention import Kernel
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import batch_shapes, build_program, compile_step

GIB = 2**30
ATTENTION = dict.fromkeys(
    ("query", "key", "value", "attention_out", "attention_lse", "mixer_out"), "save"
)
MLP = dict.fromkeys(("mlp_hidden", "mlp_gate"), "save")
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"remat": "full"},
    "none": {"remat": "none"},
    "attention": {"remat": ATTENTION},
    "attention + mlp": {"remat": {**ATTENTION, **MLP}},
    "full, activations offloaded": {"remat": "full", "offload": ["activations"]},
    "full, optimizer offloaded": {"remat": "full", "offload": ["optimizer"]},
    "attention + mlp, offloaded": {
        "remat": dict.fromkeys((*ATTENTION, *MLP), "offload"),
        "offload": ["activations", "optimizer"],
    },
    "kernel results": {"remat": {"attention_out": "save", "attention_lse": "save"}},
}


def main() -> None:
    print("| variant | device GiB | host GiB | products again | compile s |\n|---|---|---|---|---|")
    for name in sys.argv[1:] or VARIANTS:
        config = make_config(VARIANTS[name])
        topology = topologies.get_topology_desc(
            platform="tpu",
            topology_name="v5p:2x2x1",
            chip_config_name="megacore",
            chips_per_host_bounds=(2, 2, 1),
        )
        program = build_program(config, list(topology.devices))
        again = (
            count_flops(config, program) / sum(flops_parts(config.model, 8192).values()) / 8192 - 1
        )
        began = time.perf_counter()
        compiled = compile_step(config, program)
        memory = compiled.run.memory_analysis()  # type: ignore[attr-defined]
        host = (memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes) / GIB
        seconds = time.perf_counter() - began
        device = compiled.peak_memory_bytes / GIB
        print(f"| {name} | {device:.2f} | {host:.2f} | {again:.1%} | {seconds:.0f} |", flush=True)


def make_config(train: dict[str, Any]) -> RunConfig:
    mixer = {"kind": "attention", "num_heads": 16, "num_kv_heads": 8, "head_dim": 128}
    block = {"mixer": mixer, "ffn": {"kind": "mlp", "hidden_dim": 8192}}
    return RunConfig.model_validate(
        {
            "run_dir": "unused",
            "model": {"vocab_size": 32000, "embed_dim": 2048, "num_layers": 8, "block": block},
            "data": {
                "sources": {"none": {"path": "none"}},
                "tokenizer": "none",
                "sequence_length": 8192,
            },
            "mesh": {"fsdp": 4},
            "train": {"num_steps": 1, "batch_size": 4, **train},
            "runtime": {"platform": "tpu", "kernels": {"attention": "chunked"}},
        }
    )


def count_flops(config: RunConfig, program: Any) -> float:
    """Count the FLOPs of the gradients' matrix products on one device, as traced: recomputed ones
    count again.

    Attention counts as its kernel's two products forward and four backward, over the keys that the
    mask leaves.
    """
    kernel = program.execution.kernels["attention"]

    def kernel_forward(*arguments: Any) -> Any:
        return kernel.forward(*arguments)

    def kernel_backward(*arguments: Any) -> Any:
        return kernel.backward(*arguments)

    counted = Kernel(jax.jit(kernel_forward), jax.jit(kernel_backward))
    execution = program.execution._replace(kernels={"attention": counted})
    gradients = make_gradients(program.declared, program.mesh, execution)
    jaxpr = jax.make_jaxpr(gradients)(
        program.state.decoder, batch_shapes(config, program.mesh)
    ).jaxpr
    scores = flops_parts(config.model, 8192)["mixing"] * 8192 / config.model.num_layers
    return sum(_flops(jaxpr, {"kernel_forward": scores / 3, "kernel_backward": scores * 2 / 3}))


def _flops(jaxpr: Any, kernels: dict[str, float]) -> Iterator[float]:
    for equation in jaxpr.eqns:
        name = equation.params.get("name")
        if name in kernels:
            # Its part that is the same in every layer, the mask, is traced apart from the products.
            yield kernels[name] if "dot_general" in str(equation.params["jaxpr"]) else 0.0
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            size = math.prod(equation.outvars[0].aval.shape)
            yield 2.0 * size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        else:
            times = equation.params["length"] if equation.primitive.name == "scan" else 1
            yield from (
                times * sum(_flops(inner, kernels)) for inner in jaxprs_in_params(equation.params)
            )


if __name__ == "__main__":
    main()
