"""Packed two-element vector math and dot products.

Source: CDNA4 ISA, 6.7 "Packed Math" and 12.10 (VOP3P).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .assembly import Instruction
from .definitions import Unsupported, f16, f32, f64, i16, i64, u16, u32
from .floats import flush_f32, fma_f16, fma_f32, max_float, maximum3, min_float, minimum3
from .modifiers import PACKED, refuse_unknown
from .operands import bf16_to_f32, destination, source, value_of
from .registers import NUMPY_TYPE, parse_register, sgpr, vgpr_row
from .vector_floats import pack_halves
from .vector_lanes import special

array = np.asarray


def _multiply_add(a: Any, b: Any, c: Any) -> Any:
    return a * b + c


PACKED_16: dict[str, tuple[str, Callable[..., Any]]] = {
    "v_pk_add_f16": ("h", np.add),
    "v_pk_mul_f16": ("h", np.multiply),
    "v_pk_fma_f16": ("h", fma_f16),
    "v_pk_max_f16": ("h", max_float),
    "v_pk_min_f16": ("h", min_float),
    "v_pk_fmac_f16": ("h", fma_f16),
    "v_pk_maximum3_f16": ("h", maximum3),
    "v_pk_minimum3_f16": ("h", minimum3),
    "v_pk_add_u16": ("w", np.add),
    "v_pk_sub_u16": ("w", np.subtract),
    "v_pk_mul_lo_u16": ("w", np.multiply),
    "v_pk_mad_u16": ("w", _multiply_add),
    "v_pk_add_i16": ("s", np.add),
    "v_pk_sub_i16": ("s", np.subtract),
    "v_pk_mad_i16": ("s", _multiply_add),
    "v_pk_max_u16": ("w", np.maximum),
    "v_pk_min_u16": ("w", np.minimum),
    "v_pk_max_i16": ("s", np.maximum),
    "v_pk_min_i16": ("s", np.minimum),
    "v_pk_lshlrev_b16": ("w", lambda a, b: b << (a & u16(15))),
    "v_pk_lshrrev_b16": ("w", lambda a, b: b >> (a & u16(15))),
    "v_pk_ashrrev_i16": ("s", lambda a, b: b >> (a & i16(15))),
}
SATURATING: dict[str, Callable[..., Any]] = {
    "v_pk_add_u16": np.add,
    "v_pk_sub_u16": np.subtract,
    "v_pk_add_i16": np.add,
    "v_pk_sub_i16": np.subtract,
    "v_pk_mad_u16": _multiply_add,
    "v_pk_mad_i16": _multiply_add,
}
PACKED_32: dict[str, Callable[..., Any]] = {
    "v_pk_fma_f32": fma_f32,
    "v_pk_mul_f32": np.multiply,
    "v_pk_add_f32": np.add,
}


def source_half(machine: Any, name: str, code: str, high: int) -> Any:
    """One 16-bit half of a packed operand.

    An inline float constant is 16 bits wide with zeros above it, an integer is 32 bits wide.
    """
    return source(machine, name, code, high=high)


def _negated(operand: Any) -> Any:
    return lambda: -value_of(operand)


def _clamped(value: Any) -> Any:
    zero, one = value.dtype.type(0), value.dtype.type(1)
    return np.where(np.isnan(value), zero, np.clip(value, zero, one) + zero)


class _Halves:
    """The two halves of each operand that a packed instruction's modifiers choose."""

    def __init__(self, instruction: Instruction, count: int, pick: Callable[[str, int], Any]):
        modifiers, names = instruction.modifiers, list(instruction.operands[1 : count + 1])
        if len(names) < count:
            names.append(instruction.operands[0])  # v_pk_fmac: the destination
        half = modifiers.get("op_sel", [0] * count), modifiers.get("op_sel_hi", [1] * count)
        negate = modifiers.get("neg_lo", [0] * count), modifiers.get("neg_hi", [0] * count)
        self.low, self.high = (
            [
                _negated(pick(name, half[k][j])) if negate[k][j] else pick(name, half[k][j])
                for j, name in enumerate(names)
            ]
            for k in (0, 1)
        )


