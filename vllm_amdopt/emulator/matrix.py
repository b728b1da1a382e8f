"""Matrix-core instructions (MFMA): where the elements lie in registers, and the product.

D[M x N] = A[M x K] * B[K x N] + C, for several blocks at once in some instructions. Source: CDNA3
and CDNA4 ISA, chapter 7 "Matrix Arithmetic Instructions" and 12.10 (VOP3P), and AMD's "Matrix
Instruction Calculator" for the layouts. Products and sum are taken in f64 and rounded once:
hardware's inner order differs in the last bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .assembly import Instruction
from .definitions import Unsupported, f16, f32, f64, i8, i32, i64, u8, u16, u32
from .modifiers import refuse_unknown
from .operands import bf16_to_f32, source, value_of
from .registers import constant, parse_register, vgpr_row
from .small_floats import E2M1, E2M3, E3M2, bf8, fp8

F8F6F4 = "f8f6f4"
FORMATS = ("fp8", "bf8", "fp6", "bf6", "fp4")  # by cbsz (A) and blgp (B) of the f8f6f4 kinds
REGISTERS = {"fp8": 8, "bf8": 8, "fp6": 6, "bf6": 6, "fp4": 4}  # of 32 elements

_NAME = re.compile(
    r"v_mfma_(scale_)?(f32|i32|f64)_(\d+)x(\d+)x(\d+)_?(?:(\d+)b_)?"
    r"(f8f6f4|xf32|f32|f16|bf16|i8|fp8|bf8|f64)(?:_(fp8|bf8|1k))?$"
)


# (rows, depth, blocks) by element type; columns = rows. Those of MULTIBLOCK may be spelled without
# their number of blocks. Source: CDNA3 and CDNA4 ISA, 12.10.
MULTIBLOCK = {"f32": {(32, 1, 2), (16, 1, 4), (4, 1, 16)}} | {
    kind: {(32, 4, 2), (16, 4, 4), (4, 4, 16)} for kind in ("f16", "bf16", "i8")
}
SHAPES = {
    "f32": {(32, 2, 1), (16, 4, 1), *MULTIBLOCK["f32"]},
    "f16": {(32, 8, 1), (16, 16, 1), *MULTIBLOCK["f16"]},
    "bf16": {(32, 8, 1), (16, 16, 1), *MULTIBLOCK["bf16"]},
    "i8": {(32, 16, 1), (16, 32, 1), *MULTIBLOCK["i8"]},
    "fp8": {(32, 16, 1), (16, 32, 1)},
    "bf8": {(32, 16, 1), (16, 32, 1)},
    "f64": {(16, 4, 1), (4, 4, 4)},
}
ONLY_GFX942 = {"xf32": {(32, 4, 1), (16, 8, 1)}}
ONLY_GFX950 = {
    "f16": {(32, 16, 1), (16, 32, 1)},
    "bf16": {(32, 16, 1), (16, 32, 1)},
    "i8": {(32, 32, 1), (16, 64, 1)},
    F8F6F4: {(32, 64, 1), (16, 128, 1)},
}


def is_shape(arch: str, kind: str, shape: tuple[int, int, int]) -> bool:
    """Whether the chip has a matrix instruction of this type and (rows, depth, blocks)."""
    more = ONLY_GFX950 if arch == "gfx950" else ONLY_GFX942
    return shape in SHAPES.get(kind, set()) or shape in more.get(kind, set())


class Shape(NamedTuple):
    """What the name of an instruction says."""

    scaled: bool
    result: str  # f32, i32 or f64
    rows: int
    columns: int
    blocks: int
    a: str  # types of the elements
    b: str
    f8f6f4: bool


def _blocks(match: re.Match[str], result_registers: int) -> int:
    """Blocks by the name, or in the old spelling without `_2b` by the size of the result."""
    if match[6]:
        return int(match[6])
    registers_per_value = 2 if match[2] == "f64" else 1
    values = result_registers // registers_per_value * 64
    return max(1, values // (int(match[3]) * int(match[4])))


def parse_shape(arch: str, instruction: Instruction, base: str) -> Shape:
    """The shape of an instruction; refuses what is not emulated or not on this chip."""
    match = _NAME.match(base)
    if not match or match[3] != match[4]:
        raise Unsupported(f"instruction {instruction.op}")
    modifiers = instruction.modifiers
    f8f6f4, is_f64 = match[7] == F8F6F4, match[2] == "f64"
    accepted = {"cbsz", "abid", "blgp"}
    if match[1]:
        accepted |= {"op_sel", "op_sel_hi"}
    if is_f64:
        accepted |= {"neg"}
    refuse_unknown(instruction, accepted)
    a = match[7]
    b = match[8] if match[8] in ("fp8", "bf8") else a
    if f8f6f4:
        a, b = FORMATS[modifiers.get("cbsz", 0)], FORMATS[modifiers.get("blgp", 0)]
    elif modifiers.get("cbsz") or modifiers.get("blgp"):
        raise Unsupported("mfma cbsz/blgp broadcast")
    if modifiers.get("abid"):
        raise Unsupported("mfma abid broadcast")
    _, _, registers = parse_register(instruction.operands[0]) or ("", 0, 0)
    blocks = _blocks(match, registers)
    if not is_shape(arch, match[7], (int(match[3]), int(match[5]), blocks)):
        raise Unsupported(f"instruction {instruction.op} on {arch}")
    return Shape(bool(match[1]), match[2], int(match[3]), int(match[4]), blocks, a, b, f8f6f4)


# ---- elements ---------------------------------------------------------------------------------
def _round_to_xf32(values: Any) -> Any:
    """f32 with 10 bits of mantissa, rounded to nearest even (assumed)."""
    bits = values.view(u32)
    half = u32(0xFFF) + ((bits >> u32(13)) & u32(1))
    return ((bits + half) & u32(0xFFFFE000)).view(f32)


def _six_bits(raw: Any) -> Any:
    bits = np.unpackbits(raw.view(u8), axis=-1, bitorder="little")
    return (bits.reshape(*raw.shape[:2], -1, 6).astype(i64) << np.arange(6)).sum(-1)


def _four_bits(raw: Any) -> Any:
    codes = raw.view(u8)
    return np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:2], -1)


def element_decoder(arch: str, kind: str) -> Callable[[Any], Any]:
    """Function: registers u32 (waves, 64, registers) -> elements f64 (waves, 64, elements)"""
    decoders: dict[str, Callable[[Any], Any]] = {
        "f32": lambda raw: raw.view(f32),
        "xf32": lambda raw: _round_to_xf32(raw.view(f32)),
        "f64": lambda raw: raw.view(f64),
        "f16": lambda raw: raw.view(f16),
        "bf16": lambda raw: bf16_to_f32(raw.view(u16)),
        "i8": lambda raw: raw.view(i8),
        "fp8": lambda raw: fp8(arch).decode(raw.view(u8)),
        "bf8": lambda raw: bf8(arch).decode(raw.view(u8)),
        "fp6": lambda raw: E2M3.decode(_six_bits(raw)),
        "bf6": lambda raw: E3M2.decode(_six_bits(raw)),
        "fp4": lambda raw: E2M1.decode(_four_bits(raw)),
    }
    decode = decoders[kind]
    return lambda raw: decode(np.ascontiguousarray(raw)).astype(f64, copy=False)


def _operand(machine: Any, shape: Shape, name: str, kind: str, size: int) -> Callable[[], Any]:
    """Function that reads A, or B transposed, as f64 (waves, [blocks,] size, K).

    Lane l holds row l % size, and of it the elements of K from (l / size) * elements on.
    """
    row, waves, groups = vgpr_row(machine, name), machine.waves, 64 // size
    count = REGISTERS[kind] if shape.f8f6f4 else (parse_register(name) or ("", 0, 0))[2]
    decode = element_decoder(machine.arch, kind)
    registers = machine.vgprs[row : row + count]
    halves = machine.vgprs_u16[row : row + count]

    def sixteen_bits() -> Any:
        """The usual case, bf16 or f16 in one block: reordered while it is still 16 bits wide."""
        raw = halves.reshape(count, waves, groups, size, 2).transpose(1, 3, 2, 0, 4)
        raw = np.ascontiguousarray(raw).reshape(waves, size, groups * count * 2)
        return (bf16_to_f32(raw) if kind == "bf16" else raw.view(f16)).astype(f64)

    def general() -> Any:
        elements = decode(registers.transpose(1, 2, 0))
        if shape.result == "f64" and shape.blocks > 1:  # lane = k * 16 + block * 4 + i
            return elements.reshape(waves, 4, 4, 4).transpose(0, 2, 3, 1)
        if shape.blocks > 1:
            return elements.reshape(waves, shape.blocks, size, -1)
        each = elements.shape[-1]
        elements = elements.reshape(waves, groups, size, each)
        if shape.f8f6f4 and kind in ("fp8", "bf8"):  # two runs of 16 elements of K
            elements = elements.reshape(waves, groups, size, 2, each // 2)
            return elements.transpose(0, 2, 3, 1, 4).reshape(waves, size, groups * each)
        return elements.transpose(0, 2, 1, 3).reshape(waves, size, groups * each)

    return sixteen_bits if shape.blocks == 1 and kind in ("bf16", "f16") else general


def _scales(machine: Any, instruction: Instruction, position: int, size: int) -> Any:
    """Function that multiplies elements (waves, size, K) by their powers of two: one biased
    exponent per row and 32 elements, in the byte of a register that op_sel chooses."""
    modifiers, waves, groups = instruction.modifiers, machine.waves, 64 // size
    low, high = (modifiers.get(name, [0, 0, 0])[position] for name in ("op_sel", "op_sel_hi"))
    register = source(machine, instruction.operands[4 + position], "u")
    shift = u32(8 * (low + 2 * high))

    def scaled(elements: Any) -> Any:
        exponent = np.broadcast_to(np.asarray(value_of(register)), (waves, 64)) >> shift & u32(255)
        scale = np.where(exponent == 255, np.nan, np.ldexp(1.0, exponent.astype(i32) - 127))
        # lane group g scales the g-th 32 elements of K
        scale = scale.reshape(waves, groups, size).transpose(0, 2, 1)
        blocks = elements.reshape(waves, size, groups, 32) * scale[..., None]
        return blocks.reshape(waves, size, -1)

    return scaled


# ---- C and D ----------------------------------------------------------------------------------
def result_layout(shape: Shape, waves: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Functions between registers (registers, waves, 64) and matrices (waves, [blocks,] M, N).

    A lane holds one column. Of the rows, registers count the lowest two bits (f64: none), then
    lanes, then registers again.
    """
    blocks = shape.blocks
    if shape.result == "f64" and blocks == 1:
        return (
            lambda d: d.reshape(4, waves, 4, 16).transpose(1, 0, 2, 3).reshape(waves, 16, 16),
            lambda m: m.reshape(waves, 4, 4, 16).transpose(1, 0, 2, 3).reshape(4, waves, 64),
        )
    if shape.result == "f64":
        return (
            lambda d: d.reshape(waves, 4, 4, 4).transpose(0, 2, 1, 3),
            lambda m: m.transpose(0, 2, 1, 3).reshape(1, waves, 64),
        )
    if shape.rows == 32:
        return (
            lambda d: (
                d.reshape(blocks, 4, 4, waves, 2, 32)
                .transpose(3, 0, 1, 4, 2, 5)
                .reshape(waves, blocks, 32, 32)
            ),
            lambda m: (
                m.reshape(waves, blocks, 4, 2, 4, 32)
                .transpose(1, 2, 4, 0, 3, 5)
                .reshape(-1, waves, 64)
            ),
        )
    if shape.rows == 16:
        return (
            lambda d: (
                d.reshape(blocks, 4, waves, 4, 16)
                .transpose(2, 0, 3, 1, 4)
                .reshape(waves, blocks, 16, 16)
            ),
            lambda m: (
                m.reshape(waves, blocks, 4, 4, 16).transpose(1, 3, 0, 2, 4).reshape(-1, waves, 64)
            ),
        )
    return (
        lambda d: d.reshape(4, waves, 16, 4).transpose(1, 2, 0, 3),
        lambda m: m.transpose(2, 0, 1, 3).reshape(-1, waves, 64),
    )


