"""Operands of an instruction: where values come from and where results go.

`source` and its like return a fixed NumPy view when the value lies somewhere as it is, or a
function without arguments when it must be computed; `value_of` gives the value of either. Shapes
broadcast to (waves, 64): vector registers (waves, 64), scalar registers (waves, 1), constants ().
Destinations are functions that write where EXEC allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .definitions import (
    EXEC,
    PRIVATE_APERTURE,
    SHARED_APERTURE,
    VCC,
    Unsupported,
    f32,
    i32,
    pack_mask,
    u16,
    u32,
    u64,
)
from .registers import (
    FLOATS,
    HALF,
    NUMPY_TYPE,
    WIDE,
    constant,
    high_half_of_constant,
    parse_register,
    vgpr_row,
)

Operand = Any  # NumPy array or scalar, or a function that returns one
Writer = Callable[..., None]  # (value, where=None)

SDWA_SELECT = {
    **{f"BYTE_{n}": (8 * n, 8) for n in range(4)},
    **{f"WORD_{n}": (16 * n, 16) for n in range(2)},
}
"""SDWA selections -> (first bit, bits). Source: CDNA4 ISA, 13.3 "SDWA"."""


def value_of(operand: Operand) -> Any:
    """The operand's value now."""
    return operand() if callable(operand) else operand


def bf16_to_f32(bits: Any) -> Any:
    return (bits.astype(u32) << u32(16)).view(f32)


def f32_to_bf16(values: Any) -> Any:
    """f32 -> bf16 bits (u16), rounded to nearest even; a NaN stays one and becomes quiet."""
    bits = np.ascontiguousarray(values, dtype=f32).view(u32)
    rounded = (bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) >> u32(16)
    nan = (bits & u32(0x7FFFFFFF)) > u32(0x7F800000)
    return np.where(nan, (bits >> u32(16)) | u32(0x40), rounded).astype(u16)


def sign_extended(values: Any, bits: int) -> Any:
    """The low `bits` bits of u32 values, sign-extended to 32."""
    return ((values << u32(32 - bits)).view(i32) >> i32(32 - bits)).view(u32)


def _symbol_half(machine: Any, text: str, index: int) -> int | None:
    """`symbol@rel32@lo+4`: half of the distance from what the s_getpc_b64 before returned."""
    match = re.match(r"^([\w.$@]+?)@(gotpc)?rel32@(lo|hi)(?:\+(\d+))?$", text)
    if not match:
        return None
    if match[2]:
        raise Unsupported(f"GOT-relative symbol {text}")
    while index >= 0 and machine.program.instructions[index].op != "s_getpc_b64":
        index -= 1
    distance = machine.symbol_address(match[1]) - machine.code_address(index + 1)
    return (distance if match[3] == "lo" else distance >> 32) & 0xFFFFFFFF


_APERTURES = {
    "src_shared_base": SHARED_APERTURE,
    "src_shared_limit": 0xFFFFFFFF,
    "src_private_base": PRIVATE_APERTURE,
    "src_private_limit": 0xFFFFFFFF,
}


def _named_source(machine: Any, text: str, code: str, index: int) -> Operand:
    """What is neither a register nor a constant: symbols, apertures and status bits."""
    numpy_type = NUMPY_TYPE[code]
    half = _symbol_half(machine, text, index)
    if half is not None:
        return u32(half).view(numpy_type)
    if text in _APERTURES:
        address = _APERTURES[text]
        return (u64(address) if code in WIDE else u32(address >> 32)).view(numpy_type)
    name = text.removeprefix("src_")
    if name == "scc":
        return lambda: machine.scc.astype(numpy_type)
    if name in ("vccz", "execz"):
        pair = (VCC if name == "vccz" else EXEC) // 2
        return lambda: (machine.sgprs_u64[:, pair : pair + 1] == 0).astype(numpy_type)
    if text in machine.program.labels or text in machine.program.data:
        return u32(machine.symbol_address(text) & 0xFFFFFFFF)
    raise Unsupported(f"operand {text!r}")


