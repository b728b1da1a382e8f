"""The numbers as CSV: every row of the records, and every effect; no text of the report."""

import csv
import io
from collections.abc import Iterable, Sequence

from vllm_amdopt.bench.analysis import analyse
from vllm_amdopt.run_record import RunRecord

ROW_HEAD = (
    "kind",
    "synthetic",
    "block",
    "order",
    "position",
    "arm",
    "level",
    "repetition",
    "status",
    "reason",
)

EFFECT_HEAD = (
    "kind",
    "synthetic",
    "baseline",
    "candidate",
    "level",
    "metric",
    "unit",
    "baseline_mean",
    "candidate_mean",
    "blocks",
    "improvement",
    "low",
    "high",
    "p",
    "p_holm",
    "verdict",
)


def rows_csv(records: Sequence[RunRecord]) -> str:
    """Every row, also those that do not count; a column for each metric, empty if not measured."""
    names = sorted({name for record in records for row in record.rows for name in row.metrics})
    return _text(
        (*ROW_HEAD, *names),
        (
            (
                record.kind,
                record.synthetic,
                row.block,
                row.order,
                row.position,
                row.arm,
                " ".join(f"{name}={value}" for name, value in sorted(row.level.items())),
                row.repetition,
                row.status,
                row.reason,
                *(row.metrics.get(name, "") for name in names),
            )
            for record in records
            for row in record.rows
        ),
    )


def effects_csv(records: Sequence[RunRecord]) -> str:
    """Every effect; improvements and intervals as shares (0.042 is 4.2 %)."""
    return _text(EFFECT_HEAD, (line for record in records for line in _effects(record)))


def _effects(record: RunRecord) -> Iterable[tuple[object, ...]]:
    if not record.kind.startswith(("serving", "startup")):
        return
    for comparison in analyse(record).comparisons:
        for cell in comparison.cells.values():
            if cell.effect is None or cell.improvement is None:
                continue
            yield (
                record.kind,
                record.synthetic,
                *comparison.arms,
                "all levels" if cell.level is None else cell.level.label,
                cell.metric.name,
                cell.metric.unit,
                "" if cell.baseline is None else cell.baseline.mean,
                "" if cell.candidate is None else cell.candidate.mean,
                cell.effect.n,
                cell.improvement.value,
                _known(cell.improvement.low),
                _known(cell.improvement.high),
                _known(cell.effect.p),
                _known(cell.adjusted_p),
                cell.verdict,
            )


def _known(value: float | None) -> float | str:
    return "" if value is None else value


def _text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return file.getvalue()


def _harmless(cell: object) -> object:
    """A text that a spreadsheet would run as a formula, with a quote before it."""
    if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{cell}"
    return cell