def _addend(machine: Any, shape: Shape, name: str, to_matrix: Callable[[Any], Any]) -> Any:
    """Function that reads C, which may be a constant."""
    if parse_register(name) is None:
        value = constant(name, {"f32": "f", "i32": "i", "f64": "F"}[shape.result])
        if value is None:
            raise Unsupported(f"operand {name!r}")
        return lambda: value
    row, count = vgpr_row(machine, name), (parse_register(name) or ("", 0, 0))[2]
    one_block = shape.blocks == 1 and shape.result != "f64"
    if shape.result == "f64":
        registers = machine.vgprs[row : row + count].reshape(count // 2, 2, machine.waves, 64)
        return lambda: to_matrix(
            np.ascontiguousarray(registers.transpose(0, 2, 3, 1)).view(f64)[..., 0]
        )
    registers = machine.vgprs.view(f32 if shape.result == "f32" else i32)[row : row + count]
    if one_block:
        return lambda: to_matrix(registers)[:, 0]
    return lambda: to_matrix(registers)


def _rounded(shape: Shape, machine: Any, to_registers: Callable[[Any], Any]) -> Any:
    """Function: (product in f64, C) -> u32 (registers, waves, 64)"""
    if shape.result == "i32":
        return lambda p, c: to_registers((p.astype(i64) + c).astype(i32).view(u32))
    if shape.result == "f32":
        return lambda p, c: to_registers((p + c).astype(f32).view(u32))

    def pairs(product: Any, addend: Any) -> Any:
        values = np.ascontiguousarray(to_registers(product + addend)).view(u32)
        values = values.reshape(-1, machine.waves, 64, 2).transpose(0, 3, 1, 2)
        return values.reshape(-1, machine.waves, 64)

    return pairs


def compile_mfma(machine: Any, instruction: Instruction, base: str) -> Callable[[], None]:
    """The function of one matrix instruction. EXEC is ignored, as hardware does."""
    shape, operands = parse_shape(machine.arch, instruction, base), instruction.operands
    a = _operand(machine, shape, operands[1], shape.a, shape.rows)
    b = _operand(machine, shape, operands[2], shape.b, shape.columns)
    to_matrix, to_registers = result_layout(shape, machine.waves)
    c = _addend(machine, shape, operands[3], to_matrix)
    rounded = _rounded(shape, machine, to_registers)
    if shape.scaled:
        scale_a = _scales(machine, instruction, 0, shape.rows)
        scale_b = _scales(machine, instruction, 1, shape.columns)
    signs = [-1.0 if flag else 1.0 for flag in instruction.modifiers.get("neg", [])]
    row, count = vgpr_row(machine, operands[0]), (parse_register(operands[0]) or ("", 0, 0))[2]
    result = machine.vgprs[row : row + count]

    def execute() -> None:
        x, y, addend = a(), b(), c()
        if shape.scaled:
            x, y = scale_a(x), scale_b(y)
        product = np.matmul(x, y.swapaxes(-1, -2))
        if signs:  # only of f64: A, B, C
            product, addend = product * (signs[0] * signs[1]), addend * (signs[2:] or [1.0])[0]
        value = rounded(product, addend)
        if machine.all_running:
            result[...] = value
        else:
            np.copyto(result, value, where=machine.running)

    return execute
