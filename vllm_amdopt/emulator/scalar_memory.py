"""Scalar loads: one value per wave, through an address or a buffer descriptor.

Source: CDNA4 ISA, chapter 8 "Scalar Memory Operations" and 12.6 (SMEM).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .assembly import Instruction
from .definitions import MemFault, Unsupported, i64, u32
from .modifiers import SCALAR_MEMORY, refuse_unknown
from .operands import source, value_of
from .registers import parse_register, sgpr

_NAME = re.compile(r"s_(buffer_)?load_dword(?:x(2|4|8|16))?$")
BASE_HIGH = u32(0xFFFF)  # bits 47:32 of a descriptor's base


def compile_scalar_memory(machine: Any, instruction: Instruction) -> Callable[[], None]:
    """s_load_dword* and s_buffer_load_dword*."""
    match = _NAME.match(instruction.op)
    if not match:
        raise Unsupported(f"instruction {instruction.op}")
    refuse_unknown(instruction, SCALAR_MEMORY)
    by_descriptor, count = bool(match[1]), int(match[2] or 1)
    operands = [*instruction.operands, "0"]
    target, base = sgpr(operands[0]), sgpr(operands[1])
    constant, register = int(instruction.modifiers.get("offset", 0)), None
    if parse_register(operands[2]):
        register = source(machine, operands[2], "u")
    else:
        constant += int(operands[2], 0)
    address = machine.sgprs_u64[:, base // 2].view(i64)
    descriptor = machine.sgprs[:, base : base + 4]

    def offsets() -> Any:
        """Per wave, on top of the base; the lowest two bits of the sum do not count."""
        if register is None:
            return np.full(machine.waves, constant, i64)
        lanes = np.broadcast_to(value_of(register), (machine.waves, 1))[:, 0]
        return lanes.astype(i64) + constant

    def load_buffer(waves: Any) -> Any:
        """Dwords beyond the descriptor's number of bytes read as 0."""
        words, offset = descriptor[waves].astype(i64), offsets()[waves]
        start = (words[:, 0] | (words[:, 1] & BASE_HIGH) << 32) + offset & ~3
        data = np.zeros((len(waves), count), u32)
        for dword in range(count):
            inside = np.flatnonzero(offset + 4 * dword + 4 <= words[:, 2])
            if len(inside):
                data[inside, dword] = machine.memory.load(start[inside] + 4 * dword, 4)[:, 0]
        return data

    def load_memory(waves: Any) -> Any:
        start = (address + offsets() & ~3)[waves]
        try:
            return machine.memory.load(start, 4 * count)
        except MemFault:
            if count == 1:
                raise
        # a load that the compiler widened may run past the buffer inside one 64-byte line
        data = np.zeros((len(waves), count), u32)
        any_inside = False
        for dword in range(count):
            try:
                data[:, dword] = machine.memory.load(start + 4 * dword, 4)[:, 0]
                any_inside = True
            except MemFault:
                if not any_inside:
                    raise
        return data

    load = load_buffer if by_descriptor else load_memory

    def execute() -> None:
        waves = np.flatnonzero(machine.running[:, 0])
        data = load(waves)
        machine.bytes["smem_load"] += len(waves) * 4 * count
        if machine.all_running:
            machine.sgprs[:, target : target + count] = data
        else:
            machine.sgprs[waves, target : target + count] = data

    return execute
