"""Attention's TFLOP/s beside other libraries', and with other block sizes."""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from maxlm.kernels import block_sizes, chunked_attention, triton_attention
from maxlm.kernels.mask import Mask, causal
from maxlm.kernels.shape import AttentionShape
from scripts.gpu.checks import MODULES, Alone
from scripts.gpu.facts import TURNS, burst
from scripts.gpu.jobs import HEADS

torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None

TOKENS = 1 << 16
Call = Callable[[], Any]


def compare(
    *, size: int, length: int, alone: Alone, tiny: bool, kv_heads: int = HEADS, window: int | None = None,
    document: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return for each implementation the TFLOP/s of forward, and of forward and backward.

    FLOPs are those of pairs that see each other, 4 H a pair forward and 10 H backward.

    Args:
      size: of a head, H.
      length: of a sequence.
      alone: holds the GPU.
      tiny: for a CPU.
      kv_heads: of 16 heads.
      window: keys that a query sees.
      document: length of the documents in a sequence; libraries get each as a sequence.
    """
    if tiny:
        length, size, window, document = 64, 16, window and 16, document and 32
    problem = _Problem(size, length, 64 if tiny else TOKENS, kv_heads, window, document)
    calls = dict(problem.calls(tiny=tiny))
    seconds: dict[str, list[list[float]]] = {name: [[], []] for name in calls}
    with alone():
        for _ in range(1 if tiny else TURNS):
            for name, pair in calls.items():
                for kept, call in zip(seconds[name], pair, strict=True):
                    kept.append(burst(call, _wait))
    forward, both = (problem.pairs * HEADS * size * x for x in (4, 14))
    found = {}
    for name, (one, two) in seconds.items():
        first, whole = statistics.median(one), statistics.median(two)
        found[name] = {
            "forward": forward / first / 1e12,
            "both": both / whole / 1e12,
            "backward": (both - forward) / max(whole - first, 1e-9) / 1e12,
        }
    return {"tflops": found, "batch": problem.batch}


def try_blocks(
    *, kernel: str, size: int, changes: dict[str, Any], alone: Alone, tiny: bool
) -> dict[str, Any]:
    """Return the time of the passes that the changed blocks are of, over the time with the table's blocks.

    Args:
      kernel: flash_hopper or flash_triton.
      size: of a head.
      changes: blocks of a pass, in place of the table's.
      alone: holds the GPU.
      tiny: for a CPU.
    """
    problem = _Problem(
        min(size, 16) if tiny else size,
        64 if tiny else 16384,
        64 if tiny else TOKENS,
        HEADS,
        None,
        None,
    )
    which = 0 if changes.keys() & {"forward", "turns"} else 1
    given = problem.passes(kernel, tiny=tiny)
    with changed_blocks(kernel, changes):
        other = problem.passes(kernel, tiny=tiny)[which]
    before, after = [], []
    with alone():
        for _ in range(1 if tiny else TURNS):
            before.append(burst(given[which], _wait))
            after.append(burst(other, _wait))
    ratio = statistics.median(x / y for x, y in zip(after, before, strict=True))
    return {"ratio": ratio, "milliseconds": 1e3 * statistics.median(after)}


@contextmanager
def changed_blocks(kernel: str, changes: dict[str, Any]) -> Iterator[None]:
    """Replace rows of the block table meanwhile."""
    if kernel == "flash_hopper":
        owner, name, wanted = block_sizes, "hopper", changes
    else:
        owner, name = triton_attention, "choose_tiles"
        wanted = {key: triton_attention.Tile(*value) for key, value in changes.items()}
    old = getattr(owner, name)
    setattr(owner, name, lambda *arguments: old(*arguments)._replace(**wanted))
    try:
        yield
    finally:
        setattr(owner, name, old)


class _Problem:
    """Arrays to attend with."""

    def __init__(
        self,
        size: int,
        length: int,
        tokens: int,
        kv_heads: int,
        window: int | None,
        document: int | None,
    ) -> None:
        self.size, self.length, self.kv_heads = size, length, kv_heads
        self.window, self.document = window, document
        self.batch = max(1, tokens // length)
        seen = document or length
        reach = min(window or seen, seen)
        # Of each document: a triangle, then rows of `reach` keys.
        self.pairs = (
            self.batch * (length // seen) * (reach * (reach + 1) / 2 + (seen - reach) * reach)
        )
        keys = jax.random.split(jax.random.key(0), 4)
        counts = (HEADS, kv_heads, kv_heads, HEADS)
        self.arrays = [
            jax.random.normal(key, (self.batch, length, n, size), jnp.bfloat16)
            for key, n in zip(keys, counts, strict=True)
        ]

    def mask(self) -> Mask:
        place = jnp.arange(self.length, dtype=jnp.int32)
        segments = 1 + (place // self.document if self.document else jnp.zeros_like(place))
        segments, place = (
            jnp.broadcast_to(x, (self.batch, self.length)) for x in (segments, place)
        )
        return (
            causal(segments, place, window=self.window) if self.window else causal(segments, place)
        )

    def passes(self, kernel: str, *, tiny: bool) -> tuple[Call, Call, Call]:
        """Return one of our kernels' passes: forward, backward, both."""
        keywords: dict[str, Any] = {} if tiny else {"device_kind": jax.devices()[0].device_kind}
        module = chunked_attention if tiny else MODULES[kernel]
        (q, k, v, d_out), mask = self.arrays, self.mask()
        forward = jax.jit(functools.partial(module.forward, **keywords))
        backward = jax.jit(functools.partial(module.backward, **keywords))

        @jax.jit
        def both(q: Any, k: Any, v: Any, d_out: Any, mask: Mask) -> Any:
            out, lse = module.forward(q, k, v, mask, **keywords)
            return module.backward(q, k, v, out, lse, d_out, mask, **keywords)

        # Compiled now, with the blocks of now, and without running.
        kept = jax.eval_shape(forward, q, k, v, mask)
        first = forward.lower(q, k, v, mask).compile()
        second = backward.lower(q, k, v, *kept, d_out, mask).compile()
        whole = both.lower(q, k, v, d_out, mask).compile()
        result: list[Any] = []

        def run_backward() -> Any:
            result.extend(() if result else first(q, k, v, mask))
            return second(q, k, v, *result, d_out, mask)

        return lambda: first(q, k, v, mask), run_backward, lambda: whole(q, k, v, d_out, mask)

    def calls(self, *, tiny: bool) -> Iterator[tuple[str, tuple[Call, Call]]]:
        """Yield each implementation's name, forward, and forward and backward."""
        kind = "NVIDIA H100 80GB HBM3" if tiny else jax.devices()[0].device_kind
        described = AttentionShape(
            kind, "bfloat16", HEADS, self.kv_heads, self.size, self.size, self.length, self.length
        )
        for name, module in MODULES.items():
            if module.unsupported(described) is None:
                forward, _, both = self.passes(name, tiny=tiny)
                yield name, (forward, both)
        parts = self.length // (self.document or self.length)
        whole = [x.reshape(self.batch * parts, -1, *x.shape[2:]) for x in self.arrays]
        yield "cuDNN", self._of_cudnn(whole, "xla" if tiny else "cudnn")
        if torch and torch.cuda.is_available() and self.window is None and self.kv_heads == HEADS:
            yield from _of_torch(whole)

    def _of_cudnn(self, arrays: list[jax.Array], implementation: Any) -> tuple[Call, Call]:
        q, k, v, d_out = arrays
        attend = functools.partial(
            jax.nn.dot_product_attention, is_causal=True, implementation=implementation,
            local_window_size=(self.window - 1, 0) if self.window else None,
        )  # fmt: skip
        forward = jax.jit(attend).lower(q, k, v).compile()
        both = jax.jit(lambda q, k, v, d_out: jax.vjp(attend, q, k, v)[1](d_out))
        both = both.lower(q, k, v, d_out).compile()
        return lambda: forward(q, k, v), lambda: both(q, k, v, d_out)


def _of_torch(arrays: list[jax.Array]) -> Iterator[tuple[str, tuple[Call, Call]]]:
    batch, length, heads, size = arrays[0].shape
    tensors = [
        torch.randn(batch, heads, length, size, dtype=torch.bfloat16, device="cuda") for _ in arrays
    ]
    for tensor in tensors[:3]:
        tensor.requires_grad_()
    attention = torch.nn.functional.scaled_dot_product_attention
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
        backend = getattr(torch.nn.attention.SDPBackend, name)

        def attend(backend: Any = backend) -> Any:
            with torch.nn.attention.sdpa_kernel(backend):
                return attention(*tensors[:3], is_causal=True)

        def both(attend: Call = attend) -> Any:
            return torch.autograd.grad(attend(), tensors[:3], tensors[3])

        yield f"PyTorch {name.split('_')[0].lower()}", (attend, both)
    if importlib.util.find_spec("flash_attn_interface"):
        flash3 = importlib.import_module("flash_attn_interface").flash_attn_func
        swapped = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in tensors]

        def attend3() -> Any:
            out = flash3(*swapped[:3], causal=True)
            return out[0] if isinstance(out, tuple) else out

        yield (
            "FlashAttention-3",
            (attend3, lambda: torch.autograd.grad(attend3(), swapped[:3], swapped[3])),
        )


def _wait(result: Any) -> None:
    jax.block_until_ready([x for x in jax.tree.leaves(result) if isinstance(x, jax.Array)])
    if torch and torch.cuda.is_available():
        torch.cuda.synchronize()
