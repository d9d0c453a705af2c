"""Differentiable operations on the arrays that one device holds."""

from __future__ import annotations

from maxlm.ops.attention import ATTENTION
from maxlm.ops.kernel_choice import Operation

OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in (ATTENTION,)}
"""What has several kernels; `runtime.kernels` has a field for each."""
