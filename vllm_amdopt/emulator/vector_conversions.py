"""Conversions to and from FP8, BF8 and FP4: plain ones, and those of gfx950 with a scale.

Source: CDNA3 and CDNA4 ISA, V_CVT_*_{FP8,BF8} in 12.8 (VOP1) and 12.11 (VOP3), 6.7.1 "Packed
Convert"; the selections by byte and word are op_sel of VOP3 or SDWA's src0_sel.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .assembly import Instruction
from .definitions import Unsupported, f16, f32, f64, i32, u8, u16, u32
from .modifiers import SDWA, refuse_unknown
from .operands import SDWA_SELECT, f32_to_bf16, modified_source, source, value_of
from .registers import vgpr_row
from .small_floats import E2M1, E4M3, E5M2, MiniFloat, bf8, fp8
from .vector_floats import pack_halves
from .vector_lanes import special

array = np.asarray
SCALED_CONVERSION = "v_cvt_scalef32_"


def bytes_of(machine: Any, row: int) -> Any:
    """A vector register as bytes (waves, 64, 4)."""
    return machine.vgprs.view(u8).reshape(*machine.vgprs.shape, 4)[row]


@special(
    "v_cvt_f32_fp8",
    "v_cvt_f32_bf8",
    "v_cvt_pk_f32_fp8",
    "v_cvt_pk_f32_bf8",
    modifiers=SDWA | {"op_sel"},
)
def _from_fp8(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
    """One byte to f32, or two of one word to a pair of f32."""
    modifiers = instruction.modifiers
    form = (fp8 if base.endswith("_fp8") else bf8)(machine.arch)
    packed, chosen = "_pk_" in base, modifiers.get("op_sel", [0, 0])
    if modifiers.get("dst_sel", "DWORD") != "DWORD":
        raise Unsupported("part of a register as the destination")
    select = modifiers.get("src0_sel", "DWORD")
    if select != "DWORD":
        if select.startswith("WORD") != packed:
            raise Unsupported(f"select {select}")
        shift = SDWA_SELECT[select][0]
    elif packed:
        shift = 16 * chosen[0]
    else:
        shift = 8 * (chosen[0] + 2 * (chosen[1] if len(chosen) > 1 else 0))
    operand = source(machine, instruction.operands[1], "u")
    row = vgpr_row(machine, instruction.operands[0])
    first, second = machine.vgprs_f32[row], machine.vgprs_f32[row + 1]

    def execute() -> None:
        codes = value_of(operand) >> u32(shift)
        enabled = True if machine.all_lanes else machine.exec_mask
        low = form.decode(codes & u32(255))
        if packed:
            np.copyto(second, form.decode((codes >> u32(8)) & u32(255)), where=enabled)
        np.copyto(first, low, where=enabled)

    return execute


@special("v_cvt_pk_fp8_f32", "v_cvt_pk_bf8_f32", modifiers={"op_sel"})
def _to_fp8(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
    """Two f32 to the bytes of one word; the other word stays."""
    form = (fp8 if "_fp8" in base else bf8)(machine.arch)
    chosen = instruction.modifiers.get("op_sel", [0, 0, 0])
    if any(chosen[:2]):
        raise Unsupported("op_sel of a 32-bit operand")
    a, b = (
        modified_source(machine, name, "f", {}, j)
        for j, name in enumerate(instruction.operands[1:3])
    )
    row, mode = vgpr_row(machine, instruction.operands[0]), machine.mode
    word = machine.vgprs_u16[row, :, :, chosen[-1] if len(chosen) > 2 else 0]

    def execute() -> None:
        low, high = form.encode(value_of(a), mode.saturate), form.encode(value_of(b), mode.saturate)
        np.copyto(word, (low | (high << u32(8))).astype(u16), where=machine.exec_mask)

    return execute


@special("v_cvt_sr_fp8_f32", "v_cvt_sr_bf8_f32", modifiers={"op_sel"})
def _to_fp8_stochastically(machine: Any, instruction: Instruction, base: str, index: int) -> Any:
    """One f32 to one byte: random bits of the second source are added, then the rest is cut off
    (as for normal results; denormal ones are rounded to nearest afterwards)."""
    form = (fp8 if "_fp8" in base else bf8)(machine.arch)
    chosen = instruction.modifiers.get("op_sel", [0] * 4)
    if any(chosen[:2]):
        raise Unsupported("op_sel of a 32-bit operand")
    operand = modified_source(machine, instruction.operands[1], "f", {}, 0)
    random = source(machine, instruction.operands[2], "u")
    byte = chosen[2] + 2 * chosen[3] if len(chosen) > 3 else 0
    target = bytes_of(machine, vgpr_row(machine, instruction.operands[0]))[..., byte]
    dropped, mode = 23 - form.mantissa_bits, machine.mode
    shape = (machine.waves, 64)

    def execute() -> None:
        value = np.ascontiguousarray(np.broadcast_to(value_of(operand), shape))
        noise = np.broadcast_to(array(value_of(random)), shape) >> u32(32 - dropped)
        kept = u32(0xFFFFFFFF ^ ((1 << dropped) - 1))
        cut = ((value.view(u32) + noise) & kept).view(f32)
        codes = form.encode(np.where(np.isfinite(value), cut, value), mode.saturate)
        np.copyto(target, codes.astype(u8), where=machine.exec_mask)

    return execute


# ---- gfx950: conversions with a scale ---------------------------------------------------------
SMALL: dict[str, MiniFloat] = {"fp8": E4M3, "bf8": E5M2, "fp4": E2M1}
_NAME = re.compile(
    SCALED_CONVERSION + r"(pk_)?(?:(f32|f16|bf16)_(fp8|bf8|fp4)|(fp8|bf8|fp4)_(f32|f16|bf16))$"
)


def _power_of_two(scale: Any) -> Any:
    """The f32 scale's exponent alone counts."""
    exponent = (array(value_of(scale)).view(u32) >> u32(23)) & u32(255)
    return np.ldexp(1.0, exponent.astype(i32) - 127)


