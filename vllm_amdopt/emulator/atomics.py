"""Atomic operations, in LDS and in global memory: the functions and the order of the lanes.

Source: CDNA4 ISA, 12.12 (LDS), 12.13 (MUBUF), 12.15 (FLAT), by the operation's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .definitions import Unsupported, f16, f32, f64, i32, i64, u16, u32, u64
from .floats import max_float, min_float
from .operands import bf16_to_f32, f32_to_bf16


class Atomic(NamedTuple):
    """Types of the 32 and 64-bit form, function (old, data) -> new, its ufunc where it is one."""

    narrow: Any
    wide: Any
    function: Callable[[Any, Any], Any] | None
    ufunc: Any = None


def _add_f16_pairs(old: Any, data: Any) -> Any:
    a, b = (np.ascontiguousarray(x).view(f16) for x in (old, data))
    return (a + b).view(u32)


def _add_bf16_pairs(old: Any, data: Any) -> Any:
    a, b = (bf16_to_f32(np.ascontiguousarray(x).view(u16)) for x in (old, data))
    return f32_to_bf16(a + b).view(u32)


def _increment(old: Any, limit: Any) -> Any:
    zero, one = old.dtype.type(0), old.dtype.type(1)
    return np.where(old >= limit, zero, old + one)


def _decrement(old: Any, limit: Any) -> Any:
    return np.where((old == 0) | (old > limit), limit, old - old.dtype.type(1))


COMPARE_AND_SWAP = "cmpswap"
ATOMICS = {
    "add": Atomic(u32, u64, lambda old, data: old + data, np.add),
    "sub": Atomic(u32, u64, lambda old, data: old - data, np.subtract),
    "smin": Atomic(i32, i64, np.minimum, np.minimum),
    "smax": Atomic(i32, i64, np.maximum, np.maximum),
    "umin": Atomic(u32, u64, np.minimum, np.minimum),
    "umax": Atomic(u32, u64, np.maximum, np.maximum),
    "and": Atomic(u32, u64, np.bitwise_and, np.bitwise_and),
    "or": Atomic(u32, u64, np.bitwise_or, np.bitwise_or),
    "xor": Atomic(u32, u64, np.bitwise_xor, np.bitwise_xor),
    "swap": Atomic(u32, u64, lambda old, data: data),
    "inc": Atomic(u32, u64, _increment),
    "dec": Atomic(u32, u64, _decrement),
    "add_f32": Atomic(f32, None, np.add, np.add),
    "min_f32": Atomic(f32, None, min_float),
    "max_f32": Atomic(f32, None, max_float),
    "add_f64": Atomic(None, f64, np.add, np.add),
    "min_f64": Atomic(None, f64, min_float),
    "max_f64": Atomic(None, f64, max_float),
    "pk_add_f16": Atomic(u32, None, _add_f16_pairs),
    "pk_add_bf16": Atomic(u32, None, _add_bf16_pairs),
    COMPARE_AND_SWAP: Atomic(u32, u64, None),
}

_LDS_INTEGERS = {
    "add_u": "add",
    "sub_u": "sub",
    "min_i": "smin",
    "max_i": "smax",
    "min_u": "umin",
    "max_u": "umax",
    "and_b": "and",
    "or_b": "or",
    "xor_b": "xor",
    "inc_u": "inc",
    "dec_u": "dec",
    "wrxchg_b": "swap",
    "cmpst_b": COMPARE_AND_SWAP,
}
LDS_ATOMICS = {
    **{f"{name}{bits}": kind for name, kind in _LDS_INTEGERS.items() for bits in (32, 64)},
    **{name: name for name in ATOMICS if "_f" in name or "_bf" in name},
}
"""Name behind ds_, without _rtn, -> name in ATOMICS."""


def global_atomic_type(name: str) -> tuple[str, Any]:
    """`add_x2` -> (`add`, u64): name in ATOMICS and type in memory."""
    kind = name.removesuffix("_x2")
    if kind not in ATOMICS:
        raise Unsupported(f"atomic {name}")
    atomic = ATOMICS[kind]
    numpy_type = atomic.wide if name.endswith("_x2") or atomic.narrow is None else atomic.narrow
    if numpy_type is None:
        raise Unsupported(f"atomic {name}")
    return kind, numpy_type


def do_atomic(
    memory: Any,
    places: Any,
    function: Callable[[Any, Any], Any] | None,
    ufunc: Any,
    data: Any,
    ret: bool,
    compare: Any = None,
) -> Any:
    """Apply the operation to memory[places] lane by lane, in lane order.

    Returns the old values when `ret`, else None where that is cheaper. compare: compare-and-swap.
    One that changes nothing writes nothing: atomics are not indivisible between processes, and a
    process that polls by adding 0 must not undo what another one writes meanwhile.
    """
    if not ret and ufunc is not None:
        ufunc.at(memory, places, data)
        return None
    old = np.empty(len(places), memory.dtype)
    # the how-manieth access to its place each lane is; accesses of one rank touch different places
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    first = np.r_[True, ordered[1:] != ordered[:-1]]
    rank = np.empty(len(places), i64)
    position = np.arange(len(places))
    rank[order] = position - np.maximum.accumulate(np.where(first, position, 0))
    for turn in range(int(rank.max()) + 1 if len(rank) else 0):
        lanes = np.flatnonzero(rank == turn)
        at = places[lanes]
        before = memory[at]
        old[lanes] = before
        if compare is not None:
            after = np.where(before == compare[lanes], data[lanes], before)
        elif function is not None:
            after = function(before, data[lanes])
        changed = after != before
        if changed.all():
            memory[at] = after
        elif changed.any():
            memory[at[changed]] = after[changed]
    return old
