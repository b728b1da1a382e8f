"""Number types, register numbers, address apertures and errors that all modules share."""

from __future__ import annotations

from typing import Any

import numpy as np

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
i8, i16, i32, i64 = np.int8, np.int16, np.int32, np.int64
f16, f32, f64 = np.float16, np.float32, np.float64

# Scalar register numbers of the named registers (CDNA4 ISA, 5.2, table "Scalar Operands").
FLAT_SCRATCH, XNACK_MASK, VCC, TRAP_TEMPORARIES, M0, EXEC = 102, 104, 106, 108, 124, 126

# Made-up addresses of the apertures through which flat instructions see LDS and scratch.
SHARED_APERTURE, PRIVATE_APERTURE = 0x0001_0000_0000_0000, 0x0002_0000_0000_0000
HOSTCALL = 0x0003_0000_0000_0000  # where hidden_hostcall_buffer points: never readable
ALL_LANES = u64(0xFFFF_FFFF_FFFF_FFFF)

RUN, BARRIER, END = 0, 1, 2  # what a wave does: runs, waits at a barrier, has ended

MAX_LDS = {"gfx942": 65536, "gfx950": 163840}  # bytes per workgroup
COMPUTE_UNITS = {"gfx942": 304, "gfx950": 256}  # MI300X, MI355X

# What registers, LDS and scratch hold before they are written: NaN patterns.
VECTOR_POISON, SCALAR_POISON, BYTE_POISON = 0x7FC0_DEAD, 0x7FC0_BEEF, 0xA5


class EmuError(RuntimeError):
    """The kernel did what the hardware would not survive, or the emulator cannot go on."""


# The names of the next three say what happened to the kernel, as AMD's runtime does ("memory
# access fault"), not that something in here failed.
class MemFault(EmuError):  # noqa: N818
    """Access outside every buffer, outside the LDS allocation, or misaligned."""


class Unsupported(EmuError):  # noqa: N818
    """An instruction, modifier or mode that is not emulated."""


class WaitTimeout(EmuError):  # noqa: N818
    """The kernel polled memory for longer than `wait_timeout` seconds without being answered."""


class EndlessLoop(EmuError):  # noqa: N818
    """The kernel executed more than `max_blocks` basic blocks."""


def unpack_mask(sgprs_u8: Any, number: int) -> Any:
    """64-bit SGPR pair `number` of all waves -> bool (waves, 64)"""
    pair = sgprs_u8[:, 4 * number : 4 * number + 8]
    return np.unpackbits(pair, axis=1, bitorder="little").view(bool)


def pack_mask(lanes: Any) -> Any:
    """bool (waves, 64) -> 64-bit masks (waves, 1)"""
    return np.packbits(lanes, axis=1, bitorder="little").view(u64)
