"""Names of registers and constants in the assembly text, and the types an operand can have."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .definitions import (
    EXEC,
    FLAT_SCRATCH,
    M0,
    TRAP_TEMPORARIES,
    VCC,
    XNACK_MASK,
    f16,
    f32,
    f64,
    i16,
    i32,
    i64,
    u16,
    u32,
    u64,
)

NUMPY_TYPE: dict[str, Any] = {
    "u": u32,
    "i": i32,
    "f": f32,
    "U": u64,
    "I": i64,
    "F": f64,
    "w": u16,
    "s": i16,
    "h": f16,
    "b": f32,
}
"""Operand types by their letter in the instruction tables: u, i, f are 32 bits wide (unsigned,
signed, float), U, I, F 64 bits, w, s, h 16 bits; b is bf16, computed with as f32."""

WIDE, HALF, FLOATS = "UIF", "wshb", "fFhb"

NAMED_SGPRS = {
    "vcc": (VCC, 2),
    "vcc_lo": (VCC, 1),
    "vcc_hi": (VCC + 1, 1),
    "exec": (EXEC, 2),
    "exec_lo": (EXEC, 1),
    "exec_hi": (EXEC + 1, 1),
    "m0": (M0, 1),
    "flat_scratch": (FLAT_SCRATCH, 2),
    "flat_scratch_lo": (FLAT_SCRATCH, 1),
    "flat_scratch_hi": (FLAT_SCRATCH + 1, 1),
    "xnack_mask": (XNACK_MASK, 2),
    "xnack_mask_lo": (XNACK_MASK, 1),
    "xnack_mask_hi": (XNACK_MASK + 1, 1),
}

_REGISTER = re.compile(r"^(v|s|a|ttmp|acc)(?:\[(\d+)(?::(\d+))?\]|(\d+))$")


def parse_register(text: str) -> tuple[str, int, int] | None:
    """`v[4:7]` -> ("v", 4, 4): kind v, s or a, first number, count; None when it is no register."""
    if text in NAMED_SGPRS:
        return "s", *NAMED_SGPRS[text]
    match = _REGISTER.match(text)
    if not match:
        return None
    first = int(match[2] or match[4])
    count = int(match[3] or first) - first + 1
    if match[1] == "ttmp":
        return "s", first + TRAP_TEMPORARIES, count
    return {"acc": "a"}.get(match[1], match[1]), first, count


def sgpr(text: str) -> int:
    """The number of the (first) scalar register."""
    kind, number, _ = parse_register(text) or ("", 0, 0)
    if kind != "s":
        raise ValueError(f"{text} is no scalar register")
    return number


def vgpr_row(machine: Any, text: str) -> int:
    """The row of the machine's vector registers where a (first) v or a register lies."""
    kind, number, _ = parse_register(text) or ("", 0, 0)
    if kind not in ("v", "a"):
        raise ValueError(f"{text} is no vector register")
    return number if kind == "v" else machine.vgpr_count + number


ONE_OVER_TWO_PI = 0.15915494309189532


def constant(text: str, code: str) -> Any:
    """Inline constant or literal of an operand of type `code` -> NumPy scalar, or None.

    Integers are bits, also for float operands; a literal that is not inline (-16 to 64) fills the
    high half of an f64 and is sign-extended to an i64. Source: CDNA4 ISA, 6.2.1.
    """
    numpy_type = NUMPY_TYPE[code]
    try:
        bits = int(text, 0)
    except ValueError:
        pass
    else:
        inline = -16 <= bits <= 64
        if code == "F" and not inline:
            return u64((bits & 0xFFFFFFFF) << 32).view(f64)
        if code in WIDE:
            if code == "I" and not inline and bits >> 31 == 1:
                bits -= 1 << 32
            return u64(bits & (1 << 64) - 1).view(numpy_type)
        if code == "b":
            return u32((bits & 0xFFFF) << 16).view(f32)
        if code in HALF:
            return u16(bits & 0xFFFF).view(numpy_type)
        return u32(bits & 0xFFFFFFFF).view(numpy_type)
    try:
        number = float(text)
    except ValueError:
        return None
    if abs(abs(number) - ONE_OVER_TWO_PI) < 1e-6:  # printed with eight digits
        number = float(np.copysign(ONE_OVER_TWO_PI, number))
    if code in WIDE:
        return f64(number).view(numpy_type)
    if code == "b":
        return f32(number)
    if code in HALF:
        return f16(number).view(numpy_type)
    return f32(number).view(numpy_type)


def high_half_of_constant(text: str, code: str) -> Any:
    """Bits 31:16 of a constant in a 16-bit operand: an integer's sign, nothing behind a float."""
    try:
        bits = int(text, 0)
    except ValueError:
        bits = 0
    return constant(str(bits >> 16 & 0xFFFF), code)
