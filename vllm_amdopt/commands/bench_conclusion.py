"""What a serving comparison came to, in words and as an exit code, from its record alone."""

from vllm_amdopt.bench.analysis import Cell, Comparison, analyse, exit_code
from vllm_amdopt.run_record import RecordError, RunRecord

EXIT_INVALID = 4

MOST_REASONS = 5
"""Rows that do not count are said one by one up to here; the record has them all."""


def conclude(record: RunRecord, *, require_conclusive: bool) -> tuple[str, int]:
    """The text to print and the exit code.

    An arm that this model or machine cannot run is said and judged no further.
    """
    analysis = analyse(record)
    lines: list[str] = []
    for comparison in analysis.comparisons:
        if comparison.unsupported:
            lines.append(f"{comparison.candidate} is left out: {comparison.unsupported}")
        else:
            lines += _compared(comparison)
    bad = [row for row in analysis.set_aside if row.status != "unsupported"]
    lines += [
        f"{row.status}: {row.arm}, block {row.block + 1}: {row.reason}"
        for row in bad[:MOST_REASONS]
    ]
    if len(bad) > MOST_REASONS:
        lines.append(f"and {len(bad) - MOST_REASONS} rows more that do not count")
    return "\n".join(lines), exit_code(analysis, require_conclusive)


def provisional(record: RunRecord) -> str:
    """What the primary metric shows while a run goes on.

    Whoever stops where it looks good finds a difference too often: docs/statistics.md.
    """
    shown = []
    try:
        comparisons = analyse(record).comparisons
    except RecordError:  # then the end of the run says so; it is no reason to stop now
        return ""
    for comparison in comparisons:
        if not comparison.unsupported and not comparison.invalid:
            cells = ", ".join(told(cell) for cell in comparison.primary)
            shown.append(f"{comparison.candidate} {cells}")
    return "; ".join(shown)


def _compared(comparison: Comparison) -> list[str]:
    names = f"{comparison.candidate} against {comparison.baseline}"
    cells = {cell.name: cell for cell in (*comparison.primary, *comparison.gates)}
    lines = [f"{names}: {comparison.outcome}, by {comparison.blocks} blocks"]
    if comparison.invalid:
        lines[0] += f" ({comparison.invalid})"
    lines += [f"  {cell.name}: {told(cell)}" for cell in cells.values()]
    for arm, drift in comparison.drifts.items():
        lines.append(f"  {arm} drifts over the blocks (p={drift.p:.3f}): see the report")
    return lines


def told(cell: Cell) -> str:
    """`+2.1 % [+1.0 %, +3.2 %], could have seen 1.4 %: better`."""
    if cell.improvement is None or cell.effect is None:
        return cell.missing or "not judged"
    change = cell.improvement
    if change.low is None or change.high is None:
        return f"{change.value:+.2%} in one block, which has no interval"
    seen = cell.effect.detectable
    could = "" if seen is None else f", could have seen {seen - 1:.1%}"
    return f"{change.value:+.2%} [{change.low:+.2%}, {change.high:+.2%}]{could}: {cell.verdict}"
