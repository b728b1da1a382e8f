"""`vllm-amdopt emulate-report`: what a run on the CPU engine gfx942 or gfx950 executed.

Reads the records that VLLM_AMDOPT_EMULATE_REPORT made the processes write; emulates nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_amdopt.emulator.report import (
    KernelRecord,
    ProcessRecord,
    classes,
    find,
    hottest_lines,
    merge,
    read,
)

VARIABLE = "VLLM_AMDOPT_EMULATE_REPORT"

COLUMNS = {
    "matrix": ("mfma",),
    "vector": ("valu",),
    "scalar": ("salu", "branch"),
    "memory": ("vmem_load", "vmem_store", "vmem_atomic", "smem"),
    "LDS": ("lds",),
    "wait": ("waitcnt", "barrier", "nop", "cache_ctl"),
}
"""Columns of the table, and the emulator's classes of instructions that each adds up."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "records",
        nargs="?",
        metavar="PATH",
        help=f"what {VARIABLE} was in the run (default: what it is now)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--lines", type=int, default=10, metavar="N", help="how many source lines (default: 10)"
    )


def run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Print the report. ValueError, with a sentence, where there is nothing to report."""
    target = options.records or environment.get(VARIABLE, "").strip()
    if not target:
        raise ValueError(
            f"no records given: set {VARIABLE}=DIRECTORY for the run, then name DIRECTORY here"
        )
    paths = find(target)
    if not paths:
        reason = "holds no record" if Path(target).is_dir() else "does not exist"
        raise ValueError(
            f"{target} {reason}: processes write theirs when they end, if they were started with "
            f"{VARIABLE}={target} and an emulated CPU engine, and ran one of our kernels"
        )
    processes = [read(path) for path in paths]
    kernels = merge(processes)
    if options.json:
        print(json.dumps(as_json(processes, kernels, options.lines), indent=1))
    else:
        print(render(processes, kernels, options.lines))
    return 0


def as_json(
    processes: Sequence[ProcessRecord], kernels: Sequence[KernelRecord], lines: int
) -> dict[str, Any]:
    """The report as plain data; bytes and wave instructions are exact."""
    return {
        "processes": [
            {"pid": p.pid, "gfx": p.gfx, "started": p.started, "program": p.program}
            for p in processes
        ],
        "kernels": [
            {
                **{key: value for key, value in asdict(kernel).items() if key != "lines"},
                "hbm_bytes_read": kernel.read_bytes,
                "hbm_bytes_written": kernel.written_bytes,
                "lds_bytes_read": kernel.lds_read_bytes,
                "lds_bytes_written": kernel.lds_written_bytes,
            }
            for kernel in kernels
        ],
        "wave_instructions_by_class": classes(kernels),
        "hottest_lines": [
            {"line": line, "kernel": kernel, "wave_instructions": count}
            for line, kernel, count in _with_lines(kernels)[:lines]
        ],
    }


def render(processes: Sequence[ProcessRecord], kernels: Sequence[KernelRecord], lines: int) -> str:
    """The report as text."""
    chips = ", ".join(sorted({process.gfx for process in processes}))
    launches = sum(kernel.launches for kernel in kernels)
    instructions = sum(kernel.wave_instructions for kernel in kernels)
    text = [
        f"emulated {chips}: {_count(len(processes), 'process', 'processes')}, "
        f"{_count(launches, 'launch', 'launches')}, {instructions:,} wave instructions",
        "",
    ]
    head = ["kernel", "launches", "workgroups", "wave instr.", *COLUMNS]
    head += ["HBM read", "HBM written", "LDS read", "LDS written", "emulator s"]
    rows = [head]
    total = KernelRecord("all")
    for kernel in kernels:
        total.add(kernel)
    for kernel in [*kernels, total] if len(kernels) > 1 else kernels:
        rows.append(_row(kernel))
    text += _table(rows)
    text += [
        "",
        "HBM: what the lanes asked of global memory; the emulator has no caches, a GPU may ask "
        "for less.",
        "",
    ]
    hottest = _with_lines(kernels)[:lines]
    if not hottest:
        text.append("No source lines: the kernels were compiled without line information.")
        return "\n".join(text)
    text.append("hottest source lines")
    rows = [["wave instr.", "share", "line", "kernel"]]
    for line, name, count in hottest:
        rows.append([f"{count:,}", f"{count / max(instructions, 1):.1%}", line, name])
    return "\n".join([*text, *_table(rows)])


def _with_lines(kernels: Sequence[KernelRecord]) -> list[tuple[str, str, int]]:
    return [one for one in hottest_lines(kernels) if one[0]]


def _row(kernel: KernelRecord) -> list[str]:
    name = f"{kernel.kernel} ({kernel.source})" if kernel.source else kernel.kernel
    counts = [kernel.launches, kernel.workgroups, kernel.wave_instructions]
    counts += [sum(kernel.instructions.get(k, 0) for k in group) for group in COLUMNS.values()]
    sizes = [kernel.read_bytes, kernel.written_bytes]
    sizes += [kernel.lds_read_bytes, kernel.lds_written_bytes]
    return [name, *(f"{n:,}" for n in counts), *map(_size, sizes), f"{kernel.seconds:.1f}"]


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _size(number: int) -> str:
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= step:
            return f"{number / step:.1f} {unit}"
    return f"{number} B"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
