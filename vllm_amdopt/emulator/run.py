"""Run one compiled AMDGPU kernel (gfx942, gfx950) on a CPU, instruction by instruction. NumPy only.

`run(assembly, kernel_name, grid, num_warps, args, arch, shared)` takes the assembly text or a
Triton CompiledKernel. Launching through Triton's own `kernel[grid](...)` is in launch.py.
"""

from __future__ import annotations

import collections
import struct
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from .accounting import fetched_segments
from .assembly import parse
from .definitions import HOSTCALL, MAX_LDS, SCALAR_POISON, EmuError, Unsupported, u8, u32
from .machine import Machine
from .memory import Memory
from .scheduler import Scheduler

# Decoded kernels and the machines (registers, LDS, compiled blocks) that ran them, most recently
# used last. A server runs some 30 kernel variants at several batch sizes; decoding again costs 5 to
# 50 ms each.
MAX_PROGRAMS, MAX_MACHINES, MAX_MACHINE_BYTES = 256, 256, 512 << 20
_programs: collections.OrderedDict[Any, Program] = collections.OrderedDict()
_machines: collections.OrderedDict[Any, Machine] = collections.OrderedDict()

FLOAT_FORMATS = {2: "<e", 4: "<f", 8: "<d"}
EXTRA_KERNARG_BYTES = 320  # behind the arguments: loads that the compiler widened stay inside
MAX_PROLOGUE = 40  # instructions within which the prologue for older firmware ends


class Program:
    """One kernel's parsed assembly with everything about a launch that does not change.

    visible, hidden: (offset, size[, kind]) of the arguments. preload: (dwords, first dword) of the
    arguments that arrive in SGPRs. workgroup_ids: the axes whose id the kernel asks for.
    """

    def __init__(self, text: str, kernel_name: str | None) -> None:
        self.assembly = parse(text, kernel_name)
        arguments = self.assembly.args
        kinds = [str(argument.get(".value_kind", "")) for argument in arguments]
        places = [(argument[".offset"], argument[".size"]) for argument in arguments]
        self.visible = [
            place
            for place, kind in zip(places, kinds, strict=True)
            if not kind.startswith("hidden")
        ]
        self.hidden = [
            (*place, kind)
            for place, kind in zip(places, kinds, strict=True)
            if kind.startswith("hidden")
        ]
        metadata = self.assembly.metadata
        declared = int(metadata.get(".kernarg_segment_size", 0) or 0)
        used = max([declared, *(offset + size for offset, size in places)])
        self.kernarg_bytes = used + EXTRA_KERNARG_BYTES
        self.static_lds = int(metadata.get(".group_segment_fixed_size", 0) or 0)
        self.preload = (
            self.flag("user_sgpr_kernarg_preload_length"),
            self.flag("user_sgpr_kernarg_preload_offset"),
        )
        self.workgroup_ids = [
            axis for axis in range(3) if self.flag("system_sgpr_workgroup_id_" + "xyz"[axis])
        ]
        self.entry = self._entry()

    def flag(self, name: str) -> int:
        """A number of the kernel descriptor, 0 when it is not given."""
        return int(self.assembly.descriptor.get(name, 0) or 0)

    def _entry(self) -> int:
        """The first instruction. Hardware that preloads enters behind the prologue which loads the
        same arguments for older firmware, and which ends in a branch."""
        labels, instructions = self.assembly.labels, self.assembly.instructions
        start = labels.get(self.assembly.kernel, next(iter(labels.values())))
        if self.preload[0]:
            for instruction in instructions[start : start + MAX_PROLOGUE]:
                if instruction.op == "s_branch":
                    return labels[instruction.operands[0]]
        return start

    def user_sgprs(self, kernarg: Any, packet: Any, scratch_size: int) -> list[int]:
        """The scalar registers a wave starts with, up to the workgroup ids.

        Source: LLVM's "User Guide for AMDGPU Backend", initial kernel execution state.
        """
        values: list[int] = []
        for name, dwords, value in (
            ("user_sgpr_private_segment_buffer", 4, 0),
            ("user_sgpr_dispatch_ptr", 2, packet.ctypes.data),
            ("user_sgpr_queue_ptr", 2, 0),
            ("user_sgpr_kernarg_segment_ptr", 2, kernarg.ctypes.data),
            ("user_sgpr_dispatch_id", 2, 0),
            ("user_sgpr_flat_scratch_init", 2, 0),
            ("user_sgpr_private_segment_size", 1, scratch_size),
        ):
            if self.flag(name):
                values += [(value >> 32 * i) & 0xFFFFFFFF for i in range(dwords)]
        length, first = self.preload
        if length:
            values += kernarg[4 * first : 4 * (first + length)].view(u32).tolist()
        return values + [SCALAR_POISON] * (self.flag("user_sgpr_count") - len(values))


