"""Cross-check with llvm-mca: a loop body in LLVM's own timing model beside ours, one wave.

The two differ on purpose: llvm-mca knows one wave, no LDS or memory bandwidth, and a fixed latency
for memory (80 of its cycles) and barriers (500). So ours is run with one wave and LLVM's latencies.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.amd_model.assembly import Instruction, Trace
from benchmarks.amd_model.assumptions import Machine
from benchmarks.amd_model.compute_unit import run_trace

CLOCKS_PER_CYCLE = 4
"""A cycle of LLVM's model is one issue of a wave: four clocks."""
_TRIPS = 10
_PROGRAMS = ("llvm-mca", *(f"llvm-mca-{n}" for n in range(25, 17, -1)))
_LATENCIES = {
    "hbm_latency": 80,
    "l2_latency": 80,
    "store_latency": 80,
    "peer_latency": 80,
    "scratch_latency": 80,
    "lds_latency": 5,
    "scalar_latency": 5,
    "taken_branch": 8,
}
"""Cycles, LLVM SISchedule.td: WriteVMEM, WriteLDS, WriteSMEM, WriteBranch."""


@dataclass(frozen=True)
class CrossCheck:
    """Clocks per trip of the main loop for one wave, by llvm-mca and by this model."""

    tool: str
    theirs: float
    ours: float


def find_tool(gfx: str) -> tuple[str | None, str]:
    """(the llvm-mca on PATH that knows `gfx`, or None; a sentence that says what was found)."""
    too_old = []
    for name in _PROGRAMS:
        path = shutil.which(name)
        if path is None:
            continue
        if _cycles(path, gfx, "s_nop 0") is not None:
            return path, f"llvm-mca is {path}."
        too_old.append(path)
    if too_old:
        return None, f"{', '.join(too_old)} does not know {gfx}; LLVM 19 knows gfx942."
    return None, "llvm-mca is not on PATH, so nothing was compared with it (Debian: llvm-19)."


def rewrite(code: Sequence[Instruction]) -> str:
    """The instructions as llvm-mca takes them: no labels, buffer loads as global loads.

    llvm-mca 19 stops at buffer instructions; a global one has the same cost in its model.
    """
    lines = []
    for one in code:
        if one.kind in ("branch", "barrier", "cache"):
            continue
        text = one.text
        if one.name.startswith("buffer_"):
            data, address = one.operands[0], one.operands[1]
            base = re.match(r"v\[?(\d+)", address)
            first = int(base[1]) // 2 * 2 if base else 0
            pointer = f"v[{first}:{first + 1}]"
            name = one.name.replace("buffer_", "global_")
            pair = f"{data}, {pointer}" if one.kind == "load" else f"{pointer}, {data}"
            text = f"{name} {pair}, off"
        lines.append(text)
    return "\n".join(lines) + "\n"


def total_cycles(output: str) -> int | None:
    """The number behind "Total Cycles:" in llvm-mca's summary."""
    found = re.search(r"^Total Cycles:\s+(\d+)", output, re.MULTILINE)
    return int(found[1]) if found else None


def _cycles(tool: str, gfx: str, text: str, trips: int = 1) -> int | None:
    ran = subprocess.run(
        [tool, "-mtriple=amdgcn-amd-amdhsa", f"-mcpu={gfx}", f"-iterations={trips}"],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    unknown = "not a recognized processor" in ran.stderr
    return None if ran.returncode or unknown else total_cycles(ran.stdout)


def cross_check(trace: Trace, machine: Machine, tool: str) -> CrossCheck | str:
    """The main loop in both models, or a sentence that says why there is no comparison."""
    if not trace.body:
        return "the kernel has no loop."
    theirs = _cycles(tool, machine.gfx, rewrite(trace.body), _TRIPS)
    if theirs is None:
        return f"{tool} did not take the loop."
    numbers = {**machine.numbers, **{k: v * CLOCKS_PER_CYCLE for k, v in _LATENCIES.items()}}
    ours = run_trace(
        Trace((), trace.body, ()),
        _TRIPS,
        Machine(machine.gfx, numbers),
        waves=1,
        workgroups=1,
        bytes_per_clock=machine.cu_bytes_per_clock,
    )
    return CrossCheck(tool, theirs * CLOCKS_PER_CYCLE / _TRIPS, ours.clocks / _TRIPS)
