"""What one instruction costs: tables by mnemonic, each row with its source. No timing in here.

A clock is one of the compute unit. A wave of 64 lanes passes a SIMD of 16 lanes in 4 clocks, so
nothing costs less, and a matrix "pass" is 4 clocks too (AMD CDNA 3 ISA). LLVM counts passes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

CLOCKS_PER_PASS = 4
LANES = 64

Kind = Literal[
    "matrix",
    "vector",
    "load",
    "store",
    "atomic",
    "cache",
    "scratch",
    "lds",
    "scalar_load",
    "scalar",
    "wait",
    "barrier",
    "branch",
    "nop",
]


@dataclass(frozen=True)
class KindRow:
    """Mnemonics that begin like `pattern` are of this kind; the first row that fits counts."""

    pattern: str
    kind: Kind
    source: str


_ISA = "AMD CDNA 3 ISA"

KINDS: tuple[KindRow, ...] = (
    KindRow(r"v_s?mfmac?_", "matrix", f"{_ISA}: matrix arithmetic"),
    KindRow(r"v_", "vector", f"{_ISA}: vector ALU"),
    KindRow(r"scratch_", "scratch", f"{_ISA}: scratch; register spills"),
    KindRow(r"(buffer|global|flat)_atomic_", "atomic", _ISA),
    KindRow(r"(buffer|global|flat)_load_", "load", _ISA),
    KindRow(r"(buffer|global|flat)_store_", "store", _ISA),
    KindRow(r"(buffer|global|flat)_", "cache", f"{_ISA}: buffer_inv, buffer_wbl2"),
    KindRow(r"ds_", "lds", f"{_ISA}: data share"),
    KindRow(r"s_waitcnt", "wait", f"{_ISA}: manual wait states"),
    KindRow(r"s_barrier", "barrier", _ISA),
    KindRow(r"s_(cbranch|branch|setpc|swappc|call|endpgm)", "branch", _ISA),
    KindRow(r"s_(load|buffer_load|scratch_load|memtime|memrealtime)", "scalar_load", _ISA),
    KindRow(r"s_nop", "nop", f"{_ISA}: argument + 1 issue slots"),
    KindRow(r"s_", "scalar", f"{_ISA}: scalar ALU"),
)


@dataclass(frozen=True)
class MatrixRow:
    """Passes of a matrix instruction: the clocks for which it occupies the unit, divided by 4."""

    pattern: str
    passes: int
    source: str


_LLVM_MATRIX = "LLVM SISchedule.td, SIDPGFX940FullSpeedModel"
_PEAK = "follows from the peak FLOP/s of AMD's data sheet"

MATRIX: tuple[MatrixRow, ...] = (
    MatrixRow(r"f64_16x16x", 8, _LLVM_MATRIX),
    MatrixRow(r"f64_4x4x", 4, _LLVM_MATRIX),
    MatrixRow(r"_4x4x", 2, _LLVM_MATRIX),
    MatrixRow(r"_16x16x128_f8f6f4", 8, f"{_PEAK}; 4 for fp6 and fp4, which is not used here"),
    MatrixRow(r"_32x32x64_f8f6f4", 16, f"{_PEAK}; 8 for fp6 and fp4, which is not used here"),
    MatrixRow(r"_16x16x[124]_", 8, _LLVM_MATRIX),
    MatrixRow(r"_16x16x", 4, f"{_LLVM_MATRIX}; the wider ones of gfx950: {_PEAK}"),
    MatrixRow(r"_32x32x4_?xf32", 8, _LLVM_MATRIX),
    MatrixRow(r"_32x32x[124]_", 16, _LLVM_MATRIX),
    MatrixRow(r"_32x32x", 8, f"{_LLVM_MATRIX}; the wider ones of gfx950: {_PEAK}"),
)

RESULT_PASSES = 3
"""Passes after the last one before another instruction may read the result: NumPasses + 3 in LLVM's
GCNHazardRecognizer for gfx940. An accumulation into the same registers needs none of them."""


@dataclass(frozen=True)
class VectorRow:
    """Clocks for which a vector instruction occupies its SIMD, or the assumption that says so."""

    pattern: str
    clocks: int | str
    source: str


_LLVM_VECTOR = "LLVM SISchedule.td, SIDPGFX940FullSpeedModel"

VECTOR: tuple[VectorRow, ...] = (
    VectorRow(
        r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_", "transcendental_clocks", f"{_LLVM_VECTOR} WriteTrans"
    ),
    VectorRow(r"v_cvt_pk_bf16_f32", 4, "new in gfx950, full rate; assumed"),
    VectorRow(r"v_cvt_f64|v_cvt_\w+_f64", 4, f"{_LLVM_VECTOR}, WriteDoubleCvt"),
    VectorRow(r"v_cvt_", "conversion_clocks", f"{_LLVM_VECTOR}, WriteFloatCvt"),
    VectorRow(r"v_", 4, f"{_LLVM_VECTOR}: Write32Bit, Write64Bit, WriteIntMul, WriteDouble"),
)

_BYTES_PER_LANE = (
    ("dwordx4", 16),
    ("b128", 16),
    ("dwordx3", 12),
    ("b96", 12),
    ("dwordx2", 8),
    ("b64", 8),
    ("x2", 8),
    ("short", 2),
    ("b16", 2),
    ("u16", 2),
    ("i16", 2),
    ("byte", 1),
    ("b8", 1),
    ("u8", 1),
    ("i8", 1),
)


def _row(rows: tuple[object, ...], name: str, *, search: bool = False) -> object | None:
    for row in rows:
        pattern: str = row.pattern  # type: ignore[attr-defined]
        if (re.search if search else re.match)(pattern, name):
            return row
    return None


@cache
def kind(name: str) -> Kind:
    """The kind of a mnemonic (encoding suffix removed). ValueError where no row fits."""
    row = _row(KINDS, name)
    if not isinstance(row, KindRow):
        raise ValueError(f"{name} is of no known kind of instruction; add a row to KINDS.")
    return row.kind


@cache
def matrix_passes(name: str) -> int:
    """Passes of a matrix instruction. ValueError where no row fits."""
    row = _row(MATRIX, name, search=True)
    if not isinstance(row, MatrixRow):
        raise ValueError(f"{name} is no known matrix instruction; add a row to MATRIX.")
    return row.passes


@cache
def matrix_flops(name: str) -> int:
    """Floating-point operations that one wave's matrix instruction does: 2 x M x N x K x blocks."""
    shape = re.search(r"_(\d+)x(\d+)x(\d+)", name)
    if shape is None:
        raise ValueError(f"{name} does not name its shape.")
    blocks = re.search(r"_(\d+)b_", name)
    rows, columns, depth = map(int, shape.groups())
    return 2 * rows * columns * depth * (int(blocks[1]) if blocks else 1)


@cache
def vector_clocks(name: str) -> int | str:
    """Clocks of a vector instruction, or the name of the assumption that says them."""
    row = _row(VECTOR, name)
    assert isinstance(row, VectorRow)  # the last row takes everything
    return row.clocks


@cache
def bytes_moved(name: str) -> int:
    """Bytes that a memory or LDS instruction moves with all 64 lanes; masks are not known here."""
    width = next((size for text, size in _BYTES_PER_LANE if text in name), 4)
    return LANES * width * (2 if re.match(r"ds_(read|write)2", name) else 1)
