"""What the numbers of a record do not say: the paragraph that every report ends with."""

import json
from collections.abc import Iterable

from vllm_amdopt.bench.analysis import Analysis, Comparison
from vllm_amdopt.bench.report import words

ENOUGH_BLOCKS = 6
"""Below that a sign-flip test cannot reach 0.05, and a report is indicative only."""

SHOWN_ROWS = 20


def limits(analysis: Analysis) -> list[str]:
    """Sentences, the gravest first."""
    record = analysis.record
    said: list[str] = []
    if record.synthetic:
        said.append("These numbers are synthetic: made up to show the report, measured nowhere.")
    said += _machine(analysis)
    if analysis.comparisons and analysis.blocks < ENOUGH_BLOCKS:
        said.append(
            f"Only {words.counted(analysis.blocks, 'block')}: indicative. From "
            f"{ENOUGH_BLOCKS} blocks on, even a test without assumptions can reach 5 %."
        )
    for comparison in analysis.comparisons:
        said += _of_comparison(comparison)
    if analysis.set_aside:
        kinds = [
            f"{sum(row.status == status for row in analysis.set_aside)} {status}"
            for status in ("error", "tainted", "unsupported")
            if any(row.status == status for row in analysis.set_aside)
        ]
        said.append(
            f"{words.counted(len(analysis.set_aside), 'run does', 'runs do')} not count "
            f"({', '.join(kinds)}); the reasons are listed above."
        )
    if record.kind == "serving_ab":
        said.append(
            "The noise floor of this machine is not part of this record: `vllm-amdopt bench aa` "
            "with the same workload shows how much two identical arms differ."
        )
    if "random" in {str(level.fields.get("dataset")) for level in analysis.levels}:
        said.append(
            "Prompts are random tokens of fixed lengths: real prompts differ in length, share "
            "prefixes and stop by themselves."
        )
    if record.kind.startswith(("serving", "startup")):
        said.append(
            "All blocks ran on one machine, one after the other; the intervals cover launches and "
            "runs on this machine, not other machines, drivers or models."
        )
    return [*said, *record.notes]


def _machine(analysis: Analysis) -> list[str]:
    record = analysis.record
    known = json.dumps(dict(record.machine)).lower()
    if "gfx942" in known or "gfx950" in known:
        return []
    if "emulated" in json.dumps([dict(arm.environment) for arm in record.arms]).lower():
        return ["Kernels were emulated: these times say nothing about a GPU."]
    return [
        "The record names no AMD Instinct GPU (gfx942, gfx950): these times say nothing about one."
    ]


def _of_comparison(comparison: Comparison) -> list[str]:
    said = []
    unpaired = [
        level.label
        for level in comparison.levels
        if not comparison.logs(level, comparison.primary_metric)
    ]
    if unpaired:
        said.append(
            f"{words.listed(unpaired)}: no block in which both {comparison.baseline} and "
            f"{comparison.candidate} have a number, so no part of any mean over all levels."
        )
    for arm, found in comparison.drifts.items():
        direction = "rises" if found.correlation > 0 else "falls"
        said.append(
            f"{comparison.primary_metric.label} of {arm} {direction} from block to block "
            f"(Spearman {found.correlation:+.2f}, p {found.p:.3f}): the machine drifts. Pairing "
            "takes out what both arms share."
        )
    order = comparison.order
    if order is not None and order.p < 0.05:
        said.append(
            f"It matters which arm runs second (B/A differs by "
            f"{words.percent(order.ratio - 1)} between the orders, p {order.p:.3f}): something "
            "is carried over from one launch to the next. Balanced orders cancel it."
        )
    for cell in comparison.primary:
        if cell.effect is None or not cell.effect.outliers:
            continue
        blocks = ", ".join(str(index + 1) for index in cell.effect.outliers)
        said.append(
            f"{cell.name}: block {blocks} lies far from the others; B/A is "
            f"{words.percent(cell.effect.ratio - 1)} with it and "
            f"{words.percent(cell.effect.ratio_without - 1)} without."
        )
    return said


def set_aside_lines(analysis: Analysis) -> Iterable[str]:
    """The runs that do not count, with their reasons."""
    for row in analysis.set_aside[:SHOWN_ROWS]:
        level = next(level for level in analysis.levels if level.fields == row.level)
        yield f"{row.status}: block {row.block + 1}, {row.arm}, {level.label}: {row.reason}"
    if len(analysis.set_aside) > SHOWN_ROWS:
        yield f"and {len(analysis.set_aside) - SHOWN_ROWS} more, in the record"
