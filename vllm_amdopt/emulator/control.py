"""Instructions that end a basic block: branches, calls, barriers and the end of the program.

Source: CDNA4 ISA, chapter 4 "Program Flow Control" and 12.5 "SOPP Instructions" (s_setpc, s_swappc:
12.3; s_call: 12.2). A terminator returns the index of the next instruction, or -1 when it has set
the program counters of its waves itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .assembly import Instruction
from .definitions import BARRIER, END, EXEC, RUN, VCC, EmuError, i64, u64
from .operands import scalar_destination, source, value_of

BRANCH_CONDITIONS = ("scc0", "scc1", "vccz", "vccnz", "execz", "execnz")

SET_PC = {"s_setpc_b64", "s_swappc_b64"}
ENDS = {"s_endpgm", "s_endpgm_saved"}
TERMINATORS = {
    "s_branch",
    "s_barrier",
    "s_trap",
    "s_call_b64",
    *SET_PC,
    *ENDS,
    *(f"s_cbranch_{condition}" for condition in BRANCH_CONDITIONS),
}


def release(machine: Any) -> bool:
    """Let go the workgroups whose live waves have all arrived at the barrier; any there?"""
    status = machine.status.reshape(machine.groups, machine.waves_per_group)
    waiting = status == BARRIER
    complete = waiting.any(1) & (waiting | (status == END)).all(1)
    if complete.any():
        status[complete[:, None] & waiting] = RUN
        machine.epoch += complete
    return bool(complete.any())


def _condition(machine: Any, name: str) -> Callable[[], Any]:
    """Whether to branch, per wave."""
    if name in ("scc0", "scc1"):
        scc = machine.scc[:, 0]
        return (lambda: scc) if name == "scc1" else (lambda: ~scc)
    register = VCC if name.startswith("vcc") else EXEC
    mask = machine.sgprs_u64[:, register // 2]
    return (lambda: mask != 0) if name.endswith("nz") else (lambda: mask == 0)


def compile_terminator(machine: Any, instruction: Instruction, index: int) -> Callable[[], int]:
    """The function of a terminator; see the module."""
    op, operands = instruction.op, instruction.operands
    labels, behind = machine.program.labels, index + 1
    if op == "s_branch":
        return lambda target=labels[operands[0]]: target  # type: ignore[misc]
    if op in ENDS:

        def end_program() -> int:
            machine.status[machine.running[:, 0]] = END
            release(machine)
            return -1

        return end_program
    if op == "s_barrier":

        def barrier() -> int:
            if machine.all_running:
                machine.epoch += 1
                return behind
            waves = machine.running[:, 0]
            machine.status[waves] = BARRIER
            machine.pc[waves] = behind
            release(machine)
            return -1

        return barrier
    if op == "s_trap":

        def trap() -> int:
            raise EmuError("s_trap executed (device assert / unreachable)")

        return trap
    if op in SET_PC:
        target_of = source(machine, operands[-1], "U")
        keep = scalar_destination(machine, operands[0], "U") if op == "s_swappc_b64" else None

        def set_pc() -> int:
            target = np.broadcast_to(value_of(target_of), (machine.waves, 1))[:, 0].copy()
            if keep:
                keep(u64(machine.code_address(behind)))
            waves = machine.running[:, 0]
            machine.pc[waves] = (target[waves].astype(i64) - machine.code_address(0)) // 4
            return -1

        return set_pc
    if op == "s_call_b64":
        target = labels[operands[1]]
        keep_return = scalar_destination(machine, operands[0], "U")
        return_address = u64(machine.code_address(behind))

        def call() -> int:
            keep_return(return_address)
            return target

        return call
    target = labels[operands[0]]
    condition = _condition(machine, op.removeprefix("s_cbranch_"))

    def branch() -> int:
        taken = condition()
        if not machine.all_running:
            taken = taken & machine.running[:, 0]
        count = int(np.count_nonzero(taken))
        if count == machine.running_count:
            return target
        if count == 0:
            return behind
        waves = machine.running[:, 0]
        machine.pc[taken] = target
        machine.pc[waves & ~taken] = behind
        return -1

    return branch
