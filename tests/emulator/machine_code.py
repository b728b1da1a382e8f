"""Runs a few lines of assembly on known registers: what the tests of single instructions use.

No compiler, no Triton, no memory but the buffers given: text -> machine -> registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vllm_amdopt.emulator.assembly import parse
from vllm_amdopt.emulator.definitions import EXEC, VCC
from vllm_amdopt.emulator.machine import Machine
from vllm_amdopt.emulator.memory import Memory
from vllm_amdopt.emulator.registers import parse_register
from vllm_amdopt.emulator.scheduler import Scheduler

U32, U64 = np.uint32, np.uint64
LANES = 64

MODULE = """
.text
tested:
{body}
s_endpgm
.amdhsa_kernel tested
{descriptor}
.end_amdhsa_kernel
"""


@dataclass
class Outcome:
    """The registers after the run."""

    machine: Machine

    def v(self, number: int, kind: str = "v") -> np.ndarray:
        """A vector register, u32 (waves, 64)."""
        row = number if kind == "v" else self.machine.vgpr_count + number
        return self.machine.vgprs[row].copy()

    def v64(self, number: int) -> np.ndarray:
        """A pair of vector registers, u64 (waves, 64)."""
        return self.v(number).astype(U64) | self.v(number + 1).astype(U64) << U64(32)

    def s(self, number: int) -> np.ndarray:
        """A scalar register, u32 (waves,)."""
        return self.machine.sgprs[:, number].copy()

    def s64(self, number: int) -> np.ndarray:
        return self.machine.sgprs_u64[:, number // 2].copy()

    @property
    def scc(self) -> np.ndarray:
        return self.machine.scc[:, 0].copy()

    @property
    def vcc(self) -> np.ndarray:
        return self.s64(VCC)

    @property
    def exec_mask(self) -> np.ndarray:
        return self.s64(EXEC)

    @property
    def lds(self) -> np.ndarray:
        """The LDS of the first workgroup, bytes."""
        return self.machine.lds[: self.machine.lds_size].copy()


@dataclass
class Setup:
    """What stands in the machine before the first instruction.

    registers: name (`v3`, `s[4:5]`, `vcc`, `exec`) -> one value, one per wave (scalar), one per
    lane (vector: (64,) or (waves, 64)). Values are bits. A pair takes 64-bit values.
    """

    registers: Mapping[str, Any] = field(default_factory=dict)
    scc: Any = None
    waves: int = 1
    groups: int = 1
    lds: int | bytes = 0
    buffers: Mapping[str, np.ndarray] = field(default_factory=dict)
    descriptor: str = ""
    scratch: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


def execute(arch: str, body: str, setup: Setup | None = None, **more: Any) -> Outcome:
    """Run the lines and then s_endpgm."""
    setup = setup or Setup(**more)
    directives = "".join(f"  .amdhsa_{line}\n" for line in setup.descriptor.split("\n") if line)
    # registers that are set exist, also when no instruction names them
    named = " ".join(f"; {name}" for name in setup.registers)
    assembly = parse(MODULE.format(body=body, descriptor=directives) + named)
    assembly.metadata[".private_segment_fixed_size"] = setup.scratch
    memory = Memory()
    for name, array in setup.buffers.items():
        memory.add(array.ctypes.data, array.nbytes, name, array)
    content = setup.lds if isinstance(setup.lds, bytes) else b""
    size = len(content) or int(setup.lds if isinstance(setup.lds, int) else 0)
    machine = Machine(assembly, setup.groups, setup.waves, memory, size, arch, dict(setup.options))
    block = (64 * setup.waves, 1, 1)
    machine.start(np.arange(setup.groups), (setup.groups, 1, 1), block, True, [], [], True)
    if content:
        for group in range(setup.groups):
            start = int(machine.lds_base[group * setup.waves, 0])
            machine.lds[start : start + size] = np.frombuffer(content, np.uint8)
    for name, value in setup.registers.items():
        _set(machine, name, value)
    if setup.scc is not None:
        machine.scc[:, 0] = setup.scc
    machine.update_exec()
    with np.errstate(all="ignore"):
        Scheduler(machine).run(assembly.labels["tested"])
    return Outcome(machine)


def _set(machine: Machine, name: str, value: Any) -> None:
    kind, number, count = parse_register(name) or ("", 0, 0)
    bits = np.asarray(value)
    if bits.dtype.kind == "f":
        bits = bits.view(f"u{bits.dtype.itemsize}")
    bits = bits.astype(U64) if bits.dtype.kind == "u" else bits.astype(np.int64).view(U64)
    for part in range(count):
        word = (bits >> U64(32 * part)).astype(U32)
        if kind == "s":
            machine.sgprs[:, number + part] = word
        else:
            row = number + part + (machine.vgpr_count if kind == "a" else 0)
            if row < len(machine.vgprs):
                machine.vgprs[row] = word


def per_lane(values: Any, waves: int | None = None) -> tuple[np.ndarray, int]:
    """A flat array of test values -> ((waves, 64), waves), the last value repeated."""
    values = np.asarray(values)
    count = waves or -(-len(values) // LANES)
    padding = np.full(count * LANES - len(values), values[-1], values.dtype)
    return np.concatenate([values, padding]).reshape(count, LANES), count


def combinations(*columns: Any) -> list[np.ndarray]:
    """Every combination of the values of the columns, one flat array per column."""
    return [grid.reshape(-1) for grid in np.meshgrid(*map(np.asarray, columns), indexing="ij")]


def mask_of(lanes: Any) -> int:
    """Lane numbers -> 64-bit mask"""
    return sum(1 << int(lane) for lane in lanes)


def lanes_of(mask: Any) -> np.ndarray:
    """64-bit masks (waves,) -> bool (waves, 64)"""
    return (np.asarray(mask, U64)[:, None] >> np.arange(LANES, dtype=U64) & U64(1)).astype(bool)
