"""Number types, register numbers, address apertures and errors shared by all parts of the emulator."""

from __future__ import annotations

import numpy as np

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
i16, i32, i64 = np.int16, np.int32, np.int64
f16, f32, f64 = np.float16, np.float32, np.float64

VCC, M0, EXEC, FLAT_SCR = 106, 124, 126, 102  # scalar register numbers of the named registers
HOSTCALL = 0x0003_0000_0000_0000  # where hidden_hostcall_buffer points: never readable
SHARED_APERTURE, PRIVATE_APERTURE = 0x0001_0000_0000_0000, 0x0002_0000_0000_0000
RUN, BAR, END = 0, 1, 2  # what a wave does: runs, waits at a barrier, has ended

MAX_LDS = {"gfx942": 65536, "gfx950": 163840}  # bytes per workgroup
COMPUTE_UNITS = {"gfx942": 304, "gfx950": 256}  # MI300X, MI355X


class EmuError(RuntimeError):
    """The kernel did what the hardware would not survive, or the emulator cannot go on."""


class MemFault(EmuError):
    """Access outside every buffer, outside the LDS allocation, or misaligned."""


class Unsupported(EmuError):
    """An instruction, modifier or mode that is not emulated."""


class WaitTimeout(EmuError):
    """The kernel polled memory for longer than `wait_timeout` seconds without being answered."""


def unpack(S8, i):
    """64-bit SGPR pair -> bool (W, 64)"""
    return np.unpackbits(S8[:, 4 * i : 4 * i + 8], axis=1, bitorder="little").view(bool)


def pack(b):
    """bool (W, 64) -> 64-bit masks (W, 1)"""
    return np.packbits(b, axis=1, bitorder="little").view(u64)
