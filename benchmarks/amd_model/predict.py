"""From a case to a floor and a predicted time; both are arithmetic, neither is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.amd_model.assembly import (
    Instruction,
    Program,
    Trace,
    bytes_in_flight,
    parse,
    trace_of,
)
from benchmarks.amd_model.assumptions import Machine
from benchmarks.amd_model.compute_unit import SIMDS, Timing, run, run_trace
from benchmarks.amd_model.serving import Case, Launch

_REGISTERS = 512
"""Vector registers of a lane, ordinary and accumulation ones together (AMD CDNA 3 ISA)."""
_REGISTER_GRANULE = 8
_MOST_WAVES = 8
"""Waves that a SIMD holds at most (LLVM AMDGPUUsage, occupancy of gfx90a and gfx94x)."""


@dataclass(frozen=True)
class Kernel:
    """A compiled variant as the model sees it."""

    trace: Trace
    counts: dict[str, int]
    waves: int
    lds_bytes: int
    alone: tuple[Instruction, ...] = ()
    """What only the last workgroup to arrive does, when the others are done: it merges."""

    def residents(self, machine: Machine) -> int:
        """Workgroups that fit on a compute unit at once; 0 where one asks for too much LDS."""
        if self.lds_bytes > machine.lds_bytes:
            return 0
        registers = max(self.counts.get("vgpr_count", 1), 1)
        each = -(-registers // _REGISTER_GRANULE) * _REGISTER_GRANULE
        waves = SIMDS * min(_MOST_WAVES, _REGISTERS // each)
        by_lds = machine.lds_bytes // self.lds_bytes if self.lds_bytes else waves
        return max(1, min(waves // self.waves, by_lds))

    def bytes_requested(self, trips: int) -> int:
        """What a workgroup's loads and stores of data ask for, every lane counted."""

        def moved(code: Sequence[Instruction]) -> int:
            kinds = ("load", "store", "atomic")
            return sum(i.bytes for i in code if i.kind in kinds and not i.for_address)

        trace = self.trace
        return self.waves * (moved(trace.before) + trips * moved(trace.body) + moved(trace.after))


def kernel_of(program: Program, waves: int, lds_bytes: int) -> Kernel:
    """The kernel of a parsed listing."""
    trace = trace_of(program)
    for i, one in enumerate(trace.after):
        # A count on this GPU that is looked at: whoever finds all others there goes on.
        if one.kind == "atomic" and one.writes and not one.system_scope:
            trace, alone = replace(trace, after=trace.after[:i]), trace.after[i:]
            return Kernel(trace, program.counts, waves, lds_bytes, alone)
    return Kernel(trace, program.counts, waves, lds_bytes)


_compiled: dict[tuple[str, str], Kernel] = {}


def compiled(variant: Any, gfx: str) -> Kernel:
    """The variant compiled for the chip; kept, because many shapes share one."""
    key = (variant.name, gfx)
    if key not in _compiled:
        from vllm_amdopt.codegen import compile_variant

        result = compile_variant(variant, gfx)
        program = parse(result.asm["amdgcn"])
        _compiled[key] = kernel_of(program, variant.num_warps, int(result.metadata.shared))
    return _compiled[key]


@dataclass(frozen=True)
class LaunchPrediction:
    """One launch: seconds, the waves that a SIMD holds, bytes in flight, what waves wait for."""

    seconds: float
    waves_per_simd: float
    bytes_in_flight_per_cu: int
    clocks_per_trip: float
    waits: dict[str, float] = field(default_factory=dict)

    @property
    def waits_most_for(self) -> str:
        return max(self.waits, key=lambda why: self.waits[why]) if self.waits else "nothing"


@dataclass(frozen=True)
class Prediction:
    """A case: its floor and the predicted time, seconds. Never measured."""

    case: Case
    gfx: str
    floor_seconds: float
    floor_by: str
    seconds: float
    launches: tuple[LaunchPrediction, ...]

    @property
    def share_of_floor(self) -> float:
        """floor / predicted time: 1 is the best that the data sheet allows."""
        return self.floor_seconds / self.seconds


def floor(case: Case, machine: Machine) -> tuple[float, str]:
    """(seconds, what binds): the largest of bytes / peak bandwidth, FLOPs / peak rate, links."""
    bounds = {
        "HBM": case.bytes / machine.hbm_bandwidth,
        "matrix": case.flops / machine.matrix_rate,
        "link": case.link_bytes / machine.link_bandwidth,
    }
    binding = max(bounds, key=lambda name: bounds[name])
    return bounds[binding], binding