def compile_packed(machine: Any, instruction: Instruction, base: str) -> Any:
    """The function of a v_pk_ instruction."""
    if base in PACKED_16:
        return _packed_16(machine, instruction, base)
    if base in PACKED_32:
        return _packed_32(machine, instruction, base)
    if base == "v_pk_mov_b32":
        return _packed_move(machine, instruction)
    raise Unsupported(f"instruction {instruction.op}")


def _packed_16(machine: Any, instruction: Instruction, base: str) -> Any:
    code, function = PACKED_16[base]
    clamp = bool(instruction.modifiers.get("clamp"))
    accepted = {"op_sel", "op_sel_hi", "clamp"} | (PACKED if code == "h" else frozenset())
    refuse_unknown(instruction, accepted)
    count = 3 if base == "v_pk_fmac_f16" else len(instruction.operands) - 1
    halves = _Halves(instruction, count, lambda name, high: source_half(machine, name, code, high))
    if clamp and code != "h":
        if base not in SATURATING:
            raise Unsupported(f"clamp on {base}")
        exact, limits = SATURATING[base], np.iinfo(NUMPY_TYPE[code])

        def function(*values: Any) -> Any:
            wide = exact(*[array(value).astype(i64) for value in values])
            return np.clip(wide, limits.min, limits.max).astype(limits.dtype)

        clamp = False
    register, enabled = machine.vgprs[vgpr_row(machine, instruction.operands[0])], machine.exec_mask
    low, high = halves.low, halves.high

    def execute() -> None:
        first = function(*[value_of(x) for x in low])
        second = function(*[value_of(x) for x in high])
        if clamp:
            first, second = _clamped(first), _clamped(second)
        packed = pack_halves(np.ascontiguousarray(first), np.ascontiguousarray(second))
        np.copyto(register, packed, where=enabled)

    return execute


def _dword(machine: Any, name: str, high: int) -> Any:
    """The first or second dword of an operand of two."""
    register = parse_register(name)
    if register is None:
        # A constant is the low dword. LLVM's assembler accepts op_sel_hi on it and GPUs of this
        # family differ in what they read then.
        if high:
            raise Unsupported("high half of a constant in packed f32")
        return source(machine, name, "f")
    if register[0] == "s":
        number = sgpr(name) + high
        return machine.sgprs_f32[:, number : number + 1]
    return machine.vgprs_f32[vgpr_row(machine, name) + high]


def _packed_32(machine: Any, instruction: Instruction, base: str) -> Any:
    refuse_unknown(instruction, PACKED | {"clamp"})
    function, clamp = PACKED_32[base], bool(instruction.modifiers.get("clamp"))
    halves = _Halves(
        instruction,
        len(instruction.operands) - 1,
        lambda name, high: _dword(machine, name, high),
    )
    row, enabled = vgpr_row(machine, instruction.operands[0]), machine.exec_mask
    low, high = halves.low, halves.high
    first_register, second_register = machine.vgprs_f32[row], machine.vgprs_f32[row + 1]

    def execute() -> None:
        first = function(*[value_of(x) for x in low])
        second = function(*[value_of(x) for x in high])
        if machine.may_flush and machine.mode.flush_f32:
            first, second = flush_f32(first), flush_f32(second)
        if clamp:
            first, second = _clamped(first), _clamped(second)
        if machine.all_lanes:
            first_register[...] = first
            second_register[...] = second
        else:
            np.copyto(first_register, first, where=enabled)
            np.copyto(second_register, second, where=enabled)

    return execute


def _packed_move(machine: Any, instruction: Instruction) -> Any:
    """V_PK_MOV_B32: one dword of each source; op_sel chooses for the low and the high result."""
    refuse_unknown(instruction, {"op_sel", "op_sel_hi"})
    chosen = instruction.modifiers.get("op_sel", [0, 0])
    a = _dword(machine, instruction.operands[1], chosen[0])
    b = _dword(machine, instruction.operands[2], chosen[1])
    row = vgpr_row(machine, instruction.operands[0])
    first, second = machine.vgprs[row], machine.vgprs[row + 1]

    def execute() -> None:
        enabled = True if machine.all_lanes else machine.exec_mask
        low, high = np.array(array(a).view(u32)), np.array(array(b).view(u32))
        np.copyto(first, low, where=enabled)
        np.copyto(second, high, where=enabled)

    return execute


