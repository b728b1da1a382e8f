"""Machine state of the gfx942/gfx950 emulator: registers, LDS, scratch, masks, decoded blocks.

All waves of a batch of workgroups are held in one set of arrays (registers x waves x 64 lanes), so
that one NumPy operation executes an instruction for every wave that stands at it. Which waves those
are is the scheduler's business (scheduler.py); what an instruction does is decided once, when its
basic block is first reached: `compile_instruction` returns a function without arguments that acts
on views of these arrays. The arrays therefore live as long as the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .assembly import AssemblyProgram, Instruction
from .control import TERMINATORS, compile_terminator
from .definitions import (
    ALL_LANES,
    BYTE_POISON,
    END,
    EXEC,
    FLAT_SCRATCH,
    RUN,
    SCALAR_POISON,
    VECTOR_POISON,
    EmuError,
    Unsupported,
    f16,
    f32,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
    unpack_mask,
)
from .memory import Memory
from .modes import FloatMode
from .operations import compile_instruction, instruction_class

BYTES_PER_DECODED_INSTRUCTION = 4000  # measured: closures and their cells


def polls_system_memory(instruction: Instruction) -> bool:
    """Loads with sc0 and sc1, atomics with sc1: system scope.

    Source: LLVM's "User Guide for AMDGPU Backend", memory model gfx942.
    """
    if not instruction.op.startswith(("global_", "flat_", "buffer_")):
        return False
    if "sc1" not in instruction.modifiers:
        return False
    return "_atomic_" in instruction.op or (
        "_load_" in instruction.op and "sc0" in instruction.modifiers
    )


def register_counts(assembly: AssemblyProgram) -> tuple[int, int]:
    """How many v and how many a registers the instructions name (at least v0)."""
    highest = {"v": 0, "a": -1}
    for instruction in assembly.instructions:
        for operand in instruction.operands:
            name = operand.lstrip("-|").rstrip("|")
            kind, number = name[:1], name[1:]
            if kind not in highest or not number:
                continue
            if number[0] == "[":
                highest[kind] = max(highest[kind], int(number[1:-1].split(":")[-1]))
            elif number[0].isdigit():
                highest[kind] = max(highest[kind], int(number.split(".")[0]))
    return highest["v"] + 1, highest["a"] + 1


class Machine:
    """Registers, LDS and scratch of `groups` workgroups of one kernel, and its decoded blocks."""

    def __init__(
        self,
        assembly: AssemblyProgram,
        groups: int,
        waves_per_group: int,
        memory: Memory,
        lds_size: int,
        arch: str,
        options: dict[str, Any],
    ) -> None:
        self.program, self.arch = assembly, arch
        self.memory, self.options = memory, options
        self.groups, self.waves_per_group = groups, waves_per_group
        self.waves = groups * waves_per_group
        self._make_registers()
        self._make_local_memory(lds_size)
        self._make_counters()
        self.mode = FloatMode.of_descriptor(assembly.descriptor)
        self.mode_at_start = self.mode.copy()
        self.clock = 0
        names = {instruction.op for instruction in assembly.instructions}
        self.may_flush = self.mode.flush_f32 or any(
            name.startswith(("s_setreg", "s_denorm_mode")) for name in names
        )
        self.has_direct_to_lds = any("_load_lds_" in name for name in names) or any(
            instruction.op.startswith("buffer_load") and "lds" in instruction.modifiers
            for instruction in assembly.instructions
        )
        # Direct-to-LDS loads whose LDS write is held back, and per wave how many vector memory
        # operations were issued (direct_to_lds.py).
        self.held_back: list[Any] = []
        self.vector_memory_issued = np.zeros(self.waves, i64)
        self.data_symbols: dict[str, Any] = {}
        self.thread_ids: dict[tuple[int, ...], Any] = {}
        self._find_blocks()
        self.nbytes = (
            self.vgprs.nbytes
            + self.lds.nbytes
            + self.scratch.nbytes
            + BYTES_PER_DECODED_INSTRUCTION * len(assembly.instructions)
        )

    def _make_registers(self) -> None:
        waves = self.waves
        vgprs, agprs = register_counts(self.program)
        self.vgpr_count = vgprs  # a registers are the rows behind
        # One row more: the high half of a 64-bit operand that ends with the last register.
        self.vgprs = np.empty((vgprs + agprs + 1, waves, 64), u32)
        self.vgprs_f32, self.vgprs_i32 = self.vgprs.view(f32), self.vgprs.view(i32)
        self.vgprs_u16 = self.vgprs.view(u16).reshape(len(self.vgprs), waves, 64, 2)
        self.vgprs_f16, self.vgprs_i16 = self.vgprs_u16.view(f16), self.vgprs_u16.view(i16)
        self.sgprs = np.zeros((waves, 128), u32)
        self.sgprs_f32 = self.sgprs.view(f32)
        self.sgprs_u64, self.sgprs_u8 = self.sgprs.view(u64), self.sgprs.view(u8)
        self.scc = np.zeros((waves, 1), bool)
        # exec_mask: EXEC of the running waves, False in the others; all_lanes: it is True all over
        self.exec_mask, self.all_lanes = np.ones((waves, 64), bool), True
        self.running, self.all_running = np.ones((waves, 1), bool), True
        self.running_count = waves
        self.pc, self.status = np.zeros(waves, i64), np.zeros(waves, i64)
        self.group_of_wave = np.repeat(np.arange(self.groups), self.waves_per_group)
        self.group_number = np.zeros(waves, i64)  # in the grid
        self.lane = np.arange(64, dtype=i64)

    def _make_local_memory(self, lds_size: int) -> None:
        self.lds_size = lds_size
        stride = (lds_size + 63) // 64 * 64 + 64
        self.lds = np.zeros(self.groups * stride, u8)
        self.lds_u32, self.lds_u16 = self.lds.view(u32), self.lds.view(u16)
        # 16 bytes travel as one complex number: NumPy copies its bits as they are
        self.lds_wide = {4: self.lds_u32, 8: self.lds.view(u64), 16: self.lds.view(np.complex128)}
        self.lds_base = (self.group_of_wave * stride).astype(i64)[:, None]
        self.lds_lane_base = np.repeat(self.lds_base[:, 0], 64)
        size = int(self.program.metadata.get(".private_segment_fixed_size", 0) or 0)
        self.scratch_size = (size + 15) // 16 * 16
        lanes = self.waves * 64
        self.scratch = np.zeros(lanes * self.scratch_size + 16, u8)
        base = np.arange(lanes, dtype=i64) * self.scratch_size
        self.scratch_base = base.reshape(self.waves, 64)

    def _make_counters(self) -> None:
        self.epoch = np.zeros(self.groups, i64)  # barriers passed per workgroup
        self.race_log: list[str] = []
        # by LDS byte: last writer, its epoch, last reader (-2: several), its epoch
        self.races: list[Any] | None = None
        if self.options.get("races"):
            self.races = [np.full(len(self.lds), -1, i64) for _ in range(4)]
        self.bytes = {
            "global_load": 0,
            "global_store": 0,
            "global_atomic": 0,
            "smem_load": 0,
            "lds_load": 0,
            "lds_store": 0,
            "global_to_lds": 0,
            "scratch": 0,
        }
        self.sectors = {"load": 0, "store": 0}
        self.fetched: list[Any] = []  # segments by XCD, see accounting.fetched_segments
        self.lds_cycles = [0, 0]  # estimated, without conflicts
        self.steps = 0  # basic blocks executed

    def reset(self, memory: Memory, options: dict[str, Any]) -> None:
        """Make ready for another launch of the same kernel with the same number of waves."""
        self.memory, self.options = memory, options
        for name, data in self.data_symbols.items():
            memory.add(data.ctypes.data, len(data), f".rodata {name}", data)
        for counter in (self.bytes, self.sectors, self.visits):
            for key in counter:
                counter[key] = 0  # type: ignore[index]
        self.lds_cycles[:] = [0, 0]
        self.steps = self.clock = 0
        self.race_log.clear()
        self.fetched.clear()
        self.mode.set(self.mode_at_start)

    # ---- addresses -----------------------------------------------------------------------------
    def code_address(self, index: int) -> int:
        """A made-up address of an instruction: only differences and returns matter."""
        return 0x7F00_0000_0000 + 4 * index

    def symbol_address(self, name: str) -> int:
        """The address of a label or of initialised data, which becomes readable memory."""
        if name in self.program.labels:
            return self.code_address(self.program.labels[name])
        if any(symbol == name for symbol, *_ in self.program.relocations):
            raise Unsupported(f"data {name} that holds addresses of symbols")
        if name not in self.data_symbols:
            data = np.frombuffer(self.program.data[name] + b"\0" * 64, dtype=u8).copy()
            self.data_symbols[name] = data
            self.memory.add(data.ctypes.data, len(data), f".rodata {name}", data)
        return self.data_symbols[name].ctypes.data

    # ---- program -> basic blocks ----------------------------------------------------------------
    def _find_blocks(self) -> None:
        instructions = self.program.instructions
        starts = {0, *self.program.labels.values()}
        starts |= {i + 1 for i, ins in enumerate(instructions) if ins.op in TERMINATORS}
        ordered = sorted(start for start in starts if start <= len(instructions))
        ends = [*ordered[1:], len(instructions)]
        self.block_end = dict(zip(ordered, ends, strict=True))
        # decoded on first use: first instruction -> (functions, function that gives the next pc)
        self.blocks: dict[int, tuple[tuple[Callable[[], Any], ...], Callable[[], int]]] = {}
        self.block_classes: dict[int, dict[str, int]] = {}
        self.instruction_of: dict[int, Instruction] = {}  # by id of the function
        self.visits: dict[int, int] = {}  # waves that executed the block
        self.polls: set[int] = set()  # blocks that poll memory at system scope

    def compile_block(self, pc: int) -> tuple[tuple[Callable[[], Any], ...], Callable[[], int]]:
        """Decode the basic block at `pc`; called when it is reached for the first time."""
        if pc >= len(self.program.instructions) or pc not in self.block_end:
            raise EmuError(
                f"kernel {self.program.kernel}: the program counter ran off the code "
                f"(instruction {pc})"
            )
        end = self.block_end[pc]
        functions: list[Callable[[], Any]] = []
        terminator: Callable[[], int] = lambda: end  # noqa: E731
        classes: dict[str, int] = {}
        for index in range(pc, end):
            instruction = self.program.instructions[index]
            kind = instruction_class(instruction.op)
            classes[kind] = classes.get(kind, 0) + 1
            try:
                if instruction.op in TERMINATORS:
                    terminator = compile_terminator(self, instruction, index)
                    self.instruction_of[id(terminator)] = instruction
                    break
                function = compile_instruction(self, instruction, index)
            except EmuError as error:
                raise self.error_at(error, instruction) from None
            except (ValueError, KeyError, IndexError, TypeError, AssertionError) as error:
                failure = Unsupported(f"cannot decode ({type(error).__name__}: {error})")
                raise self.error_at(failure, instruction) from error
            if function is not None:
                functions.append(function)
                self.instruction_of[id(function)] = instruction
        block = self.blocks[pc] = (tuple(functions), terminator)
        self.block_classes[pc] = classes
        if any(polls_system_memory(ins) for ins in self.program.instructions[pc:end]):
            self.polls.add(pc)
        self.visits[pc] = 0
        return block

    # ---- masks ---------------------------------------------------------------------------------
    def update_exec(self) -> None:
        """Follow a write to EXEC, or a change of the running waves."""
        if self.all_running and (self.sgprs_u64[:, EXEC // 2] == ALL_LANES).all():
            if not self.all_lanes:
                self.exec_mask[...] = True
                self.all_lanes = True
            return
        mask = unpack_mask(self.sgprs_u8, EXEC)
        if not self.all_running:
            mask = mask & self.running
        self.exec_mask[...] = mask
        self.all_lanes = False

    def set_running(self, waves: Any) -> None:
        """Choose the waves (bool per wave) that the next instructions act on."""
        self.running[:, 0] = waves
        self.running_count = int(waves.sum())
        self.all_running = self.running_count == self.waves
        self.update_exec()

    # ---- a batch of workgroups -----------------------------------------------------------------
    def start(
        self,
        workgroups: Any,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        linear: bool,
        sgprs: list[int],
        id_axes: list[int],
        poison: bool,
    ) -> None:
        """Put the waves of these workgroups at their beginning, everything else poisoned.

        workgroups: their linear numbers in the grid. block: threads of a workgroup by axis;
        linear: v0 is the plain thread number. sgprs: the user SGPRs; the workgroup ids of id_axes
        follow them (LLVM's "User Guide for AMDGPU Backend", initial kernel execution state).
        """
        count, per_group = len(workgroups), self.waves_per_group
        if poison:
            self.vgprs.fill(VECTOR_POISON)
            self.lds.fill(BYTE_POISON)
            self.scratch.fill(BYTE_POISON)
        self.sgprs.fill(SCALAR_POISON if poison else 0)
        self.scc.fill(False)
        self.epoch.fill(0)
        for notes in self.races or ():
            notes.fill(-1)
        numbers = np.zeros(self.groups, i64)
        numbers[:count] = workgroups
        self.sgprs[:, : len(sgprs)] = sgprs
        for column, axis in enumerate(id_axes, len(sgprs)):
            below = (1, grid[0], grid[0] * grid[1])[axis]
            self.sgprs[:, column] = np.repeat(numbers // below % grid[axis], per_group)
        self.sgprs[:, FLAT_SCRATCH : FLAT_SCRATCH + 2] = 0
        threads = block[0] * block[1] * block[2]
        self.sgprs_u64[:, EXEC // 2] = ALL_LANES
        if threads % 64:
            self.sgprs_u64[per_group - 1 :: per_group, EXEC // 2] = (1 << (threads % 64)) - 1
        if block not in self.thread_ids:  # packed into v0 since gfx90a
            thread = np.arange(64)[None] + 64 * (np.arange(self.waves) % per_group)[:, None]
            x, y, z = (
                thread % block[0],
                thread // block[0] % block[1],
                thread // (block[0] * block[1]),
            )
            ids = thread if linear else x | y << 10 | z << 20
            self.thread_ids[block] = ids.astype(u32)
        self.vgprs[0] = self.thread_ids[block]
        self.group_number[:] = np.repeat(numbers, per_group)
        self.held_back.clear()
        self.vector_memory_issued.fill(0)
        self.status[: count * per_group] = RUN
        self.status[count * per_group :] = END
        self.set_running(self.status == RUN)

    # ---- reports -------------------------------------------------------------------------------
    def error_at(self, error: EmuError, instruction: Instruction | None) -> EmuError:
        """The same error with the kernel's name, the instruction and what its base points to."""
        message = f"kernel {self.program.kernel}: {error}"
        if instruction is not None:
            message += self.memory.note_of_base(self, instruction)
            message += f"\n  at: {instruction.where()}"
        return type(error)(message)

    def lines(self, count: int = 12) -> dict[str, int]:
        """The source lines with the most executed wave instructions."""
        counts: dict[str, int] = {}
        for pc, visits in self.visits.items():
            for index in range(pc, self.block_end[pc]) if visits else ():
                location = self.program.instructions[index].location
                counts[location] = counts.get(location, 0) + visits
        return dict(sorted(counts.items(), key=lambda item: -item[1])[:count])

    def matrix_instructions(self) -> dict[str, int]:
        """Executed matrix instructions of all waves, by name."""
        counts: dict[str, int] = {}
        for pc, visits in self.visits.items():
            for index in range(pc, self.block_end[pc]) if visits else ():
                name = self.program.instructions[index].op
                if name.startswith(("v_mfma", "v_smfmac")):
                    counts[name] = counts.get(name, 0) + visits
        return counts

    def stats(self) -> dict[str, int]:
        """Executed wave instructions by class."""
        counts: dict[str, int] = {}
        for pc, visits in self.visits.items():
            for kind, times in self.block_classes[pc].items():
                counts[kind] = counts.get(kind, 0) + visits * times
        return counts
