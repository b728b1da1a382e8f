"""Vector ALU instructions: everything around the functions of the tables.

Operands and their modifiers, DPP (a source from another lane), SDWA (bytes and words), clamp and
output modifiers, denormals, and results that are lane masks. Source: CDNA4 ISA, chapter 6 "Vector
ALU Operations", 12.19 and 13.3 for DPP and SDWA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .assembly import Instruction
from .definitions import EXEC, Unsupported, f32, unpack_mask
from .floats import flush_f32
from .matrix import compile_mfma
from .modifiers import DPP, DPP_CONTROLS, OUTPUT, SDWA, SDWA_SOURCES, refuse_unknown
from .operands import (
    Operand,
    Writer,
    destination,
    mask_destination,
    modified_source,
    value_of,
)
from .registers import FLOATS, HALF, NUMPY_TYPE, WIDE, sgpr, vgpr_row
from .vector_clamped import CLAMPED_INTEGERS
from .vector_conversions import SCALED_CONVERSION, compile_scaled_conversion
from .vector_lanes import SPECIALS
from .vector_packed import compile_packed
from .vector_table import VECTOR_ALU, Semantics

Execute = Callable[[], Any]

LANE = np.arange(64)
ROW, PLACE = LANE & ~15, LANE & 15


def _everywhere(lanes: Any) -> tuple[Any, Any]:
    return lanes, np.ones(64, bool)


DPP_SOURCES: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "quad_perm": lambda order: _everywhere((LANE & ~3) + np.array(order)[LANE & 3]),
    "row_shl": lambda n: (ROW + ((PLACE + n) & 15), PLACE + n < 16),
    "row_shr": lambda n: (ROW + ((PLACE - n) & 15), n <= PLACE),
    "row_ror": lambda n: _everywhere(ROW + ((PLACE - n) & 15)),
    "wave_shl": lambda n: ((LANE + 1) & 63, LANE < 63),
    "wave_rol": lambda n: _everywhere((LANE + 1) & 63),
    "wave_shr": lambda n: ((LANE - 1) & 63, LANE > 0),
    "wave_ror": lambda n: _everywhere((LANE - 1) & 63),
    "row_mirror": lambda _: _everywhere(ROW + 15 - PLACE),
    "row_half_mirror": lambda _: _everywhere((LANE & ~7) + 7 - (LANE & 7)),
    "row_newbcast": lambda n: _everywhere(ROW + n),
}
"""DPP control -> (source lane by lane, whether it lies within bounds). Source: CDNA4 ISA, 13.3
"DPP", table "DPP_CTRL Enumeration"; row_newbcast: LLVM's modifier syntax, gfx90a."""


def dpp_map(modifiers: dict[str, Any]) -> tuple[Any, Any, Any]:
    """-> (source lane, source within bounds, row and bank masks let the lane write), by lane"""
    controls = [name for name in modifiers if name in DPP_CONTROLS]
    if len(controls) != 1:
        raise Unsupported("DPP without one control")
    control = controls[0]
    value = modifiers[control]
    if control == "row_bcast" and value == 15:
        lanes, inside = np.maximum(ROW - 1, 0), LANE >= 16
    elif control == "row_bcast" and value == 31:
        lanes, inside = np.full(64, 31), LANE >= 32
    elif control in DPP_SOURCES:
        lanes, inside = DPP_SOURCES[control](value)
    else:
        raise Unsupported(f"DPP control {control}:{value}")
    rows, banks = modifiers.get("row_mask", 15), modifiers.get("bank_mask", 15)
    writes = ((rows >> (LANE >> 4)) & 1) & ((banks >> ((LANE >> 2) & 3)) & 1)
    return lanes, inside, writes.astype(bool)


ENCODINGS = ("_e64_dpp", "_e32", "_e64", "_sdwa", "_dpp")


def split_encoding(op: str) -> tuple[str, str]:
    """`v_add_f32_e64` -> (`v_add_f32`, `_e64`)"""
    for suffix in ENCODINGS:
        if op.endswith(suffix):
            return op[: -len(suffix)], suffix
    return op, ""