# ---- dot products -----------------------------------------------------------------------------
_FLOAT_DOTS = [f"v_dot2{c}_f32_{t}" for c in ("", "c") for t in ("f16", "bf16")]


@special(*_FLOAT_DOTS, modifiers=PACKED | {"clamp"})
def _float_dot(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
    """Two products of f16 or bf16 and an f32, added in f64 and rounded once. Denormals are
    flushed whatever the mode (CDNA4 ISA, 6.4)."""
    modifiers, operands = instruction.modifiers, list(instruction.operands)
    if base.startswith("v_dot2c"):
        operands.append(operands[0])
    if any(modifiers.get(name, [0, 0, 0])[2:] == [1] for name in ("op_sel", "neg_lo", "neg_hi")):
        raise Unsupported("modifier on the third operand of a dot product")
    is_f16, clamp = base.endswith("_f16"), bool(modifiers.get("clamp"))

    def widened(name: str, high: int) -> Any:
        half = source_half(machine, name, "h" if is_f16 else "w", high)
        if is_f16:
            return lambda: flush_f16(array(value_of(half))).astype(f64)
        return lambda: flush_f32(bf16_to_f32(array(value_of(half)))).astype(f64)

    halves = _Halves(instruction, 2, widened)
    (a0, b0), (a1, b1) = halves.low, halves.high
    addend, write = source(machine, operands[3], "f"), destination(machine, operands[0], "f")

    def execute() -> None:
        total = value_of(a0) * value_of(b0) + value_of(a1) * value_of(b1)
        result = flush_f32((total + flush_f32(value_of(addend))).astype(f32))
        write(_clamped(result) if clamp else result)

    return execute


def flush_f16(x: Any) -> Any:
    """Denormals become zeros of their sign."""
    return np.where(np.abs(x) < f16(2.0**-14), np.copysign(f16(0), x), x)


_INTEGER_DOTS = (
    "v_dot4_i32_i8",
    "v_dot4_u32_u8",
    "v_dot4c_i32_i8",
    "v_dot8_i32_i4",
    "v_dot8_u32_u4",
    "v_dot8c_i32_i4",
    "v_dot2_i32_i16",
    "v_dot2_u32_u16",
    "v_dot2c_i32_i16",
)


@special(*_INTEGER_DOTS, modifiers={"clamp"})
def _integer_dot(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
    """Products of 16, 8 or 4-bit integers, added to a 32-bit one, which wraps or saturates."""
    match = re.match(r"v_dot(\d)(c?)_([iu])32_", base)
    if match is None:
        raise Unsupported(f"instruction {base}")
    count, signed = int(match[1]), match[3] == "i"
    bits, clamp = 32 // count, bool(instruction.modifiers.get("clamp"))
    operands = [*instruction.operands, *(instruction.operands[:1] if match[2] else [])]
    code = match[3]
    a, b = source(machine, operands[1], "u"), source(machine, operands[2], "u")
    addend, write = source(machine, operands[3], code), destination(machine, operands[0], code)
    limits, sign = np.iinfo(NUMPY_TYPE[code]), 1 << (bits - 1)

    def element(value: Any, position: int) -> Any:
        raw = ((array(value) >> u32(bits * position)) & u32((1 << bits) - 1)).astype(i64)
        return (raw ^ sign) - sign if signed else raw

    def execute() -> None:
        x, y = value_of(a), value_of(b)
        total = array(value_of(addend)).astype(i64)
        for position in range(count):
            total = total + element(x, position) * element(y, position)
        if clamp:
            total = np.clip(total, limits.min, limits.max)
        write(total.astype(limits.dtype))

    return execute