def _buffer(value: Any) -> tuple[int, int, int] | None:
    """A tensor's or array's (pointer, base and bytes of its storage); None for a number."""
    if hasattr(value, "untyped_storage"):
        storage = value.untyped_storage()
        return value.data_ptr(), storage.data_ptr(), storage.nbytes()
    if isinstance(value, np.ndarray):
        base = value.base if isinstance(value.base, np.ndarray) else value
        return value.ctypes.data, base.ctypes.data, base.nbytes
    return None


def _packed(value: Any, size: int) -> bytes:
    """A number as a kernel argument of `size` bytes."""
    if isinstance(value, float) or (hasattr(value, "dtype") and "float" in str(value.dtype)):
        return struct.pack(FLOAT_FORMATS[size], value)
    return (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _program(text: str, kernel_name: str | None) -> Program:
    key = (text, kernel_name)
    program = _programs.get(key)
    if program is None:
        program = _programs[key] = Program(text, kernel_name)
        while len(_programs) > MAX_PROGRAMS:
            _programs.popitem(last=False)
    else:
        _programs.move_to_end(key)
    return program


def _keep(key: Any, machine: Machine) -> None:
    """Keep a machine for the next launch; the least recently used ones go when there are many."""
    _machines[key] = machine
    total = sum(m.nbytes for m in _machines.values()) if len(_machines) > 8 else 0
    while len(_machines) > 1 and (len(_machines) > MAX_MACHINES or total > MAX_MACHINE_BYTES):
        total -= _machines.popitem(last=False)[1].nbytes


def _hidden_arguments(grid: tuple[int, ...], block: tuple[int, ...]) -> dict[str, int]:
    """By value kind; those that are not here are 0."""
    return {
        **{f"hidden_block_count_{axis}": grid["xyz".index(axis)] for axis in "xyz"},
        **{f"hidden_group_size_{axis}": block["xyz".index(axis)] for axis in "xyz"},
        "hidden_grid_dims": 3,
        "hidden_hostcall_buffer": HOSTCALL,
    }


def _kernarg(
    program: Program,
    memory: Memory,
    args: Sequence[Any],
    names: Sequence[str],
    grid: tuple[int, ...],
    block: tuple[int, ...],
    scratch_bytes: int,
) -> Any:
    """The kernel's argument segment (uint8); the buffers among the arguments become memory."""
    segment = bytearray(program.kernarg_bytes)
    if len(args) > len(program.visible):
        raise EmuError(f"{len(args)} arguments for a kernel with {len(program.visible)}")
    for number, ((offset, size), value) in enumerate(zip(program.visible, args, strict=False)):
        buffer = _buffer(value)
        if buffer is not None:
            name = f"arg{number}" + (f" ({names[number]})" if number < len(names) else "")
            memory.add(buffer[1], buffer[2], name, value)
            value = buffer[0]
        segment[offset : offset + size] = _packed(0 if value is None else value, size)
    if program.hidden:
        hidden = _hidden_arguments(grid, block)
        for offset, size, kind in program.hidden:
            if kind in hidden:
                segment[offset : offset + size] = _packed(hidden[kind], size)
    # Triton's global scratch: the second last visible argument; the last one is the profiler's
    if scratch_bytes and len(args) <= len(program.visible) - 2:
        scratch = np.zeros(scratch_bytes * grid[0] * grid[1] * grid[2], u8)
        memory.add(scratch.ctypes.data, scratch.nbytes, "global scratch", scratch)
        offset = program.visible[-2][0]
        segment[offset : offset + 8] = struct.pack("<Q", scratch.ctypes.data)
    kernarg = np.frombuffer(segment, u8)
    memory.add(kernarg.ctypes.data, kernarg.nbytes, "kernarg", kernarg)
    return kernarg


def _dispatch_packet(memory: Memory, grid: tuple[int, ...], block: tuple[int, ...]) -> Any:
    """The AQL packet, for kernels that read it."""
    threads = [g * b for g, b in zip(grid, block, strict=True)]
    packet = np.frombuffer(bytearray(struct.pack("<4xHHH2xIII40x", *block, *threads)), u8)
    memory.add(packet.ctypes.data, len(packet), "dispatch packet", packet)
    return packet


def run(
    asm: Any,
    kernel_name: str | None = None,
    grid: int | Sequence[int] = (1,),
    num_warps: int = 4,
    args: Sequence[Any] = (),
    arch: str | None = None,
    shared: int | None = None,
    *,
    mem: Sequence[Any] = (),
    block: tuple[int, int, int] | None = None,
    stats: str = "basic",
    batch_waves: int = 64,
    poison: bool = True,
    max_blocks: int | None = None,
    lazy_dma: bool = True,
    order: Any = None,
    scratch: int = 0,
    coresident: bool = False,
    races: bool = False,
    wait_timeout: float = 0.0,
    arg_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Execute one launch and return a dict of dynamic counts.

    args: torch tensors or numpy arrays (pointers), ints, floats, in the order of the kernel's
    arguments (Triton's constexprs left out); trailing hidden arguments and Triton's scratch
    pointers default to 0. arg_names: their names, for faults.
    mem: further tensors the kernel may reach through pointers stored in memory.
    coresident: keep all workgroups in flight (kernels whose workgroups wait for each other);
    otherwise batch_waves waves run at a time, in the given order of workgroups.
    max_blocks: basic blocks per batch after which the kernel counts as endless and EndlessLoop
    names the loop; None: scheduler.MAX_BLOCKS; 0: never.
    wait_timeout: seconds after which a loop that polls memory at system scope raises WaitTimeout
    (0: never).
    Access to memory that no buffer covers raises MemFault, an unknown instruction, modifier or
    mode Unsupported.
    """
    metadata = None
    if hasattr(asm, "asm"):
        metadata = asm.metadata
        kernel_name = kernel_name or metadata.name
        shared = metadata.shared if shared is None else shared
        arch = arch or metadata.target.arch
        num_warps = metadata.num_warps
        asm = asm.asm["amdgcn"]
    program = _program(asm, kernel_name)
    assembly = program.assembly
    arch = arch or assembly.arch or "gfx942"
    if arch not in MAX_LDS or assembly.arch not in ("", arch):
        raise Unsupported(f"architecture {assembly.arch or arch} (only gfx942 and gfx950)")
    sizes = (grid,) if isinstance(grid, int) else tuple(int(size) for size in grid)
    whole_grid = sizes + (1,) * (3 - len(sizes))
    threads = block or (64 * num_warps, 1, 1)
    memory = Memory()
    for number, tensor in enumerate(mem):
        buffer = _buffer(tensor)
        if buffer is None:
            raise EmuError(f"mem[{number}] is neither a tensor nor an array")
        memory.add(buffer[1], buffer[2], f"mem[{number}]", tensor)
    scratch_bytes = int(scratch or getattr(metadata, "global_scratch_size", 0) or 0)
    kernarg = _kernarg(program, memory, args, arg_names, whole_grid, threads, scratch_bytes)
    packet = _dispatch_packet(memory, whole_grid, threads)

    workgroups = whole_grid[0] * whole_grid[1] * whole_grid[2]
    waves = num_warps if block is None else (threads[0] * threads[1] * threads[2] + 63) // 64
    batch = max(1, min(workgroups, workgroups if coresident else batch_waves // waves))
    lds = max(int(shared or 0), program.static_lds)
    if lds > MAX_LDS[arch]:
        raise EmuError(
            f"kernel {assembly.kernel} asks for {lds} bytes of LDS, {arch} has {MAX_LDS[arch]}"
        )
    options = {
        "stats": stats,
        "max_blocks": max_blocks,
        "lazy_dma": lazy_dma,
        "races": races,
        "wait_timeout": wait_timeout,
    }
    key = (program, batch, waves, lds, arch, stats, races)
    machine = _machines.pop(key, None)
    if machine is None:
        machine = Machine(assembly, batch, waves, memory, lds, arch, options)
    else:
        machine.reset(memory, options)
    sgprs = program.user_sgprs(kernarg, packet, machine.scratch_size)
    numbers = np.arange(workgroups) if order is None else np.asarray(order)
    start = time.perf_counter()
    with np.errstate(all="ignore"):
        for first in range(0, workgroups, batch):
            machine.start(
                numbers[first : first + batch],
                whole_grid,
                threads,
                block is None,
                sgprs,
                program.workgroup_ids,
                poison,
            )
            Scheduler(machine).run(program.entry)
            machine.held_back.clear()
    seconds = time.perf_counter() - start
    counts = _counts(machine, whole_grid, workgroups, seconds)
    machine.memory = Memory()  # a kept machine must not keep the caller's buffers alive
    _keep(key, machine)
    return counts


def _counts(
    machine: Machine, grid: tuple[int, ...], workgroups: int, seconds: float
) -> dict[str, Any]:
    """What the launch did."""
    by_class = machine.stats()
    total = sum(by_class.values())
    counts: dict[str, Any] = {
        "kernel": machine.program.kernel,
        "arch": machine.arch,
        "grid": grid,
        "num_warps": machine.waves_per_group,
        "workgroups": workgroups,
        "seconds": seconds,
        "wave_instrs": total,
        "per_s": total / max(seconds, 1e-9),
        "instrs": dict(sorted(by_class.items())),
        "bytes": dict(machine.bytes),
        "blocks": machine.steps,
        # By the address where the buffer starts.
        "loaded": {region.base: region.loaded for region in machine.memory.regions},
    }
    if machine.options["stats"] == "lines":  # all, and where the kernel begins: for whole runs
        instructions = machine.program.instructions
        counts["lines"] = machine.lines(len(instructions))
        counts["source"] = next((each.location for each in instructions if each.location), "")
    if machine.options["stats"] == "full":
        counts["lines"] = machine.lines()
        counts["matrix"] = machine.matrix_instructions()
        counts["segments64B"] = dict(machine.sectors)
        counts["fetched64B"] = fetched_segments(machine)
        estimated, conflict_free = machine.lds_cycles
        counts["lds_cycles"] = {"estimated": estimated, "conflict_free": conflict_free}
    if machine.options["races"]:
        counts["lds_races"] = list(machine.race_log)
    return counts
