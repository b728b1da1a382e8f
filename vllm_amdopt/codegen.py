"""Compile every kernel variant for gfx942 and gfx950 without a GPU; report what came out.

    python -m vllm_amdopt.codegen [--gfx gfx942] [--kernel NAME_PART] [--json]

Registers, spills, LDS, matrix instructions and the widths of global loads and stores come from the
assembly that Triton's compiler emits for the chip. Nothing is run and nothing is timed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_amdopt.kernels.variants import CodegenVariant

ARCHITECTURES = ("gfx942", "gfx950")
_MEMORY = re.compile(r"^(?:global|buffer|flat)_(load|store)(?:_lds)?_(\w+)")
_BITS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "ushort": 16, "sshort": 16}
_BITS |= {"short": 16, "ubyte": 8, "sbyte": 8, "byte": 8}


class CodegenError(RuntimeError):
    """A variant did not compile; the message is a sentence with the variant's name."""


@dataclass(frozen=True)
class CodegenReport:
    """What became of one variant on one chip. Registers are per lane (vgpr, agpr) or wave (sgpr).

    On these chips vgpr counts the whole register file of a lane: ordinary and accumulation
    registers (agpr) together. loads and stores: bits per lane -> how many instructions.
    """

    variant: str
    gfx: str
    vgpr: int
    agpr: int
    sgpr: int
    spills: int
    scratch_bytes: int
    lds_bytes: int
    num_warps: int
    instructions: int
    matrix: dict[str, int] = field(default_factory=dict)
    loads: dict[int, int] = field(default_factory=dict)
    stores: dict[int, int] = field(default_factory=dict)


def variants(name_part: str = "") -> Iterator[CodegenVariant]:
    """The CODEGEN_VARIANTS of every kernel file, those whose name contains name_part."""
    from vllm_amdopt import kernels

    for module in sorted(m.name for m in pkgutil.iter_modules(kernels.__path__)):
        imported = importlib.import_module(f"{kernels.__name__}.{module}")
        for variant in getattr(imported, "CODEGEN_VARIANTS", ()):
            if name_part in variant.name:
                yield variant


def compile_variant(variant: CodegenVariant, gfx: str) -> Any:
    """The variant as a Triton CompiledKernel for `gfx`, or CodegenError if it does not compile."""
    try:
        from triton import knobs
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile
    except ImportError as error:
        raise CodegenError(
            f"Triton, which compiles the kernels, cannot be imported: {error}."
        ) from error
    if knobs.runtime.interpret:
        raise CodegenError("Triton's interpreter is on; unset TRITON_INTERPRET to compile kernels.")
    names = variant.kernel.arg_names
    missing = [n for n in names if n not in variant.signature and n not in variant.constexprs]
    if missing:
        raise CodegenError(
            f"{variant.name} gives no type or constant for {', '.join(missing)}; "
            "complete its CODEGEN_VARIANTS entry."
        )
    signature: dict[str, Any] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, name in enumerate(names):
        kind = "constexpr" if name in variant.constexprs else variant.signature[name]
        signature[name] = kind
        members = [((i,), kind)]
        if isinstance(kind, tuple):
            members = [((i, j), item) for j, item in enumerate(kind)]
        for path, item in members:
            pointer = item.startswith("*")
            if pointer or name in variant.divisible_by_16:
                aligned[path] = [["tt.divisibility", 16]]
            if pointer and gfx.startswith("gfx9"):
                # Triton's launcher finds this for tensors under 2 GiB: buffer instructions
                aligned[path].append(["tt.pointer_range", 32])
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "waves_per_eu": variant.waves_per_eu,
    }
    try:
        source = ASTSource(
            fn=variant.kernel,
            signature=signature,
            constexprs=dict(variant.constexprs),
            attrs=aligned,
        )
        return compile(source, target=GPUTarget("hip", gfx, 64), options=options)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise CodegenError(
            f"{variant.name} does not compile for {gfx}: {type(error).__name__}: {first}"
        ) from error


def _number(text: str, key: str) -> int:
    found = re.search(rf"^\s*-?\s*\.{key}:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def report(variant: CodegenVariant, gfx: str) -> CodegenReport:
    """Compile the variant and read the numbers from its assembly and metadata."""
    kernel = compile_variant(variant, gfx)
    text = kernel.asm["amdgcn"]
    matrix: Counter[str] = Counter()
    widths: dict[str, Counter[int]] = {"load": Counter(), "store": Counter()}
    instructions = 0
    for line in text.splitlines():
        words = line.split(None, 1)
        if not words or not re.match(r"(s|v|ds|global|buffer|flat|scratch)_", words[0]):
            continue
        instructions += 1
        name = words[0].removesuffix("_e32").removesuffix("_e64")
        if name.startswith(("v_mfma", "v_smfmac")):
            matrix[name] += 1
        access = _MEMORY.match(name)
        if access:
            width = access[2].removesuffix("_hi").removesuffix("_d16")
            widths[access[1]][_BITS.get(width, 0)] += 1
    return CodegenReport(
        variant=variant.name,
        gfx=gfx,
        vgpr=_number(text, "vgpr_count"),
        agpr=_number(text, "agpr_count"),
        sgpr=_number(text, "sgpr_count"),
        spills=_number(text, "vgpr_spill_count") + _number(text, "sgpr_spill_count"),
        scratch_bytes=_number(text, "private_segment_fixed_size"),
        lds_bytes=int(kernel.metadata.shared),
        num_warps=variant.num_warps,
        instructions=instructions,
        matrix=dict(sorted(matrix.items())),
        loads=dict(sorted(widths["load"].items(), reverse=True)),
        stores=dict(sorted(widths["store"].items(), reverse=True)),
    )


def _counts(counts: dict[Any, int]) -> str:
    return " ".join(f"{n}x{str(key).removeprefix('v_mfma_')}" for key, n in counts.items()) or "-"


def render(reports: list[CodegenReport]) -> str:
    """The reports as a table of plain text."""
    head = ["variant", "gfx", "vgpr", "agpr", "sgpr", "spills", "LDS", "warps", "code"]
    head += ["matrix instructions", "loads x bits", "stores x bits"]
    rows = [head]
    for r in reports:
        numbers = [r.vgpr, r.agpr, r.sgpr, r.spills, r.lds_bytes, r.num_warps, r.instructions]
        counts = [_counts(r.matrix), _counts(r.loads), _counts(r.stores)]
        rows.append([r.variant, r.gfx, *map(str, numbers), *counts])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table (or JSON); 1, with a sentence, if one is missing or does not compile."""
    parser = argparse.ArgumentParser(
        prog="python -m vllm_amdopt.codegen",
        description="Compile the kernels for AMD GPUs without one and show what came out.",
    )
    parser.add_argument("--gfx", choices=ARCHITECTURES, help="only this chip (default: all)")
    parser.add_argument("--kernel", default="", help="only variants whose name contains this")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    chosen = parser.parse_args(arguments)
    reports: list[CodegenReport] = []
    failed = False
    try:
        found = list(variants(chosen.kernel))
    except ImportError as error:
        print(f"codegen: the kernels cannot be imported: {error}.", file=sys.stderr)
        return 1
    if not found:
        print(f"codegen: no kernel variant has {chosen.kernel!r} in its name.", file=sys.stderr)
        return 1
    for variant in found:
        for gfx in (chosen.gfx,) if chosen.gfx else ARCHITECTURES:
            try:
                reports.append(report(variant, gfx))
            except CodegenError as error:
                print(f"codegen: {error}", file=sys.stderr)
                failed = True
    print(json.dumps([asdict(r) for r in reports], indent=1) if chosen.json else render(reports))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
