"""The MODE register: what of it matters to results, and the bits it has."""

from __future__ import annotations

from typing import Any

from .definitions import Unsupported

ROUNDING_BITS, FP16_OVERFLOW_BIT = 0xF, 23


class FloatMode:
    """Denormal and overflow handling, the same for all waves of a launch.

    MODE[3:0] rounding (only nearest-even is emulated), MODE[5:4] denormals of f32, MODE[7:6] of
    f64 and f16 (3: kept; anything else counts as flushed), MODE[23] FP16_OVFL: conversions to f16
    and fp8 saturate. Source: CDNA4 ISA, 6.4 "Denormalized and Rounding Modes" and 3.5.
    """

    __slots__ = ("flush_f16", "flush_f32", "saturate")

    def __init__(self, flush_f32: bool, flush_f16: bool, saturate: bool) -> None:
        self.flush_f32, self.flush_f16, self.saturate = flush_f32, flush_f16, saturate

    @classmethod
    def of_descriptor(cls, descriptor: dict[str, Any]) -> FloatMode:
        """The mode a kernel starts with, from its .amdhsa_* directives."""
        for name in ("float_round_mode_32", "float_round_mode_16_64"):
            if int(descriptor.get(name, 0) or 0):
                raise Unsupported(f"rounding mode other than nearest even (.amdhsa_{name})")
        return cls(
            int(descriptor.get("float_denorm_mode_32", 3)) & 3 != 3,
            int(descriptor.get("float_denorm_mode_16_64", 3)) & 3 != 3,
            bool(int(descriptor.get("fp16_overflow", 0) or 0)),
        )

    def copy(self) -> FloatMode:
        return FloatMode(self.flush_f32, self.flush_f16, self.saturate)

    def set(self, other: FloatMode) -> None:
        """Take over another mode; whoever holds this object sees it."""
        self.flush_f32, self.flush_f16 = other.flush_f32, other.flush_f16
        self.saturate = other.saturate

    def read(self) -> int:
        """The register's value."""
        denormals = (0 if self.flush_f32 else 0x30) | (0 if self.flush_f16 else 0xC0)
        return denormals | int(self.saturate) << FP16_OVERFLOW_BIT

    def write(self, value: int) -> None:
        """Set the register; rounding other than to nearest even is refused."""
        if value & ROUNDING_BITS:
            raise Unsupported("rounding mode other than nearest even")
        self.set_denormals(value >> 4 & 15)
        self.saturate = bool(value >> FP16_OVERFLOW_BIT & 1)

    def set_denormals(self, bits: int) -> None:
        """MODE[7:4]."""
        self.flush_f32, self.flush_f16 = bits & 3 != 3, bits >> 2 & 3 != 3
