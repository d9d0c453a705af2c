"""Published tensors in few bits, read as plain numbers: FP8 with a scale for each block, and MXFP4.

Both are read exactly, in fp32: an FP8 value times its block's scale (arXiv:2412.19437, 3.3), and a
4-bit number (E2M1) times the power of two of its 32 neighbours (OCP Microscaling Formats v1.0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maxlm.checkpoint.hf.tensors.read_files import DTYPES, StoredTensor, Tensor
from maxlm.config.errors import UserError

_SCALE = "_scale_inv"
_BLOCKS, _SCALES = "_blocks", "_scales"
_FP8 = DTYPES["F8_E4M3"]
_E2M1 = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_E2M1 = np.concatenate([_E2M1, -_E2M1])  # the highest of four bits is the sign
_PACKED, _GROUP = 16, 32  # bytes of a group of 4-bit numbers, and how many these are
_EXPONENT_BIAS = 127


@dataclass(frozen=True)
class BlockScaled:
    """FP8 values of a matrix, with one scale for each block of rows and columns."""

    values: StoredTensor
    scales: StoredTensor
    block: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales on disk."""
        return self.values.nbytes + self.scales.nbytes

    def read(self, region: Sequence[slice]) -> np.ndarray:
        """Return fp32 values of a box of it."""
        values = self.values.read(region).astype(np.float32)
        boxes, places = [], []
        for part, size in zip(region, self.block, strict=True):
            first, last = part.start // size, max(part.stop - 1, part.start) // size
            boxes.append(slice(first, last + 1))
            places.append(np.arange(part.start, part.stop) // size - first)
        scales = self.scales.read(boxes).astype(np.float32)
        values *= scales[np.ix_(*places)]
        return values


@dataclass(frozen=True)
class PackedFours:
    """Matrices of 4-bit numbers, packed along what is their second dimension when unpacked.

    Stored as (experts, rows, groups, 16) bytes with (experts, rows, groups) exponents, it stands
    for (experts, groups * 32, rows).
    """

    packed: StoredTensor
    exponents: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape when unpacked."""
        experts, rows, groups, _ = self.packed.shape
        return experts, groups * _GROUP, rows

    @property
    def nbytes(self) -> int:
        """Bytes of numbers and exponents on disk."""
        return self.packed.nbytes + self.exponents.nbytes

    def read(self, region: Sequence[slice]) -> np.ndarray:
        """Return fp32 values of a box of it."""
        experts, columns, rows = region
        first = columns.start // _GROUP
        groups = slice(first, -(-columns.stop // _GROUP))
        packed = self.packed.read([experts, rows, groups, slice(0, _PACKED)])
        exponents = self.exponents.read([experts, rows, groups]).astype(np.int32) - _EXPONENT_BIAS
        numbers = np.stack([_E2M1[packed & 15], _E2M1[packed >> 4]], axis=-1)
        scaled = np.ldexp(numbers.reshape(*packed.shape[:3], _GROUP), exponents[..., None])
        wide = scaled.reshape(*packed.shape[:2], packed.shape[2] * _GROUP)
        wanted = wide[..., columns.start - first * _GROUP : columns.stop - first * _GROUP]
        return wanted.swapaxes(1, 2)


def as_numbers(
    stored: Mapping[str, StoredTensor], quantisation: Any, where: str
) -> dict[str, Tensor]:
    """Return the tensors under the names that they have where nothing is quantised.

    Args:
      stored: what is in the files.
      quantisation: `quantization_config` of config.json; None for none.
      where: the file that says so.

    Raises:
      UserError: a kind of quantisation that is not known, or scales that do not fit.
    """
    if quantisation is None:
        return dict(stored)
    kind = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
    if kind == "fp8":
        return _with_block_scales(stored, _block(quantisation, where))
    if kind == "mxfp4":
        return _with_packed_fours(stored)
    raise UserError(
        f"{where}: quantization_config.quant_method={kind!r} cannot be read; known are fp8 with "
        "block scales and mxfp4. Take the weights in bf16 or fp32, if their publisher has them"
    )


def _block(quantisation: Mapping[str, Any], where: str) -> tuple[int, int]:
    block, kind = quantisation.get("weight_block_size"), quantisation.get("fmt", "e4m3")
    if kind != "e4m3" or not (
        isinstance(block, list)
        and len(block) == 2
        and all(type(size) is int and size > 0 for size in block)
    ):
        raise UserError(
            f"{where}: quantization_config has weight_block_size={block} and fmt={kind}; known is "
            "fmt=e4m3 with a block of two sizes, such as [128, 128]"
        )
    return block[0], block[1]


def _with_block_scales(
    stored: Mapping[str, StoredTensor], block: tuple[int, int]
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    problems = list[str]()
    for name, tensor in stored.items():
        scales = stored.get(name + _SCALE)
        if name.removesuffix(_SCALE) in stored and name.endswith(_SCALE):
            continue  # belongs to another
        if tensor.dtype != _FP8:
            tensors[name] = tensor
            continue
        wanted = tuple(math.ceil(n / size) for n, size in zip(tensor.shape, block, strict=False))
        if scales is None or len(tensor.shape) != 2 or scales.shape != wanted:
            found = "no scales" if scales is None else f"scales of shape {list(scales.shape)}"
            problems.append(f"{name} of shape {list(tensor.shape)}: {found}, not {list(wanted)}")
        else:
            tensors[name] = BlockScaled(tensor, scales, block)
    _refuse(problems)
    return tensors


def _with_packed_fours(stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    problems = list[str]()
    for name, tensor in stored.items():
        bare = name.removesuffix(_BLOCKS)
        if name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in stored:
            continue  # belongs to another
        if bare == name:
            tensors[name] = tensor
            continue
        exponents = stored.get(bare + _SCALES)
        shape = tensor.shape
        if exponents is None or shape != (*exponents.shape, _PACKED) or len(shape) != 4:
            found = list(exponents.shape) if exponents else "none"
            problems.append(f"{name} of shape {list(shape)}: scales of shape {found}")
        else:
            tensors[bare] = PackedFours(tensor, exponents)
    _refuse(problems)
    return tensors


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        listed = "\n  ".join(problems)
        raise UserError(f"quantised tensors and their scales do not fit:\n  {listed}")
