"""Integer vector instructions under `clamp`: results that saturate instead of wrapping around.

Source: CDNA4 ISA, 6.5 "ALU Clamp Bit Usage".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .definitions import i16, i32, i64, u16, u32
from .integers import signed_24, unsigned_24

array = np.asarray


def _exact(
    function: Callable[..., Any], numpy_type: Any, read_as: Any = None
) -> Callable[..., Any]:
    """The function in 64 bits, where nothing overflows, then clipped to the type."""
    limits = np.iinfo(numpy_type)

    def clipped(*values: Any) -> Any:
        wide = [array(v if read_as is None else array(v).view(read_as)).astype(i64) for v in values]
        return np.clip(function(*wide), limits.min, limits.max).astype(numpy_type)

    return clipped


def _add(a: Any, b: Any) -> Any:
    return a + b


def _subtract(a: Any, b: Any) -> Any:
    return a - b


def _multiply_add(a: Any, b: Any, c: Any) -> Any:
    return a * b + c


def _multiply_add_24(extend: Callable[[Any], Any], numpy_type: Any) -> Callable[..., Any]:
    limits = np.iinfo(numpy_type)

    def clipped(a: Any, b: Any, c: Any) -> Any:
        result = extend(a).astype(i64) * extend(b).astype(i64) + array(c).astype(i64)
        return np.clip(result, limits.min, limits.max).astype(numpy_type)

    return clipped


CLAMPED_INTEGERS: dict[str, Callable[..., Any]] = {
    "v_add_u32": _exact(_add, u32),
    "v_sub_u32": _exact(_subtract, u32),
    "v_subrev_u32": _exact(lambda a, b: b - a, u32),
    "v_add_i32": _exact(_add, i32, read_as=i32),
    "v_sub_i32": _exact(_subtract, i32, read_as=i32),
    "v_add_u16": _exact(_add, u16),
    "v_sub_u16": _exact(_subtract, u16),
    "v_subrev_u16": _exact(lambda a, b: b - a, u16),
    "v_add_i16": _exact(_add, i16),
    "v_sub_i16": _exact(_subtract, i16),
    "v_mad_u16": _exact(_multiply_add, u16),
    "v_mad_i16": _exact(_multiply_add, i16),
    "v_mad_i32_i24": _multiply_add_24(signed_24, i32),
    "v_mad_u32_u24": _multiply_add_24(unsigned_24, u32),
}