def _scalar_source(machine: Any, number: int, code: str, high: int) -> Operand:
    numpy_type = NUMPY_TYPE[code]
    if code in WIDE:
        if number & 1:
            low, top = machine.sgprs[:, number : number + 1], number + 1
            return lambda: (
                low.astype(u64) | (machine.sgprs[:, top : top + 1].astype(u64) << u64(32))
            ).view(numpy_type)
        return machine.sgprs_u64.view(numpy_type)[:, number // 2 : number // 2 + 1]
    if code in HALF:
        column = 2 * number + high
        if code == "b":
            bits = machine.sgprs.view(u16)[:, column : column + 1]
            return lambda: bf16_to_f32(bits)
        return machine.sgprs.view(numpy_type)[:, column : column + 1]
    return machine.sgprs.view(numpy_type)[:, number : number + 1]


def source(machine: Any, text: str, code: str, high: int = 0, index: int = 0) -> Operand:
    """An operand without modifiers, of type `code`.

    high: take bits 31:16 (16-bit types). index: of the instruction, for symbols.
    """
    text = text.strip()
    register = parse_register(text)
    if register is None:
        value = constant(text, code)
        if value is None:
            return _named_source(machine, text, code, index)
        return high_half_of_constant(text, code) if high and code in HALF else value
    if register[0] == "s":
        return _scalar_source(machine, register[1], code, high)
    row, numpy_type = vgpr_row(machine, text), NUMPY_TYPE[code]
    if code in WIDE:
        low, top = machine.vgprs[row], machine.vgprs[row + 1]

        def pair() -> Any:
            value = top.astype(u64)
            value <<= u64(32)
            value |= low
            return value.view(numpy_type)

        return pair
    if code == "b":
        bits = machine.vgprs_u16[row, :, :, high]
        return lambda: bf16_to_f32(bits)
    if code in HALF:
        return machine.vgprs_u16.view(numpy_type)[row, :, :, high]
    return machine.vgprs.view(numpy_type)[row]


def _split_modifiers(text: str) -> tuple[str, bool, bool, bool]:
    """`-|v1|`, `neg(abs(v1))`, `sext(v1)` -> (`v1`, negate, absolute, sign-extend)"""
    negate = absolute = extend = False
    if text.startswith("neg("):
        negate, text = True, text[4:-1]
    elif text.startswith("-") and (
        text[1:2] == "|" or parse_register(text[1:]) or text[1:5] in ("abs(", "sext")
    ):
        negate, text = True, text[1:]
    if text.startswith("|"):
        absolute, text = True, text.strip("|")
    elif text.startswith("abs("):
        absolute, text = True, text[4:-1]
    if text.startswith("sext("):
        extend, text = True, text[5:-1]
    return text, negate, absolute, extend


def _selected(machine: Any, text: str, code: str, select: str, extend: bool, index: int) -> Operand:
    """The byte or word of a register that SDWA selects."""
    if select not in SDWA_SELECT:
        raise Unsupported(f"SDWA select {select}")
    whole = source(machine, text, "u", index=index)
    shift, bits = SDWA_SELECT[select]

    def part() -> Any:
        value = (value_of(whole) >> u32(shift)) & u32((1 << bits) - 1)
        if extend:
            value = sign_extended(value, bits)
        if code == "b":
            return bf16_to_f32(value)
        if code in HALF:
            return value.astype(u16).view(NUMPY_TYPE[code])
        return value.view(NUMPY_TYPE[code])

    return part


def _with_sign(operand: Operand, code: str, negate: bool, absolute: bool) -> Operand:
    """Negation and absolute value of a float, or of the sign bit of what may be one."""
    if code in FLOATS:
        if negate and absolute:
            return lambda: -np.abs(value_of(operand))
        return (lambda: np.abs(value_of(operand))) if absolute else (lambda: -value_of(operand))
    if code not in ("u", "U"):
        raise Unsupported("negation or absolute value of an integer")
    # e.g. v_cndmask_b32: bits move, the modifiers act on bit 31
    numpy_type = NUMPY_TYPE[code]
    sign = numpy_type(1 << (63 if code == "U" else 31))

    def with_sign_bit() -> Any:
        value = value_of(operand)
        if absolute:
            value = value & ~sign
        return value ^ sign if negate else value

    return with_sign_bit


def modified_source(
    machine: Any,
    text: str,
    code: str,
    modifiers: dict[str, Any],
    position: int,
    sdwa: bool = False,
    index: int = 0,
) -> Operand:
    """A source with its modifiers: -x, |x|, op_sel of 16-bit types, SDWA's select and sext.

    position: of the source among the sources. Source: CDNA4 ISA, 6.2.1 and 13.3.
    """
    text, negate, absolute, extend = _split_modifiers(text.strip())
    select = modifiers.get(f"src{position}_sel", "DWORD") if sdwa else "DWORD"
    if select != "DWORD":
        operand = _selected(machine, text, code, select, extend, index)
    else:
        if extend:
            raise Unsupported("sext without select")
        high = modifiers.get("op_sel", ()) if code in HALF else ()
        high_half = high[position] if position < len(high) else 0
        operand = source(machine, text, code, high=high_half, index=index)
    return _with_sign(operand, code, negate, absolute) if negate or absolute else operand


def _sdwa_destination(machine: Any, row: int, code: str, select: str, unused: str) -> Writer:
    """Write a byte or word of a register; `unused` says what becomes of the rest."""
    if select not in SDWA_SELECT:
        raise Unsupported(f"SDWA select {select}")
    shift, bits = SDWA_SELECT[select]
    register, enabled = machine.vgprs[row], machine.exec_mask
    part = u32((1 << bits) - 1)

    def write(value: Any, where: Any = None) -> None:
        value = np.ascontiguousarray(np.broadcast_to(np.asarray(value), (machine.waves, 64)))
        raw = f32_to_bf16(value) if code == "b" else value.view(f"u{value.dtype.itemsize}")
        raw = raw.astype(u32) & part
        if unused == "UNUSED_PRESERVE":
            raw = (register & ~(part << u32(shift))) | (raw << u32(shift))
        elif unused == "UNUSED_SEXT":
            raw = sign_extended(raw, bits) << u32(shift)
        else:
            raw = raw << u32(shift)
        np.copyto(register, raw, where=enabled if where is None else where)

    return write


def destination(
    machine: Any,
    text: str,
    code: str,
    high: int = 0,
    preserve: bool = False,
    sdwa: tuple[str, str] = ("DWORD", "UNUSED_PAD"),
) -> Writer:
    """Function (value, where) that writes a vector register; where=None: the lanes in EXEC.

    16-bit types write the half `high`; the other half becomes 0, or stays where `preserve` (or
    `high`) says so. sdwa: dst_sel and dst_unused.
    """
    row, enabled = vgpr_row(machine, text), machine.exec_mask
    if sdwa[0] != "DWORD":
        return _sdwa_destination(machine, row, code, *sdwa)
    if code in WIDE:
        low, top = machine.vgprs[row], machine.vgprs[row + 1]

        def write_pair(value: Any, where: Any = None) -> None:
            value = np.asarray(value).view(u64)
            if where is None and machine.all_lanes:
                low[...] = value
                top[...] = value >> u64(32)
            else:
                mask = enabled if where is None else where
                np.copyto(low, value, where=mask, casting="unsafe")
                np.copyto(top, value >> u64(32), where=mask, casting="unsafe")

        return write_pair
    if code in HALF:
        half = machine.vgprs_u16[row, :, :, high]
        target = half if high or preserve else machine.vgprs[row]

        def write_half(value: Any, where: Any = None) -> None:
            value = np.asarray(value)
            if code == "b":
                value = f32_to_bf16(value)
            elif value.dtype != u16:
                value = np.ascontiguousarray(value).view(u16)
            np.copyto(target, value, where=enabled if where is None else where)

        return write_half
    register = machine.vgprs.view(NUMPY_TYPE[code])[row]

    def write(value: Any, where: Any = None) -> None:
        if where is None and machine.all_lanes:
            register[...] = value
        else:
            np.copyto(register, value, where=enabled if where is None else where, casting="unsafe")

    return write


def mask_destination(machine: Any, text: str) -> Writer:
    """Function that writes a bool per lane to an SGPR pair; bits of disabled lanes become 0."""
    kind, number, _ = parse_register(text) or ("", 0, 0)
    if kind != "s" or number & 1:
        raise ValueError(f"{text} is no aligned pair of scalar registers")
    pair = machine.sgprs_u64[:, number // 2 : number // 2 + 1]
    shape = (machine.waves, 64)

    def write(lanes: Any, where: Any = None) -> None:
        if not machine.all_lanes:
            lanes = lanes & machine.exec_mask
        if getattr(lanes, "shape", None) != shape:
            lanes = np.broadcast_to(lanes, shape)
        if machine.all_running:
            pair[...] = pack_mask(lanes)
        else:
            np.copyto(pair, pack_mask(lanes), where=machine.running)
        if number == EXEC:
            machine.update_exec()

    return write


def scalar_destination(machine: Any, text: str, code: str) -> Writer:
    """Function (value) that writes a scalar register, or an aligned pair, of the running waves."""
    kind, number, _ = parse_register(text) or ("", 0, 0)
    if kind != "s":
        raise ValueError(f"{text} is no scalar register")
    if code in WIDE:
        if number & 1:
            raise Unsupported("odd SGPR pair")
        register = machine.sgprs_u64.view(NUMPY_TYPE[code])[:, number // 2 : number // 2 + 1]
    else:
        register = machine.sgprs.view(NUMPY_TYPE[code])[:, number : number + 1]
    is_exec = number in (EXEC, EXEC + 1)

    def write(value: Any) -> None:
        if machine.all_running:
            register[...] = value
        else:
            np.copyto(register, value, where=machine.running, casting="unsafe")
        if is_exec:
            machine.update_exec()

    return write
