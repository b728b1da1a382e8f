"""One compute unit, clock by clock: waves issue in order, wait as s_waitcnt says, share the pipes.

What is modelled: four SIMDs that each start at most one instruction of a kind every four clocks;
vector and matrix pipes per SIMD; one LDS, one vector memory path and one share of the memory
bandwidth per compute unit; latencies; barriers. What is not: caches as such (a load has the latency
of its kind), bank conflicts, instruction fetch, masks (every lane takes part), clock changes.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.amd_model.assembly import Instruction, Trace
from benchmarks.amd_model.assumptions import Machine
from benchmarks.amd_model.costs import CLOCKS_PER_PASS, RESULT_PASSES, vector_clocks

SIMDS = 4
ISSUE = 4
"""Clocks between instructions of one wave, and of one kind on one SIMD (AMD CDNA 3 ISA)."""

_PORT = {
    "matrix": "vector",
    "vector": "vector",
    "lds": "lds",
    "load": "memory",
    "store": "memory",
    "atomic": "memory",
    "scratch": "memory",
    "cache": "memory",
}
_LONGEST_EXACT = 10
_SHORT_RUN = 6


@dataclass(frozen=True)
class Timing:
    """How long one compute unit takes, and for what its waves waited: clocks, summed over waves."""

    clocks: float
    waits: dict[str, float] = field(default_factory=dict)


class _Wave:
    """Where a wave is, and what it has under way."""

    def __init__(self, number: int, workgroup: int, simd: int) -> None:
        self.number, self.workgroup, self.simd = number, workgroup, simd
        self.position = 0
        self.arrived = 0.0
        # register -> (clock at which any instruction may read it, at which an accumulation may)
        self.results: dict[str, tuple[float, float]] = {}
        self.memory: deque[float] = deque()
        self.lds: deque[float] = deque()


class _ComputeUnit:
    """The shared parts, and one method per kind of instruction."""

    def __init__(self, machine: Machine, bytes_per_clock: float, waves: int) -> None:
        self.machine = machine
        self.bytes_per_clock = bytes_per_clock
        self.waves = waves
        self.port: dict[tuple[int, str], float] = {}
        self.vector_free = [0.0] * SIMDS
        self.matrix_free = [0.0] * SIMDS
        self.lds_free = 0.0
        self.address_free = 0.0
        self.return_free = 0.0
        self.at_barrier: dict[int, list[_Wave]] = {}
        self.waits: defaultdict[str, float] = defaultdict(float)

    def earliest(self, wave: _Wave, one: Instruction, now: float) -> tuple[float, str]:
        """When the instruction can start, not before `now`, and what it waits for."""
        at, why = now, ""

        def not_before(clock: float, reason: str) -> None:
            nonlocal at, why
            if clock > at:
                at, why = clock, reason

        if wave.results and one.kind in ("vector", "matrix", "store", "lds", "load"):
            for register in one.reads:
                if ready := wave.results.get(register):
                    accumulates = one.kind == "matrix" and register in one.writes
                    not_before(ready[1] if accumulates else ready[0], "result")
            if one.kind == "vector":
                for register in one.writes:
                    if ready := wave.results.get(register):
                        not_before(ready[0], "result")
        for queue, allowed, reason in (
            (wave.memory, one.outstanding_memory, "memory"),
            (wave.lds, one.outstanding_lds, "lds"),
        ):
            if allowed is not None and len(queue) > allowed:
                not_before(queue[len(queue) - allowed - 1], reason)
        port = _PORT.get(one.kind, "scalar")
        if port == "vector":
            not_before(self.vector_free[wave.simd], "vector pipe")
            if one.kind == "matrix":
                not_before(self.matrix_free[wave.simd], "matrix pipe")
        elif port == "lds":
            not_before(self.lds_free - self.machine.lds_queue, "lds pipe")
        elif port == "memory":
            not_before(self.address_free - self.machine.address_queue, "memory pipe")
        not_before(self.port.get((wave.simd, port), 0.0), "issue")
        return at, why

    def start(self, wave: _Wave, one: Instruction, at: float, taken: bool) -> float | None:
        """Start it; returns when the wave's next instruction may start, None if it waits."""
        machine = self.machine
        self.port[wave.simd, _PORT.get(one.kind, "scalar")] = at + ISSUE
        following: float = at + ISSUE
        if one.kind == "matrix":
            self.vector_free[wave.simd] = at + ISSUE
            self.matrix_free[wave.simd] = at + CLOCKS_PER_PASS * one.passes
            readable = at + CLOCKS_PER_PASS * (one.passes + RESULT_PASSES)
            for register in one.writes:
                wave.results[register] = (readable, at + CLOCKS_PER_PASS * one.passes)
        elif one.kind == "vector":
            cost = vector_clocks(one.name)
            clocks = max(ISSUE, getattr(machine, cost) if isinstance(cost, str) else cost)
            self.vector_free[wave.simd] = at + clocks
            if clocks > ISSUE:
                for register in one.writes:
                    wave.results[register] = (at + clocks, at + clocks)
            elif wave.results:
                for register in one.writes:
                    wave.results.pop(register, None)
        elif one.kind == "lds":
            busy = max(float(ISSUE), one.bytes / machine.lds_bytes_per_clock)
            self.lds_free = max(at, self.lds_free) + busy
            wave.lds.append(self.lds_free + machine.lds_latency)
        elif one.kind == "scalar_load":
            wave.lds.append(at + machine.scalar_latency)
        elif one.kind in ("load", "store", "atomic", "scratch"):
            wave.memory.append(self._memory(wave, one, at))
        elif one.kind == "nop":
            following = at + ISSUE * (int(one.operands[0], 0) + 1 if one.operands else 1)
        elif one.kind == "branch":
            following = at + (machine.taken_branch if taken else ISSUE)
        elif one.kind == "barrier":
            return self._barrier(wave, at)
        return following

    def _memory(self, wave: _Wave, one: Instruction, at: float) -> float:
        """Send a vector memory instruction; returns the clock at which it counts as done."""
        machine = self.machine
        busy = max(float(ISSUE), one.bytes / machine.cu_bytes_per_clock)
        self.address_free = max(at, self.address_free) + busy
        if one.kind == "scratch":
            done = self.address_free + machine.scratch_latency
        else:
            if one.system_scope and one.kind != "store":
                latency = machine.peer_latency
            elif one.kind == "load":
                latency = machine.l2_latency if one.for_address else machine.hbm_latency
            else:
                latency = machine.store_latency
            done = self.address_free + latency
            if not one.for_address:
                # Data come back one after the other at this compute unit's share of the bandwidth.
                done = max(done, self.return_free + one.bytes / self.bytes_per_clock)
                self.return_free = (
                    done
                    if one.kind == "load"
                    else max(at, self.return_free) + (one.bytes / self.bytes_per_clock)
                )
        # vmcnt counts down in the order of issue
        return max(done, wave.memory[-1]) if wave.memory else done

    def _barrier(self, wave: _Wave, at: float) -> float | None:
        """The clock at which the workgroup goes on, if this wave is its last to arrive."""
        waiting = self.at_barrier.setdefault(wave.workgroup, [])
        waiting.append(wave)
        wave.arrived = at
        if len(waiting) < self.waves:
            return None
        return at + self.machine.barrier

    def release(self, workgroup: int, at: float) -> list[_Wave]:
        """The waves that waited at the barrier for the last one, which is not among them."""
        waiting = self.at_barrier.pop(workgroup)
        for wave in waiting:
            self.waits["barrier"] += at - wave.arrived
        return waiting[:-1]