def compile_vector(machine: Any, instruction: Instruction, index: int) -> Execute | None:
    """The function of one v_ instruction; None when it does nothing."""
    base, encoding = split_encoding(instruction.op)
    if base in ("v_nop", "v_clrexcp"):
        return None
    special = SPECIALS.get(base)
    if special is not None:
        compile_special, accepted = special
        refuse_unknown(instruction, accepted)
        return compile_special(machine, instruction, base, index)
    if base.startswith("v_mfma"):
        return compile_mfma(machine, instruction, base)
    if base.startswith("v_pk_"):
        return compile_packed(machine, instruction, base)
    if base.startswith(SCALED_CONVERSION):
        return compile_scaled_conversion(machine, instruction, base)
    if base not in VECTOR_ALU:
        raise Unsupported(f"instruction {instruction.op}")
    return _VectorAlu(machine, instruction, base, encoding, index).compile()


IN_PLACE = frozenset(
    {
        np.add,
        np.subtract,
        np.multiply,
        np.fmax,
        np.fmin,
        np.bitwise_and,
        np.bitwise_or,
        np.bitwise_xor,
        np.maximum,
        np.minimum,
    }
)
"""Functions that may write their result straight into a register of the operands' type."""

SIGN_MODIFIERS = ("-v", "-s", "-a", "-|", "|", "neg(", "abs(")
MOVES = ("v_mov_b32", "v_accvgpr_read_b32", "v_accvgpr_write_b32", "v_accvgpr_mov_b32")


