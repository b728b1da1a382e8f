"""The reports as text: the table of the command. The document has its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_amdopt.codegen.report import CodegenReport


def counts(numbers: Mapping[Any, int]) -> str:
    """`9x128 16x32`, or - for nothing."""
    return " ".join(f"{n}x{key}" for key, n in numbers.items()) or "-"


def render(reports: list[CodegenReport]) -> str:
    """The reports as a table of plain text."""
    head = ["variant", "gfx", "vgpr", "agpr", "sgpr", "spills", "sgpr spills", "LDS", "warps"]
    head += [
        "waves/SIMD",
        "code",
        "loop",
        "full waits",
        "serial loads",
        "matrix instructions",
        "loads x bits",
        "stores x bits",
    ]
    rows = [head]
    for r in reports:
        numbers: list[float] = [
            r.vgpr,
            r.agpr,
            r.sgpr,
            r.spills,
            r.scalar_spills,
            r.lds_bytes,
            r.num_warps,
        ]
        numbers += [
            r.waves_per_simd,
            r.instructions,
            r.loop_instructions,
            r.loop_full_waits,
            r.loop_serial_loads,
        ]
        cells = [counts(r.matrix), counts(r.loads), counts(r.stores)]
        rows.append([r.variant, r.gfx, *(f"{number:g}" for number in numbers), *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
