"""Scalar ALU instructions.

Source: CDNA4 ISA, chapter 5 "Scalar ALU Operations" and 12.1 (SOP2) to 12.4 (SOPC), by the
instruction's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .assembly import Instruction
from .definitions import EXEC, Unsupported, i32, i64, u32, u64
from .integers import (
    add_carry,
    add_overflow,
    count_ones,
    leading_sign_bits,
    leading_zeros,
    multiply_high_signed,
    multiply_high_unsigned,
    reverse_bits_32,
    reverse_bits_64,
    scalar_bitfield_32,
    scalar_bitfield_64,
    subtract_borrow,
    subtract_overflow,
    trailing_zeros,
)
from .operands import scalar_destination, sign_extended, source, value_of

array = np.asarray
Execute = Callable[[], Any]


def _shift_count(b: Any, bits: int, numpy_type: Any) -> Any:
    return (array(b) & u32(bits - 1)).astype(numpy_type)


def _shift_add(places: int) -> Callable[[Any, Any], tuple[Any, Any]]:
    def shift_add(a: Any, b: Any) -> tuple[Any, Any]:
        total = (array(a).astype(u64) << u64(places)) + array(b).astype(u64)
        return total.astype(u32), total > u64(0xFFFFFFFF)

    return shift_add


def _whole_quads(a: Any) -> Any:
    quads = ((array(a) >> u64(bit)) & u64(15) != 0 for bit in range(0, 64, 4))
    masks = (u64(15 << bit) for bit in range(0, 64, 4))
    return sum(
        (np.where(q, mask, u64(0)) for q, mask in zip(quads, masks, strict=True)), start=u64(0)
    )


def _replicate_bits(a: Any) -> Any:
    wide = array(a).astype(u64)
    bits = (((wide >> u64(bit)) & u64(1)) * u64(3 << 2 * bit) for bit in range(32))
    return sum(bits, start=u64(0))


def _bit(a: Any, numpy_type: Any) -> Any:
    bits = 64 if numpy_type is u64 else 32
    return numpy_type(1) << _shift_count(a, bits, numpy_type)


def _field_mask(numpy_type: Any) -> Callable[[Any, Any], Any]:
    bits = 64 if numpy_type is u64 else 32

    def mask(width: Any, offset: Any) -> Any:
        ones = (numpy_type(1) << _shift_count(width, bits, numpy_type)) - numpy_type(1)
        return ones << _shift_count(offset, bits, numpy_type)

    return mask


NOT_ZERO, RETURNED, KEPT = "not zero", "returned", "kept"
"""What becomes of SCC: set when the result is not 0; returned by the function; left alone."""

# name -> (type of the result, types of the sources, function, what becomes of SCC).
# Types as in registers.py; D: the destination is a source as well; C: SCC.
SCALAR_ALU: dict[str, tuple[str, str, Callable[..., Any], str]] = {
    "s_mov_b32": ("u", "u", array, KEPT),
    "s_mov_b64": ("U", "U", array, KEPT),
    "s_not_b32": ("u", "u", np.bitwise_not, NOT_ZERO),
    "s_not_b64": ("U", "U", np.bitwise_not, NOT_ZERO),
    "s_brev_b32": ("u", "u", reverse_bits_32, KEPT),
    "s_brev_b64": ("U", "U", reverse_bits_64, KEPT),
    "s_wqm_b64": ("U", "U", _whole_quads, NOT_ZERO),
    "s_bcnt0_i32_b32": ("i", "u", lambda a: 32 - count_ones(a).astype(i32), NOT_ZERO),
    "s_bcnt0_i32_b64": ("i", "U", lambda a: 64 - count_ones(a).astype(i32), NOT_ZERO),
    "s_bcnt1_i32_b32": ("i", "u", lambda a: count_ones(a).astype(i32), NOT_ZERO),
    "s_bcnt1_i32_b64": ("i", "U", lambda a: count_ones(a).astype(i32), NOT_ZERO),
    "s_ff1_i32_b32": ("i", "u", lambda a: trailing_zeros(a, 32), KEPT),
    "s_ff1_i32_b64": ("i", "U", lambda a: trailing_zeros(a, 64), KEPT),
    "s_ff0_i32_b32": ("i", "u", lambda a: trailing_zeros(~array(a), 32), KEPT),
    "s_ff0_i32_b64": ("i", "U", lambda a: trailing_zeros(~array(a), 64), KEPT),
    "s_flbit_i32_b32": ("i", "u", lambda a: leading_zeros(a, 32), KEPT),
    "s_flbit_i32_b64": ("i", "U", lambda a: leading_zeros(a, 64), KEPT),
    "s_flbit_i32": ("i", "i", lambda a: leading_sign_bits(a, 32), KEPT),
    "s_flbit_i32_i64": ("i", "I", lambda a: leading_sign_bits(a, 64), KEPT),
    "s_sext_i32_i8": ("u", "u", lambda a: sign_extended(array(a, u32), 8), KEPT),
    "s_sext_i32_i16": ("u", "u", lambda a: sign_extended(array(a, u32), 16), KEPT),
    "s_abs_i32": ("i", "i", np.abs, NOT_ZERO),
    "s_bitset0_b32": ("u", "uD", lambda a, d: d & ~_bit(a, u32), KEPT),
    "s_bitset1_b32": ("u", "uD", lambda a, d: d | _bit(a, u32), KEPT),
    "s_bitset0_b64": ("U", "uD", lambda a, d: d & ~_bit(a, u64), KEPT),
    "s_bitset1_b64": ("U", "uD", lambda a, d: d | _bit(a, u64), KEPT),
    "s_bitreplicate_b64_b32": ("U", "u", _replicate_bits, KEPT),
    "s_cmov_b32": ("u", "uDC", lambda a, d, c: np.where(c, a, d), KEPT),
    "s_cmov_b64": ("U", "UDC", lambda a, d, c: np.where(c, a, d), KEPT),
    "s_add_u32": ("u", "uu", add_carry, RETURNED),
    "s_sub_u32": ("u", "uu", subtract_borrow, RETURNED),
    "s_addc_u32": ("u", "uuC", add_carry, RETURNED),
    "s_subb_u32": ("u", "uuC", subtract_borrow, RETURNED),
    "s_add_i32": ("i", "ii", add_overflow, RETURNED),
    "s_sub_i32": ("i", "ii", subtract_overflow, RETURNED),
    # SCC: whether the first source was taken
    "s_min_i32": ("i", "ii", lambda a, b: (np.minimum(a, b), a < b), RETURNED),
    "s_max_i32": ("i", "ii", lambda a, b: (np.maximum(a, b), a >= b), RETURNED),
    "s_min_u32": ("u", "uu", lambda a, b: (np.minimum(a, b), a < b), RETURNED),
    "s_max_u32": ("u", "uu", lambda a, b: (np.maximum(a, b), a >= b), RETURNED),
    "s_cselect_b32": ("u", "uuC", lambda a, b, c: np.where(c, a, b), KEPT),
    "s_cselect_b64": ("U", "UUC", lambda a, b, c: np.where(c, a, b), KEPT),
    "s_mul_i32": ("u", "uu", np.multiply, KEPT),
    "s_mul_hi_u32": ("u", "uu", multiply_high_unsigned, KEPT),
    "s_mul_hi_i32": ("i", "ii", multiply_high_signed, KEPT),
    "s_absdiff_i32": ("i", "ii", lambda a, b: np.abs(a - b), NOT_ZERO),
    **{f"s_lshl{n}_add_u32": ("u", "uu", _shift_add(n), RETURNED) for n in (1, 2, 3, 4)},
    "s_lshl_b32": ("u", "uu", lambda a, b: array(a) << (b & u32(31)), NOT_ZERO),
    "s_lshr_b32": ("u", "uu", lambda a, b: array(a) >> (b & u32(31)), NOT_ZERO),
    "s_ashr_i32": ("i", "iu", lambda a, b: array(a) >> _shift_count(b, 32, i32), NOT_ZERO),
    "s_lshl_b64": ("U", "Uu", lambda a, b: array(a) << _shift_count(b, 64, u64), NOT_ZERO),
    "s_lshr_b64": ("U", "Uu", lambda a, b: array(a) >> _shift_count(b, 64, u64), NOT_ZERO),
    "s_ashr_i64": ("I", "Iu", lambda a, b: array(a) >> _shift_count(b, 64, i64), NOT_ZERO),
    "s_bfm_b32": ("u", "uu", _field_mask(u32), KEPT),
    "s_bfm_b64": ("U", "uu", _field_mask(u64), KEPT),
    "s_bfe_u32": ("u", "uu", lambda a, b: scalar_bitfield_32(a, b, False), NOT_ZERO),
    "s_bfe_i32": ("u", "uu", lambda a, b: scalar_bitfield_32(a, b, True), NOT_ZERO),
    "s_bfe_u64": ("U", "Uu", lambda a, b: scalar_bitfield_64(a, b, False), NOT_ZERO),
    "s_bfe_i64": ("U", "Uu", lambda a, b: scalar_bitfield_64(a, b, True), NOT_ZERO),
    "s_pack_ll_b32_b16": (
        "u",
        "uu",
        lambda a, b: (array(a) & u32(0xFFFF)) | (array(b) << u32(16)),
        KEPT,
    ),
    "s_pack_lh_b32_b16": (
        "u",
        "uu",
        lambda a, b: (array(a) & u32(0xFFFF)) | (array(b) & u32(0xFFFF0000)),
        KEPT,
    ),
    "s_pack_hh_b32_b16": (
        "u",
        "uu",
        lambda a, b: (array(a) >> u32(16)) | (array(b) & u32(0xFFFF0000)),
        KEPT,
    ),
}
LOGIC: dict[str, Callable[[Any, Any], Any]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "andn2": lambda a, b: a & ~array(b),
    "orn2": lambda a, b: a | ~array(b),
    "nand": lambda a, b: ~(array(a) & b),
    "nor": lambda a, b: ~(array(a) | b),
    "xnor": lambda a, b: ~(array(a) ^ b),
}
for _name, _function in LOGIC.items():
    SCALAR_ALU[f"s_{_name}_b32"] = ("u", "uu", _function, NOT_ZERO)
    SCALAR_ALU[f"s_{_name}_b64"] = ("U", "UU", _function, NOT_ZERO)

SAVE_EXEC: dict[str, Callable[[Any, Any], Any]] = {
    **{f"s_{name}_saveexec_b64": function for name, function in LOGIC.items()},
    "s_andn1_saveexec_b64": lambda a, b: ~array(a) & b,
    "s_orn1_saveexec_b64": lambda a, b: ~array(a) | b,
}
WRITE_EXEC: dict[str, Callable[[Any, Any], Any]] = {
    "s_andn1_wrexec_b64": lambda a, b: ~array(a) & b,
    "s_andn2_wrexec_b64": lambda a, b: a & ~array(b),
}
COMPARISONS = {
    "eq": np.equal,
    "lg": np.not_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
}
_COMPARE = re.compile(r"s_cmp_(\w\w)_(i32|u32|u64)$")
_COMPARE_CONSTANT = re.compile(r"s_cmpk_(\w\w)_(i32|u32)$")
_BIT_COMPARE = re.compile(r"s_bitcmp([01])_b(32|64)$")


def write_scc(machine: Any, value: Any) -> None:
    if machine.all_running:
        machine.scc[...] = value
    else:
        np.copyto(machine.scc, value, where=machine.running)


def compile_scalar(machine: Any, instruction: Instruction, index: int) -> Execute:
    """The function of one scalar ALU instruction."""
    op, operands = instruction.op, instruction.operands
    if op in SCALAR_ALU:
        return _table_entry(machine, instruction, index)
    if op in SAVE_EXEC or op in WRITE_EXEC:
        return _exec_logic(machine, instruction)
    if op in _WITH_CONSTANT:
        return _with_constant(machine, instruction)
    match = _COMPARE.match(op)
    if match:
        code = {"i32": "i", "u32": "u", "u64": "U"}[match[2]]
        a, b = (source(machine, name, code, index=index) for name in operands)
        compare = COMPARISONS[match[1]]
        return lambda: write_scc(machine, compare(value_of(a), value_of(b)))
    match = _COMPARE_CONSTANT.match(op)
    if match:
        constant = _signed_16(operands[1])
        value = i32(constant) if match[2] == "i32" else u32(constant & 0xFFFF)
        register = source(machine, operands[0], match[2][0])
        compare = COMPARISONS[match[1]]
        return lambda: write_scc(machine, compare(register, value))
    match = _BIT_COMPARE.match(op)
    if match:
        wanted, bits = int(match[1]), int(match[2])
        numpy_type = u64 if bits == 64 else u32
        a, b = (
            source(machine, operands[0], "U" if bits == 64 else "u"),
            source(machine, operands[1], "u"),
        )

        def compare_bit() -> None:
            bit = array(value_of(a)) >> _shift_count(value_of(b), bits, numpy_type)
            write_scc(machine, (bit & numpy_type(1)) == wanted)

        return compare_bit
    if op == "s_getpc_b64":
        write = scalar_destination(machine, operands[0], "U")
        address = u64(machine.code_address(index + 1))
        return lambda: write(address)
    if op in ("s_setreg_imm32_b32", "s_setreg_b32"):
        return _set_hardware_register(machine, operands)
    if op == "s_getreg_b32":
        return _get_hardware_register(machine, operands)
    if op == "s_denorm_mode":
        bits = int(operands[0], 0)
        return lambda: machine.mode.set_denormals(bits)
    if op in ("s_memtime", "s_memrealtime"):
        write = scalar_destination(machine, operands[0], "U")

        def read_clock() -> None:
            machine.clock += 100  # time passes, no more than that
            write(u64(machine.clock))

        return read_clock
    raise Unsupported(f"instruction {op}")


def _table_entry(machine: Any, instruction: Instruction, index: int) -> Execute:
    code, sources, function, scc = SCALAR_ALU[instruction.op]
    write = scalar_destination(machine, instruction.operands[0], code)
    names = list(instruction.operands[1:])
    values: list[Any] = []
    for kind in sources:
        if kind == "D":
            values.append(source(machine, instruction.operands[0], code, index=index))
        elif kind == "C":
            values.append(machine.scc)
        else:
            values.append(source(machine, names.pop(0), kind, index=index))
    if names:
        raise Unsupported(f"further operands {', '.join(names)}")
    if scc == KEPT:
        if len(values) == 1 and not callable(values[0]):
            value = values[0]
            return lambda: write(function(value))
        return lambda: write(function(*[value_of(x) for x in values]))
    if scc == NOT_ZERO:

        def execute_and_test() -> None:
            result = function(*[value_of(x) for x in values])
            write(result)
            write_scc(machine, result != 0)

        return execute_and_test

    def execute_with_scc() -> None:
        result, flag = function(*[value_of(x) for x in values])
        write(result)
        write_scc(machine, flag)

    return execute_with_scc


def _exec_logic(machine: Any, instruction: Instruction) -> Execute:
    """EXEC = source <op> EXEC; the destination gets the old EXEC, or for wrexec the new one."""
    saves = instruction.op in SAVE_EXEC
    function = (SAVE_EXEC if saves else WRITE_EXEC)[instruction.op]
    operand = source(machine, instruction.operands[1], "U")
    write = scalar_destination(machine, instruction.operands[0], "U")
    write_exec = scalar_destination(machine, "exec", "U")
    exec_pair = machine.sgprs_u64[:, EXEC // 2 : EXEC // 2 + 1]

    def execute() -> None:
        value, old = np.array(value_of(operand)), exec_pair.copy()
        new = function(value, old)
        write(old if saves else new)
        write_exec(new)
        write_scc(machine, new != 0)

    return execute


def _signed_16(text: str) -> int:
    value = int(text, 0) & 0xFFFF
    return value - 0x10000 if value > 0x7FFF else value


_WITH_CONSTANT = ("s_movk_i32", "s_cmovk_i32", "s_addk_i32", "s_mulk_i32")


def _with_constant(machine: Any, instruction: Instruction) -> Execute:
    """SOPK: a register and a signed 16-bit constant."""
    constant = i32(_signed_16(instruction.operands[1]))
    register = source(machine, instruction.operands[0], "i")
    write = scalar_destination(machine, instruction.operands[0], "i")
    if instruction.op == "s_movk_i32":
        return lambda: write(constant)
    if instruction.op == "s_cmovk_i32":
        return lambda: write(np.where(machine.scc, constant, register))
    if instruction.op == "s_mulk_i32":
        return lambda: write(register * constant)

    def add() -> None:
        total, overflow = add_overflow(register, constant)
        write(total)
        write_scc(machine, overflow)

    return add


_HARDWARE_REGISTER = re.compile(r"hwreg\((?:HW_REG_)?(\w+)(?:,\s*(\d+),\s*(\d+))?\)")
# Readable, and 0 is a true answer here: where the wave runs, and exceptions that were raised.
READ_AS_ZERO = ("HW_ID", "TRAPSTS")


def _hardware_register(text: str) -> tuple[str, int, int]:
    """`hwreg(HW_REG_MODE, 4, 2)` -> (name, first bit, mask)"""
    match = _HARDWARE_REGISTER.match(text)
    if not match:
        raise Unsupported(f"hardware register {text}")
    return match[1], int(match[2] or 0), (1 << int(match[3] or 32)) - 1


def _set_hardware_register(machine: Any, operands: list[str]) -> Execute:
    name, offset, mask = _hardware_register(operands[0])
    if name != "MODE":
        raise Unsupported(f"writing hardware register {name}")
    operand, shape = source(machine, operands[1], "u"), (machine.waves, 1)

    def execute() -> None:
        values = np.unique(np.broadcast_to(value_of(operand), shape)[machine.running])
        if values.size != 1:
            raise Unsupported("waves with different modes")
        field = int(values[0]) & mask
        machine.mode.write(machine.mode.read() & ~(mask << offset) | field << offset)

    return execute


def _get_hardware_register(machine: Any, operands: list[str]) -> Execute:
    name, offset, mask = _hardware_register(operands[1])
    write = scalar_destination(machine, operands[0], "u")
    if name == "MODE":
        return lambda: write(u32(machine.mode.read() >> offset & mask))
    if name == "XCC_ID":  # workgroups go round the eight dies
        return lambda: write(
            (machine.group_number % 8).astype(u32)[:, None] >> u32(offset) & u32(mask)
        )
    if name in READ_AS_ZERO:
        return lambda: write(u32(0))
    raise Unsupported(f"reading hardware register {name}")