class _VectorAlu:
    """The decoding of one instruction of the table VECTOR_ALU."""

    def __init__(
        self, machine: Any, instruction: Instruction, base: str, encoding: str, index: int
    ) -> None:
        self.machine, self.base, self.index = machine, base, index
        self.modifiers = instruction.modifiers
        self.results, self.sources, self.function = VECTOR_ALU[base]
        self.is_dpp, self.is_sdwa = encoding.endswith("_dpp"), encoding == "_sdwa"
        # p and q: 16-bit results that leave the other half of the register alone
        self.code = {"p": "h", "q": self.sources[0]}.get(self.results[0], self.results[0])
        self.is_float = self.code in FLOATS
        self.scale = self.modifiers.get("mul", 1) / self.modifiers.get("div", 1)
        self._check_modifiers(instruction)
        self._split_operands(list(instruction.operands))

    def _check_modifiers(self, instruction: Instruction) -> None:
        accepted: set[str] = set()
        if self.is_dpp:
            accepted |= DPP
        elif self.is_sdwa:
            accepted |= SDWA_SOURCES if self.results[0] in "mx" else SDWA
        if not self.is_dpp and self.is_float:
            accepted |= OUTPUT
        elif self.base in CLAMPED_INTEGERS:
            accepted.add("clamp")
        codes = [*self.sources.replace("D", self.code), self.code]
        if not (self.is_dpp or self.is_sdwa) and any(code in HALF for code in codes):
            accepted.add("op_sel")
        refuse_unknown(instruction, accepted)
        for chosen, code in zip(self.modifiers.get("op_sel", ()), codes, strict=False):
            if chosen and code not in HALF:
                raise Unsupported(f"op_sel of a 32-bit operand of {instruction.op}")
        if self.scale not in (0.5, 1, 2, 4):
            raise Unsupported(f"output modifier {self.scale} on {instruction.op}")
        self._check_encoding(instruction)

    def _check_encoding(self, instruction: Instruction) -> None:
        """DPP and SDWA exist for instructions of one or two sources: 32 bits wide, and for DPP also
        64 bits with row_newbcast (LLVM's "DP ALU DPP")."""
        if not (self.is_dpp or self.is_sdwa):
            return
        wide = any(code in WIDE for code in self.results + self.sources)
        unknown = len(self.sources.rstrip("mD")) > 2 or (
            wide and (self.is_sdwa or "row_newbcast" not in self.modifiers)
        )
        if unknown or (self.is_dpp and self.results[0] in "mx"):
            raise Unsupported(f"instruction {instruction.op}")

    def _split_operands(self, operands: list[str]) -> None:
        count = len(self.results)
        self.outputs, names = operands[:count], operands[count:]
        if "D" in self.sources:  # the destination is a source as well
            place = self.sources.index("D")
            names = [*names[:place], self.outputs[0], *names[place:]]
        if len(names) < len(self.sources) and self.sources[-1] == "m":
            names.append("vcc")
        if len(names) != len(self.sources):
            raise Unsupported(f"{len(names)} sources instead of {len(self.sources)}")
        self.operands = [self._operand(j, name) for j, name in enumerate(names)]
        self.write_mask: Callable[[], Any] | None = None
        if self.is_dpp:
            self._take_from_other_lanes()

    def _operand(self, position: int, name: str) -> Operand:
        code = self.sources[position]
        if code == "m":
            pair, sgprs = sgpr(name), self.machine.sgprs_u8
            return lambda: unpack_mask(sgprs, pair)
        code = self.code if code == "D" else code
        sdwa = self.is_sdwa and position < 2
        if code in "uU" and self.base != "v_cndmask_b32" and name.startswith(SIGN_MODIFIERS):
            # bits: only where the assembler has float modifiers do these act on the sign bit
            raise Unsupported("negation or absolute value of an integer")
        return modified_source(self.machine, name, code, self.modifiers, position, sdwa, self.index)

    def _take_from_other_lanes(self) -> None:
        """DPP: the first source comes from other lanes; without bound_ctrl a lane whose source
        is out of bounds or disabled keeps its old value, with it the source reads as 0."""
        machine, first = self.machine, self.operands[0]
        lanes, inside, writes = dpp_map(self.modifiers)
        # before gfx11 both spellings, bound_ctrl:0 and :1, set the bit
        zero_fill, all_inside = "bound_ctrl" in self.modifiers, bool(inside.all())

        def permuted() -> Any:
            values = np.broadcast_to(value_of(first), (machine.waves, 64))[:, lanes]
            if zero_fill and not (all_inside and machine.all_lanes):
                valid = inside & machine.exec_mask[:, lanes]
                values = np.where(valid, values, values.dtype.type(0))
            return values

        def write_mask() -> Any:
            mask = machine.exec_mask & writes
            return mask if zero_fill else mask & inside & machine.exec_mask[:, lanes]

        self.operands[0], self.write_mask = permuted, write_mask

    # ---- the function --------------------------------------------------------------------------
    def compile(self) -> Execute:
        if self.results[0] in "mx":
            return self._comparison()
        clamp = bool(self.modifiers.get("clamp"))
        if clamp and not self.is_float:
            self.function, clamp = CLAMPED_INTEGERS[self.base], False
        flush = (
            self.machine.may_flush
            and self.code == "f"
            and self.base not in ("v_mov_b32", "v_cndmask_b32")
            and "f" in self.sources
        )
        plain = not (self.is_sdwa or self.is_dpp or clamp or self.scale != 1 or flush)
        if plain and self._may_write_in_place():
            return self._in_place()
        if plain and self.base in MOVES and not callable(self.operands[0]):
            return self._move()
        if clamp or self.scale != 1 or flush:
            self.function = self._with_output_modifiers(clamp, flush)
        return self._general()

    def _comparison(self) -> Execute:
        """A lane mask to an SGPR pair, and for v_cmpx to EXEC as well."""
        function = self.function
        first, second = self.operands
        write = mask_destination(self.machine, self.outputs[0])
        if self.results == "m":

            def compare() -> None:
                write(function(value_of(first), value_of(second)))

            return compare
        machine, only_exec = self.machine, sgpr(self.outputs[0]) == EXEC
        write_exec = mask_destination(machine, "exec")

        def compare_and_restrict() -> None:
            lanes = function(value_of(first), value_of(second))
            if not machine.all_lanes:
                lanes = lanes & machine.exec_mask
            if not only_exec:
                write(lanes)
            write_exec(lanes)

        return compare_and_restrict

    def _may_write_in_place(self) -> bool:
        return (
            isinstance(self.function, np.ufunc)
            and self.function in IN_PLACE
            and self.results in ("u", "i", "f")
            and self.sources == self.code * 2
        )

    def _in_place(self) -> Execute:
        machine, function, enabled = self.machine, self.function, self.machine.exec_mask
        register = machine.vgprs.view(NUMPY_TYPE[self.code])[vgpr_row(machine, self.outputs[0])]
        a, b = self.operands
        if not callable(a) and not callable(b):

            def execute() -> None:
                if machine.all_lanes:
                    function(a, b, out=register)
                else:
                    function(a, b, out=register, where=enabled)

            return execute

        def execute_with_calls() -> None:
            if machine.all_lanes:
                function(value_of(a), value_of(b), out=register)
            else:
                function(value_of(a), value_of(b), out=register, where=enabled)

        return execute_with_calls

    def _move(self) -> Execute:
        machine, enabled, value = self.machine, self.machine.exec_mask, self.operands[0]
        register = machine.vgprs[vgpr_row(machine, self.outputs[0])]

        def move() -> None:
            if machine.all_lanes:
                register[...] = value
            else:
                np.copyto(register, value, where=enabled)

        return move

    def _with_output_modifiers(self, clamp: bool, flush: bool) -> Callable[..., Any]:
        """The function with denormals flushed, output modifier and clamp, in this order.

        Output modifiers are ignored while denormals are kept; clamp turns NaN into 0 (DX10_CLAMP,
        which compilers set). Source: CDNA4 ISA, 6.2.2 and 6.5.
        """
        function, mode, is_f32 = self.function, self.machine.mode, self.code == "f"
        numpy_type = NUMPY_TYPE[self.code]
        zero, one, scale = numpy_type(0), numpy_type(1), numpy_type(self.scale)

        def modified(*values: Any) -> Any:
            flushes = flush and mode.flush_f32
            if flushes:
                values = tuple(
                    flush_f32(v) if getattr(v, "dtype", None) == f32 else v for v in values
                )
            result = function(*values)
            mask = None
            if isinstance(result, tuple):
                result, mask = result
            if flushes:
                result = flush_f32(result)
            if scale != one and (mode.flush_f32 if is_f32 else mode.flush_f16):
                result = result * scale
            if clamp:
                # + 0: -0 becomes +0 as well
                result = np.where(np.isnan(result), zero, np.clip(result, zero, one) + zero)
            return result if mask is None else (result, mask)

        return modified

    def _destination(self) -> Writer:
        chosen, place = self.modifiers.get("op_sel", ()), len(self.sources)
        sdwa = (
            (
                self.modifiers.get("dst_sel", "DWORD"),
                self.modifiers.get("dst_unused", "UNUSED_PAD"),
            )
            if self.is_sdwa
            else ("DWORD", "UNUSED_PAD")
        )
        return destination(
            self.machine,
            self.outputs[0],
            self.code,
            high=chosen[place] if place < len(chosen) else 0,
            preserve=self.results[0] in "pq",
            sdwa=sdwa,
        )

    def _general(self) -> Execute:
        write, function, operands = self._destination(), self.function, self.operands
        where = self.write_mask
        if len(self.results) > 1:
            write_carry = mask_destination(self.machine, self.outputs[1])

            def execute_with_mask() -> None:
                result, mask = function(*[value_of(x) for x in operands])
                write(result, None if where is None else where())
                write_carry(mask)

            return execute_with_mask
        if where is not None:
            write_where = where

            def execute_masked() -> None:
                write(function(*[value_of(x) for x in operands]), write_where())

            return execute_masked
        return _plain_call(write, function, operands)


def _plain_call(write: Writer, function: Semantics, operands: list[Operand]) -> Execute:
    """write(function(operands)) without a loop: most instructions go through here."""
    calls = any(callable(operand) for operand in operands)
    if len(operands) == 1:
        a = operands[0]
        return (lambda: write(function(a()))) if calls else (lambda: write(function(a)))
    if len(operands) == 2:
        a, b = operands
        if calls:
            return lambda: write(function(value_of(a), value_of(b)))
        return lambda: write(function(a, b))
    if len(operands) == 3:
        a, b, c = operands
        if calls:
            return lambda: write(function(value_of(a), value_of(b), value_of(c)))
        return lambda: write(function(a, b, c))
    return lambda: write(function(*[value_of(x) for x in operands]))
