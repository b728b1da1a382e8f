"""Machine state and wave scheduler of the gfx942/gfx950 emulator. NumPy only.

All waves of a batch of workgroups are held in one set of arrays (registers x waves x 64 lanes). Waves standing at
the same program point run together as one NumPy operation; waves that are elsewhere are masked off (SIMT
re-convergence: the group with the lowest program counter goes first). s_barrier parks a wave until every live wave
of its workgroup has arrived. A loop that polls memory at system scope gives the CPU away while it waits.
"""

from __future__ import annotations

import time

import numpy as np

from .control import TERM, compile_term
from .definitions import (
    BAR,
    END,
    EXEC,
    RUN,
    EmuError,
    Unsupported,
    WaitTimeout,
    f16,
    f32,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
    unpack,
)
from .operations import compile_ins, klass


def polls_system_memory(ins):
    """Loads with sc0 and sc1, atomics with sc1: system scope (AMDGPU memory model of gfx942/gfx950)."""
    if not ins.op.startswith(("global_", "flat_", "buffer_")) or "sc1" not in ins.mods:
        return False
    return "_atomic_" in ins.op or ("_load_" in ins.op and "sc0" in ins.mods)


class Machine:
    def __init__(self, prog, nwg, nwaves, mem, lds_size, arch, opts):
        W = self.W = nwg * nwaves
        self.prog, self.nwg, self.nw, self.mem, self.arch, self.opts = (
            prog,
            nwg,
            nwaves,
            mem,
            arch,
            opts,
        )
        nv, na = 1, 0
        for ins in prog.ins:
            for o in ins.ops:
                o = o.lstrip("-|").rstrip("|")
                k = o[:1]
                if k in "va" and len(o) > 1 and (o[1] == "[" or o[1].isdigit()):
                    hi = int(o[2:-1].split(":")[-1]) if o[1] == "[" else int(o[1:].split(".")[0])
                    if k == "v":
                        nv = max(nv, hi + 1)
                    else:
                        na = max(na, hi + 1)
        self.nv = nv
        self.V = np.empty((nv + na, W, 64), u32)
        self.Vf, self.Vi = self.V.view(f32), self.V.view(i32)
        self.V16 = self.V.view(u16).reshape(nv + na, W, 64, 2)
        self.Vh, self.Vs = self.V16.view(f16), self.V16.view(i16)
        self.S = np.zeros((W, 128), u32)
        self.Si, self.Sf, self.S64, self.S8 = (
            self.S.view(i32),
            self.S.view(f32),
            self.S.view(u64),
            self.S.view(u8),
        )
        self.EX, self.full = np.ones((W, 64), bool), True
        self.act, self.allact, self.nact = np.ones((W, 1), bool), True, W
        self.scc = np.zeros((W, 1), bool)
        self.pc, self.status = np.zeros(W, i64), np.zeros(W, i64)
        self.wgid = np.repeat(np.arange(nwg), nwaves)
        self.lds_size = lds_size
        self.lds_stride = (lds_size + 63) // 64 * 64 + 64
        self.lds = np.zeros(nwg * self.lds_stride, u8)
        self.lds32, self.lds16 = self.lds.view(u32), self.lds.view(u16)
        # 16 bytes travel as one complex number: NumPy copies its bits as they are
        self.lds_wide = {4: self.lds32, 8: self.lds.view(u64), 16: self.lds.view(np.complex128)}
        self.lds_base = (self.wgid * self.lds_stride).astype(i64)[:, None]
        self.lds_lane_base = np.repeat(self.lds_base[:, 0], 64)
        self.lane = np.arange(64, dtype=i64)
        self.scratch_size = (
            (int(prog.meta.get(".private_segment_fixed_size", 0) or 0) + 15) // 16 * 16
        )
        self.scratch = np.zeros(W * 64 * self.scratch_size + 16, u8)
        self.scratch_base = (np.arange(W * 64, dtype=i64) * self.scratch_size).reshape(W, 64)
        self.mode = {
            "ftz32": (int(prog.kd.get("float_denorm_mode_32", 3)) & 3) != 3,
            "ftz16": (int(prog.kd.get("float_denorm_mode_16_64", 3)) & 3) != 3,
            "round32": int(prog.kd.get("float_round_mode_32", 0)),
            "fp16_ovfl": int(prog.kd.get("fp16_overflow", 0) or 0),
        }
        self.mode0 = dict(self.mode)
        self.epoch = np.zeros(nwg, i64)  # barriers passed per workgroup
        self.races, self.race_log = None, []
        if opts.get("races"):
            self.races = [
                np.full(len(self.lds), -1, i64) for _ in range(4)
            ]  # last writer, its epoch, last reader (-2: several), its epoch
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
        self.lds_cycles = [0, 0]  # [estimated, conflict-free]
        self.steps = 0
        self.clock = 0
        self.vmq = []  # outstanding direct-to-LDS / VMEM operations (lazy mode)
        ops = {i.op for i in prog.ins}
        self.may_ftz = self.mode["ftz32"] or any(
            o.startswith(("s_setreg", "s_denorm_mode")) for o in ops
        )
        self.has_dma = any("_load_lds_" in o for o in ops) or any(
            i.op.startswith("buffer_load") and "lds" in i.mods for i in prog.ins
        )
        self.vmi = np.zeros(W, i64)
        self.wg_linear = np.zeros(W, i64)
        self.syms = {}
        self.thread_ids = {}
        self.nbytes = (
            self.V.nbytes + self.lds.nbytes + self.scratch.nbytes + 4000 * len(prog.ins)
        )  # decoded blocks: about 4 kB an instruction
        self._build_blocks()

    def reset(self, mem, opts):
        """for another launch of the same kernel with the same number of waves"""
        self.mem, self.opts = mem, opts
        for s, b in self.syms.items():
            mem.add(b.ctypes.data, len(b), f".rodata {s}", b)
        for d in (self.bytes, self.sectors, self.visits):
            for k in d:
                d[k] = 0
        self.lds_cycles[:] = [0, 0]
        self.steps = self.clock = 0
        self.race_log.clear()
        self.mode.update(self.mode0)

    def code_addr(self, i):
        return 0x7F00_0000_0000 + 4 * i  # made-up addresses: only differences and returns matter

    def sym_addr(self, s):
        if s in self.prog.labels:
            return self.code_addr(self.prog.labels[s])
        if s not in self.syms:
            b = np.frombuffer(self.prog.data[s] + b"\0" * 64, dtype=u8).copy()
            self.syms[s] = b
            self.mem.add(b.ctypes.data, len(b), f".rodata {s}", b)
        return self.syms[s].ctypes.data

    # ---- program -> basic blocks ----------------------------------------------------------------
    def _build_blocks(self):
        P = self.prog
        lead = {0, *P.labels.values()}
        for i, ins in enumerate(P.ins):
            if ins.op in TERM:
                lead.add(i + 1)
        lead = sorted(x for x in lead if x <= len(P.ins))
        self.leads = {x: n for n, x in enumerate(lead)}
        self.nxt = {
            x: (lead[n + 1] if n + 1 < len(lead) else len(P.ins)) for n, x in enumerate(lead)
        }
        self.blk, self.blkcnt, self.ins_of, self.visits = {}, {}, {}, {}
        self.polls = set()

    def compile_block(self, pc):
        P = self.prog
        if pc >= len(P.ins) or pc not in self.nxt:
            raise EmuError(f"program counter ran off the code (instruction {pc})")
        ops, term, cnt = [], None, {}
        end = self.nxt[pc]
        for i in range(pc, end):
            ins = P.ins[i]
            k = klass(ins.op)
            cnt[k] = cnt.get(k, 0) + 1
            try:
                if ins.op in TERM:
                    term = compile_term(self, ins, i)
                    self.ins_of[id(term)] = ins
                    break
                f = compile_ins(self, ins, i)
            except EmuError as e:
                raise type(e)(f"{e}\n  in: {ins.text}   [line {ins.line}, {ins.loc}]") from None
            except (ValueError, KeyError, IndexError, TypeError, AssertionError) as e:
                raise Unsupported(
                    f"cannot decode ({type(e).__name__}: {e})\n  in: {ins.text}   [line {ins.line}, {ins.loc}]"
                ) from e
            if f is not None:
                ops.append(f)
                self.ins_of[id(f)] = ins
        if term is None:
            nx = end
            term = lambda: nx
        b = self.blk[pc] = (tuple(ops), term)
        self.blkcnt[pc] = cnt
        if any(polls_system_memory(i) for i in P.ins[pc:end]):
            self.polls.add(pc)
        self.visits[pc] = 0
        return b

    # ---- masks ------------------------------------------------------------------------------------
    def upd_exec(self):
        if self.allact and (self.S64[:, EXEC // 2] == u64(0xFFFFFFFFFFFFFFFF)).all():
            if not self.full:
                self.EX[...] = True
                self.full = True
            return
        b = unpack(self.S8, EXEC)
        if not self.allact:
            b = b & self.act
        self.EX[...] = b
        self.full = False

    def set_act(self, a):
        self.act[:, 0] = a
        self.nact = int(a.sum())
        self.allact = self.nact == self.W
        self.upd_exec()

    # ---- run --------------------------------------------------------------------------------------
    def release(self):
        """let go the workgroups whose live waves have all arrived at the barrier"""
        st = self.status.reshape(self.nwg, self.nw)
        bar = st == BAR
        ok = bar.any(1) & (bar | (st == END)).all(1)
        if ok.any():
            st[np.repeat(ok[:, None], self.nw, 1) & bar] = RUN
            self.epoch += ok
        return ok.any()

    def start(self, workgroups, grid, block, linear, sgprs, id_axes, poison):
        """put the waves of these workgroups at their beginning; registers, LDS and scratch hold poison"""
        n, nw = len(workgroups), self.nw
        if poison:
            self.V.fill(0x7FC0DEAD)  # NaN patterns: reading what was never written shows
            self.lds.fill(0xA5)
            self.scratch.fill(0xA5)
        self.S.fill(0x7FC0BEEF if poison else 0)
        self.scc.fill(False)
        self.epoch.fill(0)
        for q in self.races or ():
            q.fill(-1)
        wg = np.zeros(self.nwg, i64)
        wg[:n] = workgroups
        self.S[:, : len(sgprs)] = sgprs
        j = len(sgprs)
        for axis in id_axes:
            below = 1 if axis == 0 else grid[0] if axis == 1 else grid[0] * grid[1]
            self.S[:, j] = np.repeat(wg // below % grid[axis], nw)
            j += 1
        self.S[:, 102:104] = 0
        threads = block[0] * block[1] * block[2]
        self.S64[:, EXEC // 2] = u64(0xFFFFFFFFFFFFFFFF)
        if threads % 64:
            self.S64[nw - 1 :: nw, EXEC // 2] = (1 << (threads % 64)) - 1
        if block not in self.thread_ids:  # packed into v0 since gfx90a
            t = np.arange(64)[None] + 64 * (np.arange(self.W) % nw)[:, None]
            x, y, z = t % block[0], t // block[0] % block[1], t // (block[0] * block[1])
            self.thread_ids[block] = (t if linear else x | y << 10 | z << 20).astype(u32)
        self.V[0] = self.thread_ids[block]
        self.wg_linear[:] = np.repeat(wg, nw)
        self.vmq.clear()
        self.vmi.fill(0)
        self.status[: n * nw] = RUN
        self.status[n * nw :] = END
        self.set_act(self.status == RUN)

    def _wait(self, pc, step, alone):
        """a block that polls memory at system scope was reached: give the CPU away, give up after wait_timeout"""
        if step - self.poll_step > 24:  # not the next round of the same loop
            self.poll_count = 0
        self.poll_step = step
        self.poll_count += 1
        if self.poll_count == 1:
            self.poll_since = time.monotonic()
        elif self.poll_count > 8:
            if alone:  # otherwise go() lets the waves at other places run
                time.sleep(min(20e-6 * 2 ** (self.poll_count >> 6), 1e-3))
            limit = self.opts.get("wait_timeout", 0)
            if limit and time.monotonic() - self.poll_since > limit:
                ins = next(i for i in self.prog.ins[pc : self.nxt[pc]] if polls_system_memory(i))
                raise WaitTimeout(
                    f"kernel {self.prog.kernel} has polled memory for {limit:g} s without an answer: "
                    f"is the process it waits for alive?\n  at: {ins.text}   [asm line {ins.line}, {ins.loc}]"
                )

    def go(self, entry):
        self.pc.fill(entry)
        last_run = np.zeros(self.W, i64)
        step, spin = 0, self.opts.get("fair", 4096)
        limit = self.opts.get("max_blocks", 0)
        blk, visits, polls = self.blk, self.visits, self.polls
        self.poll_step, self.poll_count = -100, 0
        prev_act, force, left = None, None, 0
        while True:
            run = self.status == RUN
            if not run.any():
                if (self.status == BAR).any():
                    if self.release():
                        continue
                    raise EmuError(
                        "deadlock at s_barrier: waves wait for a wave that has not arrived"
                    )
                break
            pcs = self.pc[run]
            lo = int(pcs.min())
            uni = lo == int(pcs.max())
            if not uni:  # fairness: a spinning low-pc group must not starve the others
                if left <= 0 and (self.poll_count > 8 or step - int(last_run[run].min()) > spin):
                    force, left = last_run == last_run[run].min(), 256
                if left > 0:
                    left -= 1
                    fr = run & force
                    if fr.any():
                        lo = int(self.pc[fr].min())
                    else:
                        left = 0
            a = run & (self.pc == lo)
            if prev_act is None or not np.array_equal(a, prev_act):
                self.set_act(a)
                prev_act = a
            last_run[a] = step
            pc, n = lo, self.nact
            while True:
                b = blk.get(pc) or self.compile_block(pc)
                visits[pc] += n
                step += 1
                if pc in polls:
                    self._wait(pc, step, uni)
                f = None
                try:
                    for f in b[0]:
                        f()
                    f = b[1]
                    pc = f()
                except EmuError as e:
                    raise type(e)(self._where(e, f)) from None
                except (IndexError, ValueError, TypeError, FloatingPointError) as e:
                    raise EmuError(self._where(f"{type(e).__name__}: {e}", f)) from e
                if pc < 0 or not uni:
                    break
                if limit and step > limit:
                    break
            if pc >= 0:
                self.pc[a] = pc
            if limit and step > limit:
                raise EmuError(f"more than {limit} basic blocks executed (endless loop?)")
        self.steps += step

    def _where(self, e, f):
        ins = self.ins_of.get(id(f))
        return f"{e}\n  at: {ins.text}   [asm line {ins.line}, {ins.loc}]" if ins else str(e)

    def lines(self, n=12):
        """source lines with the most executed wave instructions"""
        c = {}
        for pc, v in self.visits.items():
            for i in range(pc, self.nxt[pc]) if v else ():
                c[self.prog.ins[i].loc] = c.get(self.prog.ins[i].loc, 0) + v
        return dict(sorted(c.items(), key=lambda x: -x[1])[:n])

    def stats(self):
        c = {}
        for pc, n in self.visits.items():
            for k, m in self.blkcnt[pc].items():
                c[k] = c.get(k, 0) + n * m
        return c
