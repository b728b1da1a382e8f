"""Vector instructions that cross lanes, move to scalar registers, or need more than a table entry.

SPECIALS: name without encoding -> (compile function, accepted modifiers). Source: CDNA4 ISA, 12.8
(VOP1), 12.10 (VOP3P) and 12.11 (VOP3), by the instruction's name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from .assembly import Instruction
from .definitions import EXEC, f16, f32, u32
from .floats import fma_f32
from .integers import count_ones
from .operands import destination, modified_source, source, value_of
from .registers import sgpr, vgpr_row

array = np.asarray
Compile = Callable[[Any, Instruction, str, int], Callable[[], Any]]
SPECIALS: dict[str, tuple[Compile, Collection[str]]] = {}

LANE = np.arange(64)


def special(*names: str, modifiers: Collection[str] = ()) -> Callable[[Compile], Compile]:
    """Register the compile function of these instructions."""

    def register(function: Compile) -> Compile:
        SPECIALS.update({name: (function, frozenset(modifiers)) for name in names})
        return function

    return register


def write_sgpr(machine: Any, number: int, value: Any) -> None:
    """Write one SGPR of the running waves; value: one per wave."""
    register = machine.sgprs[:, number]
    if machine.all_running:
        register[...] = value
    else:
        np.copyto(register, value, where=machine.running[:, 0], casting="unsafe")
    if number >= EXEC:
        machine.update_exec()


@special("v_readfirstlane_b32")
def _read_first_lane(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
    """The value of the first enabled lane, of lane 0 when none is."""
    number = sgpr(instruction.operands[0])
    values = source(machine, instruction.operands[1], "u", index=index)
    waves = np.arange(machine.waves)

    def execute() -> None:
        lanes = np.broadcast_to(value_of(values), (machine.waves, 64))
        first = lanes[:, 0] if machine.all_lanes else lanes[waves, machine.exec_mask.argmax(1)]
        write_sgpr(machine, number, first)

    return execute


@special("v_readlane_b32")
def _read_lane(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
    number = sgpr(instruction.operands[0])
    values = machine.vgprs[vgpr_row(machine, instruction.operands[1])]
    lane = source(machine, instruction.operands[2], "u")
    waves = np.arange(machine.waves)

    def execute() -> None:
        chosen = np.broadcast_to(array(value_of(lane)) & u32(63), (machine.waves, 1))[:, 0]
        write_sgpr(machine, number, values[waves, chosen])

    return execute


@special("v_writelane_b32")
def _write_lane(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
    register = machine.vgprs[vgpr_row(machine, instruction.operands[0])]
    value, lane = (source(machine, name, "u") for name in instruction.operands[1:3])
    waves = np.arange(machine.waves)

    def execute() -> None:
        values = np.broadcast_to(value_of(value), (machine.waves, 1))[:, 0]
        chosen = np.broadcast_to(array(value_of(lane)) & u32(63), (machine.waves, 1))[:, 0]
        running = machine.running[:, 0]
        register[waves[running], chosen[running]] = values[running]

    return execute


@special("v_mbcnt_lo_u32_b32", "v_mbcnt_hi_u32_b32")
def _masked_bit_count(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
    """The bits of a mask below the lane's own, in one half of the wave, added to a count."""
    below = [(1 << int(lane)) - 1 for lane in LANE]
    high = base.startswith("v_mbcnt_hi")
    ones = np.array([mask >> 32 if high else mask & 0xFFFFFFFF for mask in below], u32)
    mask, count = (source(machine, name, "u") for name in instruction.operands[1:3])
    write = destination(machine, instruction.operands[0], "u")
    return lambda: write(count_ones(value_of(mask) & ones).astype(u32) + value_of(count))