def compile_scaled_conversion(machine: Any, instruction: Instruction, base: str) -> Any:
    """V_CVT_SCALEF32_[PK_]<to>_<from>: times the scale on the way up, divided on the way down."""
    match = _NAME.match(base)
    if not match or (match[4] and not match[1]):
        raise Unsupported(f"instruction {instruction.op}")
    refuse_unknown(instruction, {"op_sel"})
    if match[2]:
        return _scaled_up(machine, instruction, SMALL[match[3]], match[2], bool(match[1]))
    return _scaled_down(machine, instruction, SMALL[match[4]], match[5])


def _scaled_up(
    machine: Any, instruction: Instruction, form: MiniFloat, to: str, packed: bool
) -> Any:
    chosen = instruction.modifiers.get("op_sel", [0] * 4)
    row, enabled = vgpr_row(machine, instruction.operands[0]), machine.exec_mask
    codes = source(machine, instruction.operands[1], "u")
    scale = source(machine, instruction.operands[2], "f")
    bits, count = (4 if form is E2M1 else 8), (2 if packed else 1)
    # a byte (one FP8 or two FP4), or a word of two FP8
    by_byte = bits == 4 or not packed
    shift = 8 * (chosen[0] + 2 * chosen[1]) if by_byte else 16 * chosen[0]
    high = (chosen[3] if len(chosen) > 3 else chosen[2]) if len(chosen) > 2 else 0

    def execute() -> None:
        raw, factor = value_of(codes) >> u32(shift), _power_of_two(scale)
        values = [
            (
                form.decode((raw >> u32(bits * j)) & u32((1 << bits) - 1)).astype(f64) * factor
            ).astype(f32)
            for j in range(count)
        ]
        if to == "f32":
            for j, value in enumerate(values):
                np.copyto(machine.vgprs_f32[row + j], value, where=enabled)
            return
        narrow = [
            value.astype(f16).view(u16) if to == "f16" else f32_to_bf16(value) for value in values
        ]
        if packed:
            np.copyto(machine.vgprs[row], pack_halves(*narrow), where=enabled)
        else:
            np.copyto(machine.vgprs_u16[row, :, :, high], narrow[0], where=enabled)

    return execute


def _scaled_down(machine: Any, instruction: Instruction, form: MiniFloat, of: str) -> Any:
    chosen = instruction.modifiers.get("op_sel", [0] * 4)
    row, enabled, names = vgpr_row(machine, instruction.operands[0]), machine.exec_mask, None
    names = instruction.operands[1:]
    if of == "f32":
        pair = [source(machine, names[0], "f"), source(machine, names[1], "f")]
    else:
        code = "h" if of == "f16" else "b"
        pair = [source(machine, names[0], code, high=half) for half in (0, 1)]
    scale, mode = source(machine, names[-1], "f"), machine.mode
    place = chosen[2:] or [0]

    def execute() -> None:
        factor = _power_of_two(scale)
        low, high = (
            form.encode(array(value_of(x)).astype(f64) / factor, mode.saturate) for x in pair
        )
        if form is E2M1:
            byte = place[0] + 2 * (place[1] if len(place) > 1 else 0)
            codes = (low | (high << u32(4))).astype(u8)
            np.copyto(bytes_of(machine, row)[..., byte], codes, where=enabled)
        else:
            codes = (low | (high << u32(8))).astype(u16)
            np.copyto(machine.vgprs_u16[row, :, :, place[-1]], codes, where=enabled)

    return execute
