"""The wave scheduler: which waves run next, waiting, and loops that do not end.

Waves standing at the same program point run together; waves that are elsewhere are masked off (SIMT
re-convergence: the group with the lowest program counter goes first). s_barrier parks a wave until
every live wave of its workgroup has arrived. A loop that polls memory at system scope gives the CPU
away while it waits. This is one interleaving of many: what another one would do is not explored.
"""

from __future__ import annotations

import time

import numpy as np

from .control import release
from .definitions import BARRIER, RUN, EmuError, EndlessLoop, WaitTimeout, i64
from .machine import Machine, polls_system_memory

MAX_BLOCKS = 10_000_000
"""Basic blocks after which a kernel counts as endless, unless the launch says otherwise: about a
minute of the shortest loop there is. Kernels that poll memory have wait_timeout instead."""

TURN_AFTER = 4096  # blocks that waves elsewhere may run before those that wait get a turn
TURN_LENGTH = 256  # blocks
POLL_PERIOD = 24  # blocks within which a polling block comes again in the same loop
PATIENCE = 8  # polls before the waiting is taken seriously
LOOP_WINDOW = 4096  # blocks watched to find the loop that does not end


class Scheduler:
    """Runs the waves of one batch of workgroups to their end."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        limit = machine.options.get("max_blocks")
        self.limit = MAX_BLOCKS if limit is None else int(limit)
        self.wait_timeout = machine.options.get("wait_timeout", 0)
        # a kernel that may wait for another process is stopped by its time, not by its blocks
        self.polls_are_free = limit is None and bool(self.wait_timeout)
        self.poll_step, self.poll_count, self.poll_since = -100, 0, 0.0

    def run(self, entry: int) -> None:
        """Run all waves from instruction `entry` until they have ended."""
        machine = self.machine
        machine.pc.fill(entry)
        blocks, visits, polls = machine.blocks, machine.visits, machine.polls
        last_run = np.zeros(machine.waves, i64)
        step, limit = 0, self.limit
        previous, force, left = None, None, 0
        watched: dict[int, int] | None = None  # the visits when the limit was passed
        while True:
            run = machine.status == RUN
            if not run.any():
                if not (machine.status == BARRIER).any():
                    break
                if release(machine):
                    continue
                raise self.deadlock()
            counters = machine.pc[run]
            lowest = int(counters.min())
            together = lowest == int(counters.max())
            if not together:  # fairness: a spinning group must not starve the others
                if left <= 0 and (
                    self.poll_count > PATIENCE or step - int(last_run[run].min()) > TURN_AFTER
                ):
                    force, left = last_run == last_run[run].min(), TURN_LENGTH
                if left > 0:
                    left -= 1
                    forced = run & force
                    if forced.any():
                        lowest = int(machine.pc[forced].min())
                    else:
                        left = 0
            active = run & (machine.pc == lowest)
            if previous is None or not np.array_equal(active, previous):
                machine.set_running(active)
                previous = active
            last_run[active] = step
            pc, count = lowest, machine.running_count
            while True:
                functions, terminator = blocks.get(pc) or machine.compile_block(pc)
                visits[pc] += count
                step += 1
                if pc in polls:
                    self.wait(pc, step, together)
                function = None
                try:
                    for function in functions:
                        function()
                    function = terminator
                    pc = terminator()
                except EmuError as error:
                    instruction = machine.instruction_of.get(id(function))
                    raise machine.error_at(error, instruction) from None
                except (LookupError, ValueError, TypeError, ArithmeticError) as error:
                    instruction = machine.instruction_of.get(id(function))
                    failure = EmuError(f"{type(error).__name__}: {error}")
                    raise machine.error_at(failure, instruction) from error
                if pc < 0 or not together:
                    break
                if limit and step > limit:
                    break
            if pc >= 0:
                machine.pc[active] = pc
            if limit and step > limit and not self.is_polling(step):
                if watched is not None:
                    raise self.endless(watched)
                watched, limit = dict(visits), step + LOOP_WINDOW
        machine.steps += step

    def is_polling(self, step: int) -> bool:
        """Whether the waves wait for memory under wait_timeout, and may go on doing so."""
        return self.polls_are_free and step - self.poll_step <= POLL_PERIOD

    def wait(self, pc: int, step: int, alone: bool) -> None:
        """A block that polls memory at system scope was reached: give the CPU away, or give up."""
        if step - self.poll_step > POLL_PERIOD:  # not the next round of the same loop
            self.poll_count = 0
        self.poll_step = step
        self.poll_count += 1
        if self.poll_count == 1:
            self.poll_since = time.monotonic()
        elif self.poll_count > PATIENCE:
            if alone:  # otherwise run() lets the waves at other places run
                time.sleep(min(20e-6 * 2 ** (self.poll_count >> 6), 1e-3))
            if self.wait_timeout and time.monotonic() - self.poll_since > self.wait_timeout:
                machine = self.machine
                block = machine.program.instructions[pc : machine.block_end[pc]]
                poll = next(
                    instruction for instruction in block if polls_system_memory(instruction)
                )
                raise WaitTimeout(
                    f"kernel {machine.program.kernel} has polled memory for "
                    f"{self.wait_timeout:g} s without an answer: is the process it waits for "
                    f"alive?\n  at: {poll.where()}"
                )

    def endless(self, before: dict[int, int]) -> EndlessLoop:
        """The error for a kernel that does not end; `before`: visits at the start of the watch."""
        machine = self.machine
        seen = {pc: n - before.get(pc, 0) for pc, n in machine.visits.items()}
        seen = {pc: n for pc, n in seen.items() if n > 0}
        again = [pc for pc, n in seen.items() if n > machine.running_count] or list(seen)
        first, last = min(again), max(again)
        instructions = machine.program.instructions
        label, behind = machine.program.label_before(first)
        begin, end = instructions[first], instructions[machine.block_end[last] - 1]
        waves = int((machine.status == RUN).sum())
        source = f" ({begin.location})" if begin.location else ""
        return EndlessLoop(
            f"kernel {machine.program.kernel} does not end: more than {self.limit} basic blocks "
            f"executed. It is in the loop at {label}{f' + {behind}' if behind else ''}, asm lines "
            f"{begin.line} to {end.line}{source}; {waves} waves are left, and waves have begun the "
            f"loop {machine.visits[first]} times. If it only takes long, raise max_blocks."
        )

    def deadlock(self) -> EmuError:
        """The error for waves that wait at barriers for waves that will not come."""
        machine = self.machine
        places: dict[str, list[int]] = {}
        for wave in np.flatnonzero(machine.status == BARRIER):
            barrier = machine.program.instructions[int(machine.pc[wave]) - 1]
            group = int(machine.group_number[wave])
            at = f"workgroup {group}, asm line {barrier.line}"
            places.setdefault(at, []).append(int(wave) % machine.waves_per_group)
        waiting = "; ".join(f"{at}: waves {waves}" for at, waves in list(places.items())[:4])
        return EmuError(
            f"kernel {machine.program.kernel}: deadlock at s_barrier: waves wait for a wave that "
            f"has not arrived ({waiting})"
        )
