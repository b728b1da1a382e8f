"""Run one compiled AMDGPU kernel (gfx942, gfx950) on a CPU, instruction by instruction. NumPy only.

`run(assembly, kernel_name, grid, num_warps, args, arch, shared)` takes the assembly text or a Triton
CompiledKernel. Launching through Triton's own `kernel[grid](...)` is in launch.py.
"""

from __future__ import annotations

import collections
import struct
import time

import numpy as np

from .assembly import parse
from .definitions import HOSTCALL, EmuError, Unsupported, u8, u32
from .machine import Machine
from .memory import Memory

# Decoded kernels and the machines (registers, LDS, compiled blocks) that ran them, most recently used last.
# A server runs some 30 kernel variants at several batch sizes; decoding again costs 5-50 ms each.
MAX_PROGRAMS, MAX_MACHINES, MAX_MACHINE_BYTES = 256, 256, 512 << 20
_programs: collections.OrderedDict = collections.OrderedDict()
_machines: collections.OrderedDict = collections.OrderedDict()
_PACK = {(2, "f"): "<e", (4, "f"): "<f", (8, "f"): "<d"}


class Program:
    """One kernel's parsed assembly with everything about its launch that does not change between launches."""

    def __init__(self, text, kernel_name):
        prog = self.prog = parse(text, kernel_name)
        kd = prog.kd
        self.visible = [
            (a[".offset"], a[".size"])
            for a in prog.args
            if not str(a.get(".value_kind", "")).startswith("hidden")
        ]
        self.hidden = [
            (a[".offset"], a[".size"], a[".value_kind"])
            for a in prog.args
            if str(a.get(".value_kind", "")).startswith("hidden")
        ]
        self.kernarg_bytes = 320 + max(
            [int(prog.meta.get(".kernarg_segment_size", 0) or 0)]
            + [a[".offset"] + a[".size"] for a in prog.args]
        )
        self.static_lds = int(prog.meta.get(".group_segment_fixed_size", 0) or 0)
        self.flag = lambda k: int(kd.get(k, 0) or 0)
        g = self.flag
        self.preload = g("user_sgpr_kernarg_preload_length"), g("user_sgpr_kernarg_preload_offset")
        self.workgroup_ids = [
            axis for axis in range(3) if g("system_sgpr_workgroup_id_" + "xyz"[axis])
        ]
        name = prog.kernel if prog.kernel in prog.labels else next(iter(prog.labels))
        self.entry = prog.labels[name]
        if self.preload[0]:  # hardware that preloads enters behind the compatibility prologue
            for j in range(self.entry, min(self.entry + 40, len(prog.ins))):
                if prog.ins[j].op == "s_branch":
                    self.entry = prog.labels[prog.ins[j].ops[0]]
                    break

    def user_sgprs(self, kernarg, packet, scratch_size):
        """the scalar registers a wave starts with, up to the workgroup ids"""
        g, out = self.flag, []
        for name, n, v in (
            ("user_sgpr_private_segment_buffer", 4, 0),
            ("user_sgpr_dispatch_ptr", 2, packet.ctypes.data),
            ("user_sgpr_queue_ptr", 2, 0),
            ("user_sgpr_kernarg_segment_ptr", 2, kernarg.ctypes.data),
            ("user_sgpr_dispatch_id", 2, 0),
            ("user_sgpr_flat_scratch_init", 2, 0),
            ("user_sgpr_private_segment_size", 1, scratch_size),
        ):
            if g(name):
                out += [(v >> 32 * i) & 0xFFFFFFFF for i in range(n)]
        length, offset = self.preload
        if length:
            out += kernarg[4 * offset : 4 * (offset + length)].view(u32).tolist()
        return out + [0x7FC0BEEF] * (g("user_sgpr_count") - len(out))


def _buffer(v):
    """tensor / array -> (pointer, storage base, storage bytes)"""
    if hasattr(v, "untyped_storage"):
        st = v.untyped_storage()
        return v.data_ptr(), st.data_ptr(), st.nbytes()
    if isinstance(v, np.ndarray):
        b = v if v.base is None or not isinstance(v.base, np.ndarray) else v.base
        return v.ctypes.data, b.ctypes.data, b.nbytes
    return None


