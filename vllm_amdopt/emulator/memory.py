"""Global memory of the emulated GPU: the registered host buffers and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .assembly import Instruction
from .definitions import HOSTCALL, MemFault, Unsupported, u8, u16, u32, u64
from .registers import parse_register

ADDRESS_BITS = (1 << 48) - 1
HOSTCALL_BYTES = 65536


class _HostBytes:
    """Bytes of this process, for np.asarray (a ctypes array type per size would never be freed)."""

    __slots__ = ("__array_interface__",)

    def __init__(self, address: int, count: int) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (count,),
            "typestr": "|u1",
            "version": 3,
        }


class Region:
    """One buffer, seen in units of 1 to 16 bytes from an address aligned to 16."""

    __slots__ = (
        "base",
        "end",
        "keep",
        "loaded",
        "name",
        "origin",
        "u8",
        "u16",
        "u32",
        "u64",
        "wide",
    )

    def __init__(self, base: int, nbytes: int, name: str, keep: Any = None) -> None:
        self.base, self.end, self.name, self.keep = base, base + nbytes, name, keep
        self.loaded = 0  # bytes that loads asked for
        self.origin = base & ~15
        count = ((self.end + 15) & ~15) - self.origin
        self.u8 = np.asarray(_HostBytes(self.origin, count))
        self.u16, self.u32, self.u64 = self.u8.view(u16), self.u8.view(u32), self.u8.view(u64)
        self.wide = self.u8.view(np.complex128)  # 16 bytes travel as one complex number

    def load(self, addresses: Any, size: int) -> Any:
        """u32 (lanes,) for 1 and 2 bytes, (lanes, dwords) for multiples of 4; any alignment"""
        self.loaded += len(addresses) * size
        at = addresses - self.origin
        if size == 1:
            return self.u8[at].astype(u32)
        low_bits = int(np.bitwise_or.reduce(at))
        if size == 2:
            if low_bits & 1 == 0:
                return self.u16[at >> 1].astype(u32)
            return self.u8[at].astype(u32) | (self.u8[at + 1].astype(u32) << u32(8))
        if low_bits & 3:
            return self.u8[at[:, None] + np.arange(size)].view(u32)
        at >>= 2
        dwords = size // 4
        if dwords == 1:
            return self.u32.take(at)[:, None]
        if dwords == 2 and low_bits & 7 == 0:
            return self.u64.take(at >> 1).view(u32).reshape(-1, 2)
        if dwords == 4 and low_bits & 15 == 0:
            return self.wide.take(at >> 2).view(u32).reshape(-1, 4)
        return self.u32[at[:, None] + np.arange(dwords)]

    def store(self, addresses: Any, size: int, data: Any) -> None:
        """The opposite of `load`."""
        at = addresses - self.origin
        if size == 1:
            self.u8[at] = data.astype(u8)
            return
        low_bits = int(np.bitwise_or.reduce(at))
        if size == 2:
            if low_bits & 1 == 0:
                self.u16[at >> 1] = data.astype(u16)
            else:
                self.u8[at] = data.astype(u8)
                self.u8[at + 1] = (data >> u32(8)).astype(u8)
            return
        if low_bits & 3:
            self.u8[at[:, None] + np.arange(size)] = np.ascontiguousarray(data).view(u8)
            return
        at >>= 2
        dwords = size // 4
        if dwords == 1:
            self.u32[at] = data.reshape(-1)
        elif dwords == 2 and low_bits & 7 == 0:
            self.u64[at >> 1] = np.ascontiguousarray(data).view(u64).reshape(-1)
        elif dwords == 4 and low_bits & 15 == 0:
            self.wide[at >> 2] = np.ascontiguousarray(data).view(np.complex128).reshape(-1)
        else:
            self.u32[at[:, None] + np.arange(dwords)] = data


class Memory:
    """The buffers of one launch. Addresses are those of this process; any other is a fault."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.last: Region | None = None  # the region of the access before

    def add(self, base: int, nbytes: int, name: str, keep: Any = None) -> None:
        """Make memory reachable; `keep` is what must live as long. Overlapping ones are joined."""
        if nbytes <= 0 or not base:
            return
        if self.find(base, base + nbytes):
            return
        overlapping = [r for r in self.regions if base < r.end and r.base < base + nbytes]
        for region in overlapping:
            self.regions.remove(region)
            start = min(base, region.base)
            nbytes = max(base + nbytes, region.end) - start
            base, name, keep = start, f"{region.name}|{name}", (keep, region.keep)
        self.last = Region(base, nbytes, name, keep)
        self.regions.append(self.last)

    def describe(self, address: int) -> str:
        """An address that no buffer covers, in relation to the nearest one."""
        if HOSTCALL <= address < HOSTCALL + HOSTCALL_BYTES:
            raise Unsupported(
                "host call: a tl.device_assert failed or tl.device_print ran "
                "(printing from the device is not emulated)"
            )
        if not self.regions:
            return f"{address:#x}"
        near = min(self.regions, key=lambda r: min(abs(address - r.base), abs(address - r.end)))
        return (
            f"{address:#x} (nearest buffer {near.name} [{near.base:#x}, {near.end:#x}), "
            f"{near.end - near.base} bytes: offset {address - near.base})"
        )

    def note_of_base(self, machine: Any, instruction: Instruction) -> str:
        """For an error: which buffer the scalar base register of a memory instruction points to.

        The nearest buffer is the allocator's accident; the base is what the kernel meant.
        """
        if not instruction.op.startswith(("global_", "buffer_", "s_load", "s_buffer_load")):
            return ""
        waves = np.flatnonzero(machine.running[:, 0])
        for operand in instruction.operands:
            register = parse_register(operand)
            if not register or register[0] != "s" or register[2] not in (2, 4) or not len(waves):
                continue
            if register[1] & 1 or operand is instruction.operands[0]:
                continue
            base = int(machine.sgprs_u64[waves[0], register[1] // 2]) & ADDRESS_BITS
            for region in self.regions:
                if region.base <= base < region.end:
                    return (
                        f"\n  base {operand}: buffer {region.name}, "
                        f"{region.end - region.base} bytes, offset {base - region.base}"
                    )
        return ""

    def find(self, low: int, high: int) -> Region | None:
        """The buffer that covers [low, high)."""
        for region in self.regions:
            if region.base <= low and high <= region.end:
                self.last = region
                return region
        return None

    def _only_region(self, addresses: Any, size: int) -> Region | None:
        """The buffer that all accesses lie in, usually that of the access before."""
        low, high = int(addresses.min()), int(addresses.max()) + size
        last = self.last
        if last is not None and last.base <= low and high <= last.end:
            return last
        return self.find(low, high)

    def _each_region(
        self, addresses: Any, size: int, action: Callable[[Region, Any], None], what: str
    ) -> None:
        """Accesses to several buffers: action(buffer, which of the lanes)."""
        left = np.ones(len(addresses), bool)
        for region in self.regions:
            inside = left & (addresses >= region.base) & (addresses + size <= region.end)
            if inside.any():
                action(region, np.nonzero(inside)[0])
                left &= ~inside
        if left.any():
            raise MemFault(
                f"{what} of {size} bytes outside every buffer at "
                f"{self.describe(int(addresses[left][0]))} ({int(left.sum())} lanes)"
            )

    def load(self, addresses: Any, size: int) -> Any:
        """addresses: int64 (lanes,). Result as Region.load's."""
        region = self._only_region(addresses, size)
        if region is not None:
            return region.load(addresses, size)
        result = np.zeros((len(addresses), max(1, size // 4)), u32)

        def part(region: Region, lanes: Any) -> None:
            result[lanes] = region.load(addresses[lanes], size).reshape(len(lanes), -1)

        self._each_region(addresses, size, part, "load")
        return result if size >= 4 else result[:, 0]

    def store(self, addresses: Any, size: int, data: Any) -> None:
        region = self._only_region(addresses, size)
        if region is not None:
            region.store(addresses, size, data)
            return

        def part(region: Region, lanes: Any) -> None:
            region.store(addresses[lanes], size, data[lanes])

        self._each_region(addresses, size, part, "store")

    def views(self, addresses: Any, size: int, numpy_type: Any) -> list[tuple[Any, Any, Any]]:
        """For atomics: (typed array, indices into it, which of the lanes) per buffer touched."""
        if int(np.bitwise_or.reduce(addresses)) & (size - 1):
            raise MemFault(f"misaligned atomic at {self.describe(int(addresses.min()))}")
        region = self._only_region(addresses, size)
        if region is not None:
            places = (addresses - region.origin) // size
            return [(region.u8.view(numpy_type), places, slice(None))]
        parts: list[tuple[Any, Any, Any]] = []

        def part(region: Region, lanes: Any) -> None:
            places = (addresses[lanes] - region.origin) // size
            parts.append((region.u8.view(numpy_type), places, lanes))

        self._each_region(addresses, size, part, "atomic")
        return parts
