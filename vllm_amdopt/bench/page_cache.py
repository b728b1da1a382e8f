"""Puts files out of the kernel's page cache, and says how much of them is in it; needs no root.

What another process has mapped stays: the share that is left is measured, never assumed to be 0.
"""

import ctypes
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_PROTECTION_READ, _MAP_SHARED = 1, 1
_PAGE = os.sysconf("SC_PAGE_SIZE")
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


def weight_files(model: Path) -> list[Path]:
    """The files with weights in a model's directory."""
    return sorted(path for path in model.iterdir() if path.suffix in WEIGHTS and path.is_file())


def evict(files: Iterable[Path]) -> None:
    """Write back what is dirty and let go of the pages."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident_share(files: Iterable[Path]) -> float:
    """The share of the files' pages that is in memory, 0 to 1."""
    there = total = 0
    for path in files:
        for resident in _pages(path):
            there += resident
            total += 1
    return there / total if total else 0.0


def _pages(path: Path) -> Iterator[int]:
    """Whether each page of the file is in memory, by mincore(2)."""
    size = path.stat().st_size
    if size == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        address = libc.mmap(None, size, _PROTECTION_READ, _MAP_SHARED, descriptor, 0)
    finally:
        os.close(descriptor)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), f"{path} cannot be mapped")
    try:
        count = (size + _PAGE - 1) // _PAGE
        flags = (ctypes.c_ubyte * count)()
        if libc.mincore(address, size, flags) != 0:
            raise OSError(ctypes.get_errno(), f"mincore failed for {path}")
        yield from (flag & 1 for flag in flags)
    finally:
        libc.munmap(address, size)