def _pack(v, size):
    if isinstance(v, float) or (hasattr(v, "dtype") and "float" in str(v.dtype)):
        return struct.pack(_PACK[size, "f"], v)
    return (int(v) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _program(text, kernel_name):
    key = (text, kernel_name)
    program = _programs.get(key)
    if program is None:
        program = _programs[key] = Program(text, kernel_name)
        while len(_programs) > MAX_PROGRAMS:
            _programs.popitem(last=False)
    else:
        _programs.move_to_end(key)
    return program


def _keep(key, machine):
    """keep the machine for the next launch; the least recently used ones go when there are too many"""
    _machines[key] = machine
    total = sum(m.nbytes for m in _machines.values()) if len(_machines) > 8 else 0
    while len(_machines) > 1 and (len(_machines) > MAX_MACHINES or total > MAX_MACHINE_BYTES):
        total -= _machines.popitem(last=False)[1].nbytes


def run(
    asm,
    kernel_name=None,
    grid=(1,),
    num_warps=4,
    args=(),
    arch=None,
    shared=None,
    *,
    mem=(),
    block=None,
    stats="basic",
    batch_waves=64,
    poison=True,
    max_blocks=0,
    lazy_dma=True,
    order=None,
    scratch=0,
    coresident=False,
    races=False,
    wait_timeout=0.0,
):
    """Execute one launch and return a dict of dynamic counts.

    args: torch tensors / numpy arrays (pointers), ints, floats, in kernel argument order (Triton's constexprs
    left out); trailing hidden arguments and Triton's scratch pointers default to 0.
    mem: further tensors the kernel may reach through pointers stored in memory.
    coresident: keep all workgroups in flight (kernels whose workgroups wait for each other); otherwise
    batch_waves waves run at a time, in the given order of workgroups.
    wait_timeout: seconds after which a loop that polls memory at system scope raises WaitTimeout (0: never).
    Access to memory that no buffer covers raises MemFault.
    """
    meta = None
    if hasattr(asm, "asm"):
        meta = asm.metadata
        kernel_name = kernel_name or meta.name
        shared = meta.shared if shared is None else shared
        arch = arch or meta.target.arch
        num_warps = meta.num_warps
        asm = asm.asm["amdgcn"]
    program = _program(asm, kernel_name)
    prog = program.prog
    arch = arch or prog.arch or "gfx942"
    if arch not in ("gfx942", "gfx950") or prog.arch not in ("", arch):
        raise Unsupported(f"architecture {prog.arch or arch} (only gfx942 and gfx950)")
    if isinstance(grid, int):
        grid = (grid,)
    grid = tuple(int(g) for g in grid) + (1,) * (3 - len(grid))
    memory = Memory()
    for n, t in enumerate(mem):
        p = _buffer(t)
        memory.add(p[1], p[2], f"mem[{n}]", t)
    # ---- kernel arguments
    kernarg = bytearray(program.kernarg_bytes)
    visible = program.visible
    if len(args) > len(visible):
        raise EmuError(f"{len(args)} arguments for a kernel with {len(visible)}")
    for n, ((offset, size), v) in enumerate(zip(visible, args, strict=False)):
        b = _buffer(v)
        if b is not None:
            memory.add(b[1], b[2], f"arg{n}", v)
            v = b[0]
        elif v is None:
            v = 0
        kernarg[offset : offset + size] = _pack(v, size)
    bd = block or (64 * num_warps, 1, 1)
    if program.hidden:
        values = {
            "hidden_block_count_x": grid[0],
            "hidden_block_count_y": grid[1],
            "hidden_block_count_z": grid[2],
            "hidden_group_size_x": bd[0],
            "hidden_group_size_y": bd[1],
            "hidden_group_size_z": bd[2],
            "hidden_grid_dims": 3,
            "hidden_hostcall_buffer": HOSTCALL,
        }
        for offset, size, kind in program.hidden:
            if kind in values:
                kernarg[offset : offset + size] = _pack(values[kind], size)
    nwg = grid[0] * grid[1] * grid[2]
    # ---- Triton's per-program global scratch (second last visible argument; the last one is the profiler's)
    scratch_bytes = int(scratch or getattr(meta, "global_scratch_size", 0) or 0)
    if scratch_bytes and len(args) <= len(visible) - 2:
        scr = np.zeros(scratch_bytes * nwg, u8)
        memory.add(scr.ctypes.data, scr.nbytes, "global scratch", scr)
        offset = visible[-2][0]
        kernarg[offset : offset + 8] = struct.pack("<Q", scr.ctypes.data)
    kernarg = np.frombuffer(kernarg, u8)
    memory.add(kernarg.ctypes.data, kernarg.nbytes, "kernarg", kernarg)
    # dispatch packet (for kernels that read it)
    packet = np.frombuffer(
        bytearray(
            struct.pack("<4xHHH2xIII40x", *bd, *(g * b for g, b in zip(grid, bd, strict=True)))
        ),
        u8,
    )
    memory.add(packet.ctypes.data, 64, "dispatch packet", packet)
    # ---- the machine
    lds = max(int(shared or 0), program.static_lds)
    nw = num_warps if block is None else (bd[0] * bd[1] * bd[2] + 63) // 64
    per = max(1, min(nwg, nwg if coresident else batch_waves // nw))
    opts = {
        "stats": stats,
        "max_blocks": max_blocks,
        "lazy_dma": lazy_dma,
        "races": races,
        "wait_timeout": wait_timeout,
    }
    key = (program, per, nw, lds, arch, stats, races)
    M = _machines.pop(key, None)
    if M is None:
        M = Machine(prog, per, nw, memory, lds, arch, opts)
    else:
        M.reset(memory, opts)
    sgprs = program.user_sgprs(kernarg, packet, M.scratch_size)
    ids = np.arange(nwg) if order is None else np.asarray(order)
    t0 = time.perf_counter()
    with np.errstate(all="ignore"):
        for b0 in range(0, nwg, per):
            M.start(
                ids[b0 : b0 + per], grid, bd, block is None, sgprs, program.workgroup_ids, poison
            )
            M.go(program.entry)
            M.vmq.clear()
    dt = time.perf_counter() - t0
    _keep(key, M)
    c = M.stats()
    tot_i = sum(c.values())
    st = {
        "kernel": prog.kernel,
        "arch": arch,
        "grid": grid,
        "num_warps": nw,
        "workgroups": nwg,
        "seconds": dt,
        "wave_instrs": tot_i,
        "per_s": tot_i / max(dt, 1e-9),
        "instrs": dict(sorted(c.items())),
        "bytes": dict(M.bytes),
        "blocks": M.steps,
    }
    if stats == "lines":  # all of them, and where the kernel begins: for records of whole runs
        st["lines"] = M.lines(len(prog.ins))
        st["source"] = next((ins.loc for ins in prog.ins if ins.loc), "")
    if stats == "full":
        st["lines"] = M.lines()
        st["segments64B"] = dict(M.sectors)
        st["lds_cycles"] = {"estimated": M.lds_cycles[0], "conflict_free": M.lds_cycles[1]}
    if races:
        st["lds_races"] = list(M.race_log)
    return st
