"""The command line: prints predictions, a sweep, the assumptions, or a comparison with llvm-mca."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence

from benchmarks.amd_model import mca, report
from benchmarks.amd_model.assumptions import GFX, PRODUCT, machine
from benchmarks.amd_model.predict import Prediction, compiled, predict
from benchmarks.amd_model.sensitivity import REPRESENTATIVES, sweep
from benchmarks.amd_model.serving import Case, cases


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.amd_model",
        description="Predict kernel times on MI300X and MI355X from machine code. Not measured.",
        allow_abbrev=False,
    )
    parser.add_argument("--gfx", choices=GFX, help="only this chip (default: both)")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="TEXT",
        help="only this model or part of a shape: llama-8b, batch8, qkv (repeatable: all must fit)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="which assumption moves the prediction most (one case per kernel unless filtered)",
    )
    parser.add_argument(
        "--assumptions", action="store_true", help="print the assumptions and their sources"
    )
    parser.add_argument(
        "--page", action="store_true", help="print the table of docs/amd_model.md, in Markdown"
    )
    parser.add_argument(
        "--mca", action="store_true", help="compare the main loops with llvm-mca, where it is"
    )
    return parser


def _chosen(options: argparse.Namespace, gfx: str) -> Iterator[Case]:
    """The cases that fit: by kernel name, and by all texts in "model shape"."""
    filtered = options.kernel or options.shape
    for case in cases(gfx):
        if options.kernel not in case.kernel:
            continue
        # Whole words between slashes: batch1 is not meant to find batch128.
        words = f"/{case.model}/{case.shape}/"
        if not all(f"/{text.strip('/')}/" in words for text in options.shape):
            continue
        if options.sensitivity and not filtered and case.label not in REPRESENTATIVES:
            continue
        yield case


def _print_comparison(found: Sequence[Case], gfx: str) -> None:
    tool, sentence = mca.find_tool(gfx)
    if tool is None:
        print(f"{report.LABEL}  {PRODUCT[gfx]}: {sentence}")
        return
    rows = [["chip", "variant", "llvm-mca clocks", "this model", "ratio"]]
    seen = set()
    for case in found:
        variant = case.launches[0].variant
        if variant.name in seen:
            continue
        seen.add(variant.name)
        checked = mca.cross_check(compiled(variant, gfx).trace, machine(gfx), tool)
        if isinstance(checked, str):
            rows.append([PRODUCT[gfx], variant.name, checked, "", ""])
            continue
        ratio = checked.ours / checked.theirs
        numbers = [f"{checked.theirs:.0f}", f"{checked.ours:.0f}", f"{ratio:.2f}"]
        rows.append([PRODUCT[gfx], variant.name, *numbers])
    print("\n".join(report.table(rows)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; 1, with a sentence, where nothing fits or a kernel does not compile."""
    options = _parser().parse_args(arguments)
    if options.assumptions:
        print(report.assumptions_page(), end="")
        return 0
    from vllm_amdopt.codegen import CodegenError

    warnings.filterwarnings("ignore", module="triton")
    if options.page:
        print(report.predictions_page(), end="")
        return 0
    found: list[Prediction] = []
    swept = []
    fitting = False
    for gfx in (options.gfx,) if options.gfx else GFX:
        chosen = list(_chosen(options, gfx))
        fitting |= bool(chosen)
        try:
            if options.mca:
                _print_comparison(chosen, gfx)
                continue
            for case in chosen:
                found.append(predict(case, machine(gfx)))
                if options.sensitivity:
                    swept.append(sweep(case, machine(gfx)))
        except (CodegenError, ValueError) as error:
            print(f"amd_model: {error}", file=sys.stderr)
            return 1
    if not fitting:
        print(
            "amd_model: no kernel and shape fit; see serving.py for what there is.", file=sys.stderr
        )
        return 1
    if options.mca:
        return 0
    if options.json:
        records = [report.as_record(one) for one in found]
        for record, swings in zip(records, swept, strict=False):  # swept is empty without a sweep
            record["sensitivity"] = [
                {"assumption": s.assumption, "time_at_low": s.at_low, "time_at_high": s.at_high}
                for s in swings
            ]
        print(json.dumps(records, indent=1))
    elif options.sensitivity:
        for one, swings in zip(found, swept, strict=True):
            print("\n".join(report.swings(one, swings)))
    else:
        print("\n".join(report.predictions(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
