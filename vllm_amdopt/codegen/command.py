"""The command line: the table, JSON, or docs/codegen.md written or compared."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from vllm_amdopt.codegen.compilation import ARCHITECTURES, CodegenError, variants
from vllm_amdopt.codegen.report import CodegenReport, report
from vllm_amdopt.codegen.tables import render

DOCUMENT = Path("docs/codegen.md")


def main(arguments: list[str] | None = None) -> int:
    """Print the table (or JSON), or write or check the document; 1, with a sentence, on failure."""
    parser = argparse.ArgumentParser(
        prog="python -m vllm_amdopt.codegen",
        description="Compile the kernels for AMD GPUs without one and show what came out.",
    )
    parser.add_argument("--gfx", choices=ARCHITECTURES, help="only this chip (default: all)")
    parser.add_argument("--kernel", default="", help="only variants whose name contains this")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    document = parser.add_mutually_exclusive_group()
    document.add_argument(
        "--write", type=Path, metavar="FILE", help=f"write the document ({DOCUMENT})"
    )
    document.add_argument(
        "--check",
        type=Path,
        nargs="?",
        const=DOCUMENT,
        metavar="FILE",
        help="1 if the document is not what --write would write",
    )
    chosen = parser.parse_args(arguments)
    if chosen.write or chosen.check:
        return _document(chosen.write, chosen.check)
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


def _document(write: Path | None, check: Path | None) -> int:
    from vllm_amdopt.codegen.document import document

    try:
        text = document()
    except (CodegenError, ImportError) as error:
        print(f"codegen: {error}", file=sys.stderr)
        return 1
    if write:
        write.write_text(text, encoding="utf-8")
        return 0
    assert check is not None
    if check.is_file() and check.read_text(encoding="utf-8") == text:
        return 0
    print(
        f"codegen: {check} is not what the compiler and the emulator say; "
        f"run `python -m vllm_amdopt.codegen --write {check}`.",
        file=sys.stderr,
    )
    return 1