def _share(
    machine: Machine, launch: Launch, kernel: Kernel, on_each: int, running: int, peers: bool
) -> float:
    """Bytes a clock for a compute unit with `on_each` of the `running` workgroups of the chip.

    Workgroups, not compute units, share the bandwidth: where some units have two and others three,
    those with three get more.
    """
    part = on_each / running
    if peers:
        # Seven links, all in use; the own rank's eighth is not worth a term of its own.
        return min(machine.cu_bytes_per_clock, 7 * machine.link_bandwidth / machine.clock * part)
    requested = launch.workgroups * kernel.bytes_requested(launch.trips)
    # What is asked for more than once comes from L2 the second time.
    again = max(1.0, requested / launch.needed_bytes)
    hbm = machine.hbm_bandwidth * machine.hbm_reachable / machine.clock * again
    l2 = machine.l2_bytes_per_clock * machine.xcds
    return min(machine.cu_bytes_per_clock, min(hbm, l2) * part)


_simulated: dict[tuple[Any, ...], Timing] = {}


def _simulate(
    kernel: Kernel, trips: int, machine: Machine, workgroups: int, share: float
) -> Timing:
    # Three digits: shapes that differ by a page table need no simulation of their own.
    share = float(f"{share:.3g}")
    numbers = tuple(sorted(machine.numbers.items()))
    key = (id(kernel.trace), kernel.waves, trips, workgroups, share, machine.gfx, numbers)
    if key not in _simulated:
        _simulated[key] = run_trace(
            kernel.trace,
            trips,
            machine,
            waves=kernel.waves,
            workgroups=workgroups,
            bytes_per_clock=share,
        )
    return _simulated[key]


def predict_launch(
    launch: Launch, kernel: Kernel, machine: Machine, *, peers: bool = False
) -> LaunchPrediction:
    """Rounds of workgroups over the compute units, each as long as the model says."""
    units = int(machine.compute_units)
    residents = kernel.residents(machine)
    if residents == 0:
        return LaunchPrediction(math.inf, 0, 0, math.inf, {"LDS that the chip lacks": 1})
    trips = launch.trips if kernel.trace.body else 1
    clocks, left = 0.0, launch.workgroups
    first: tuple[int, Timing, float] | None = None
    while left > 0:
        on_each = min(residents, -(-left // units))
        running = min(left, on_each * units)
        rounds = max(1, left // (on_each * units))
        share = _share(machine, launch, kernel, on_each, running, peers)
        timing = _simulate(kernel, trips, machine, on_each, share)
        clocks += timing.clocks * rounds
        left -= on_each * units * rounds
        first = first or (on_each, timing, share)
    assert first is not None
    on_each, timing, share = first
    seconds = clocks / machine.clock
    if not peers:
        reachable = machine.hbm_bandwidth * machine.hbm_reachable
        seconds = max(seconds, launch.needed_bytes / reachable)
    if kernel.alone and launch.merges:
        rate = machine.cu_bytes_per_clock
        end = run(kernel.alone, machine, waves=kernel.waves, workgroups=1, bytes_per_clock=rate)
        seconds += end.clocks / machine.clock
    seconds += launch.merged_bytes / (machine.cu_bytes_per_clock * machine.clock)
    return LaunchPrediction(
        seconds=seconds,
        waves_per_simd=on_each * kernel.waves / SIMDS,
        bytes_in_flight_per_cu=bytes_in_flight(kernel.trace) * kernel.waves * on_each,
        clocks_per_trip=timing.clocks / max(trips, 1),
        waits=timing.waits,
    )


def predict(case: Case, machine: Machine) -> Prediction:
    """The case on the chip: its launches one after the other, with a gap between them."""
    seconds, binding = floor(case, machine)
    launches = tuple(
        predict_launch(
            launch, compiled(launch.variant, machine.gfx), machine, peers=case.link_bytes > 0
        )
        for launch in case.launches
    )
    total = sum(one.seconds for one in launches) + machine.launch_gap * (len(launches) - 1)
    # The launches are simulated, so nothing else keeps them above what the data sheet allows.
    return Prediction(case, machine.gfx, seconds, binding, max(total, seconds), launches)