def run(
    code: Sequence[Instruction],
    machine: Machine,
    *,
    waves: int,
    workgroups: int,
    bytes_per_clock: float,
) -> Timing:
    """`workgroups` of `waves` waves each run `code` on one compute unit: first start to last end.

    bytes_per_clock: this compute unit's share of the memory bandwidth.
    """
    unit = _ComputeUnit(machine, bytes_per_clock, waves)
    ready: list[tuple[float, int]] = []
    everyone: list[_Wave] = []
    for number in range(waves * workgroups):
        workgroup, member = divmod(number, waves)
        simd = (member + workgroup * (waves % SIMDS)) % SIMDS
        everyone.append(_Wave(number, workgroup, simd))
        heapq.heappush(ready, (workgroup * machine.dispatch_interval, number))
    end = 0.0
    while ready:
        now, number = heapq.heappop(ready)
        wave = everyone[number]
        if wave.position >= len(code):
            end = max(end, now)
            continue
        one = code[wave.position]
        at, why = unit.earliest(wave, one, now)
        if at > now:
            # Others may start before: the pipes are looked at again when this wave's turn comes.
            unit.waits[why] += at - now
            heapq.heappush(ready, (at, number))
            continue
        if one.outstanding_memory is not None:
            _forget(wave.memory, at)
        if one.outstanding_lds is not None:
            _forget(wave.lds, at)
        wave.position += 1
        following = unit.start(wave, one, at, _is_taken(code, wave.position - 1))
        if following is None:
            continue
        if one.kind == "barrier":
            for other in unit.release(wave.workgroup, following):
                heapq.heappush(ready, (following, other.number))
        heapq.heappush(ready, (following, number))
    return Timing(end, dict(unit.waits))


def _forget(queue: deque[float], now: float) -> None:
    while queue and queue[0] <= now:
        queue.popleft()


def _is_taken(code: Sequence[Instruction], position: int) -> bool:
    """Whether the instruction after this one is another than the next in the program's text."""
    return position + 1 < len(code) and code[position + 1].index != code[position].index + 1


def run_trace(
    trace: Trace,
    trips: int,
    machine: Machine,
    *,
    waves: int,
    workgroups: int,
    bytes_per_clock: float,
) -> Timing:
    """`run` for `trips` trips of the main loop; many trips are extrapolated from six and ten."""

    def simulate(number: int) -> Timing:
        return run(
            trace.whole(number),
            machine,
            waves=waves,
            workgroups=workgroups,
            bytes_per_clock=bytes_per_clock,
        )

    if trips <= _LONGEST_EXACT:
        return simulate(trips)
    short, long = simulate(_SHORT_RUN), simulate(_LONGEST_EXACT)
    steps = (trips - _LONGEST_EXACT) / (_LONGEST_EXACT - _SHORT_RUN)
    return Timing(
        long.clocks + steps * (long.clocks - short.clocks),
        {
            why: value + steps * max(0.0, value - short.waits.get(why, 0.0))
            for why, value in long.waits.items()
        },
    )