def _swap(first_lanes: Any, second_lanes: Any) -> Compile:
    """Exchange lanes of the first register with lanes of the second."""

    def compile_swap(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
        first, second = (
            machine.vgprs[vgpr_row(machine, name)] for name in instruction.operands[:2]
        )

        def execute() -> None:
            from_first, from_second = first[:, first_lanes].copy(), second[:, second_lanes].copy()
            if machine.all_lanes:
                first[:, first_lanes] = from_second
                second[:, second_lanes] = from_first
            else:
                mask = machine.exec_mask
                first[:, first_lanes] = np.where(mask[:, first_lanes], from_second, from_first)
                second[:, second_lanes] = np.where(mask[:, second_lanes], from_first, from_second)

        return execute

    return compile_swap


ODD_ROWS, EVEN_ROWS = LANE[LANE // 16 % 2 == 1], LANE[LANE // 16 % 2 == 0]
SPECIALS["v_permlane32_swap_b32"] = (_swap(LANE[32:], LANE[:32]), ())
SPECIALS["v_permlane16_swap_b32"] = (_swap(ODD_ROWS, EVEN_ROWS), ())
SPECIALS["v_swap_b32"] = (_swap(LANE, LANE), ())

BITOP3_SHORT: dict[int, Callable[[Any, Any, Any], Any]] = {
    0x88: lambda a, b, c: b & c,
    0xC0: lambda a, b, c: a & b,
    0xFC: lambda a, b, c: a | b,
    0x3C: lambda a, b, c: a ^ b,
    0xFE: lambda a, b, c: a | b | c,
    0x80: lambda a, b, c: a & b & c,
    0x96: lambda a, b, c: a ^ b ^ c,
    0xEA: lambda a, b, c: (a & b) | c,
    0xEC: lambda a, b, c: (a & c) | b,
    0xC8: lambda a, b, c: (a | c) & b,
    0xCA: lambda a, b, c: (a & b) | (~a & c),
    0x6C: lambda a, b, c: (a & c) ^ b,
    0x78: lambda a, b, c: a ^ (b & c),
    0x36: lambda a, b, c: (a | c) ^ b,
}
"""Truth tables that compilers emit often, as the expression they stand for (tested against the
general form)."""


def bitop3(table: int) -> Callable[[Any, Any, Any], Any]:
    """V_BITOP3: bit `4a + 2b + c` of the truth table, bit by bit."""

    def general(a: Any, b: Any, c: Any) -> Any:
        result = a ^ a
        for row in range(8):
            if table >> row & 1:
                x, y = (a if row & 4 else ~a), (b if row & 2 else ~b)
                result = result | (x & y & (c if row & 1 else ~c))
        return result

    return general


@special("v_bitop3_b32", "v_bitop3_b16", modifiers={"bitop3", "op_sel"})
def _bitop3(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
    table, modifiers = int(instruction.modifiers.get("bitop3", 0)), instruction.modifiers
    code = "w" if base.endswith("16") else "u"
    chosen = modifiers.get("op_sel", [0] * 4)
    if code == "u" and any(chosen):
        raise ValueError("op_sel of 32-bit operands")
    names = instruction.operands[1:4]
    a, b, c = (modified_source(machine, name, code, modifiers, j) for j, name in enumerate(names))
    write = destination(
        machine, instruction.operands[0], code, high=chosen[3], preserve=code == "w"
    )
    function = BITOP3_SHORT.get(table) or bitop3(table)
    return lambda: write(function(array(value_of(a)), array(value_of(b)), array(value_of(c))))


@special("v_prng_b32")
def _pseudo_random(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
    """One step of a linear feedback shift register."""
    operand = source(machine, instruction.operands[1], "u")
    write = destination(machine, instruction.operands[0], "u")

    def execute() -> None:
        value = array(value_of(operand))
        write((value << u32(1)) ^ np.where(value >> u32(31) == 1, u32(197), u32(0)))

    return execute


_MIX = [f"v_{kind}_mix{to}" for kind in ("fma", "mad") for to in ("_f32", "lo_f16", "hi_f16")]


@special(*_MIX, modifiers={"op_sel", "op_sel_hi", "clamp"})
def _mixed_fma(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
    """fma of operands that are f32, or one half of a register where op_sel_hi says so."""
    modifiers = instruction.modifiers
    half, is_half = modifiers.get("op_sel", [0] * 3), modifiers.get("op_sel_hi", [0] * 3)
    clamp, to_f32 = bool(modifiers.get("clamp")), base.endswith("f32")

    def operand(position: int, name: str) -> Any:
        if not is_half[position]:
            return modified_source(machine, name, "f", {}, position)
        narrow = modified_source(machine, name, "h", {"op_sel": half}, position)
        return lambda: array(value_of(narrow)).astype(f32)

    a, b, c = (operand(j, name) for j, name in enumerate(instruction.operands[1:4]))
    write = destination(
        machine,
        instruction.operands[0],
        "f" if to_f32 else "h",
        high=int("hi_" in base),
        preserve=True,
    )
    zero, one = f32(0), f32(1)

    def execute() -> None:
        value = fma_f32(value_of(a), value_of(b), value_of(c))
        if clamp:
            value = np.where(np.isnan(value), zero, np.clip(value, zero, one) + zero)
        write(value if to_f32 else value.astype(f16))

    return execute
