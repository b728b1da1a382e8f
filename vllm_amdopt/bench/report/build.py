"""From run records to the content of one report; the order of its sections is decided here."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from vllm_amdopt.bench.analysis import Analysis, Comparison, analyse
from vllm_amdopt.bench.report.content import (
    Banner,
    Block,
    Bullets,
    Commands,
    Grid,
    Paragraph,
    Report,
    Section,
    Text,
    section,
)
from vllm_amdopt.bench.report.curves import capacity, curves, memory, run_order
from vllm_amdopt.bench.report.limits import limits, set_aside_lines
from vllm_amdopt.bench.report.serving import (
    arms_table,
    banner,
    banner_of_many,
    metric_tables,
    overview,
    spread_table,
)
from vllm_amdopt.bench.report.startup import startup_section
from vllm_amdopt.bench.statistics import summary
from vllm_amdopt.run_record import Arm, RunRecord, Table

KIND_TITLES = {
    "serving_ab": "Serving, A/B",
    "serving_aa": "Serving, identical arms",
    "serving_ablation": "Serving, feature by feature",
    "startup": "Start-up",
    "accuracy_logits": "Accuracy of logits",
    "accuracy_tasks": "Accuracy of tasks",
    "kernels": "Kernels",
}

ORDER = tuple(KIND_TITLES)

MOST_BANNERS = 2
"""With more candidates there is one verdict on all of them, and a table."""

OUTCOME_HEADLINES = {"passed": "passed", "failed": "failed", "inconclusive": "no conclusion"}


def build(records: Sequence[RunRecord]) -> Report:
    """One report of all records, in the order of their kinds."""
    in_order = sorted(records, key=lambda record: (ORDER.index(record.kind), record.created))
    analyses = [analyse(record) for record in in_order]
    sections: list[Section] = []
    banners: list[Banner] = []
    for analysis in analyses:
        parts = _parts(analysis)
        banners += _banners(analysis)
        group = _title(analysis.record) if len(analyses) > 1 else ""
        sections += [replace(part, group=group) for part in parts]
    first = in_order[0]
    return Report(
        title=first.title or str(first.workload.get("model", "")) or KIND_TITLES[first.kind],
        subtitle=" · ".join(
            dict.fromkeys(f"{_title(record)}, {_when(record)}" for record in in_order)
        ),
        synthetic=any(record.synthetic for record in in_order),
        banners=tuple(banners),
        sections=tuple(sections),
    )


def _title(record: RunRecord) -> str:
    return KIND_TITLES[record.kind]


def _when(record: RunRecord) -> str:
    moment = datetime.fromisoformat(record.created)
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or 'local time'}"


def _banners(analysis: Analysis) -> list[Banner]:
    record = analysis.record
    if record.conclusion is not None:
        outcome = record.conclusion.outcome
        headline = f"{_title(record)}: {OUTCOME_HEADLINES[outcome]}"
        return [Banner(outcome, headline, record.conclusion.sentence)]
    if record.kind.startswith(("serving", "startup")):
        if len(analysis.comparisons) > MOST_BANNERS:
            return [banner_of_many(analysis)]
        return [banner(analysis, comparison) for comparison in analysis.comparisons]
    return []


def _parts(analysis: Analysis) -> list[Section]:
    record = analysis.record
    parts: list[Section | None] = []
    several = len(analysis.comparisons) > 1
    if several:
        parts.append(arms_table(analysis))
    for comparison in analysis.comparisons:
        if comparison.unsupported:
            continue
        if record.kind == "startup":
            found = [startup_section(comparison), spread_table(comparison), memory(comparison)]
        else:
            found = [
                overview(comparison),
                metric_tables(comparison),
                curves(comparison),
                capacity(comparison, record.workload),
                memory(comparison),
                _stability(comparison),
            ]
        name = f" ({comparison.candidate})" if several else ""
        parts += [replace(part, title=part.title + name) for part in found if part is not None]
    parts.append(section("Results", _tables(record) or _generic(analysis)))
    parts.append(_environment(record))
    parts.append(_reproduce(record))
    aside = tuple(set_aside_lines(analysis))
    parts.append(section("Runs that do not count", [Bullets(aside)] if aside else []))
    parts.append(section("Limits", [Bullets(tuple(limits(analysis)))]))
    return [part for part in parts if part is not None]


def _stability(comparison: Comparison) -> Section | None:
    spread = spread_table(comparison)
    return section(
        "Spread and robustness", [run_order(comparison), *(spread.blocks if spread else ())]
    )


# --- what tools finished themselves, and what nobody knows how to show --------------------------


def _tables(record: RunRecord) -> list[Block]:
    return [_table(table) for table in record.tables]


def _table(table: Table) -> Grid:
    return Grid(
        table.title,
        table.head,
        tuple(tuple(Text(cell, numeric=_is_number(cell)) for cell in row) for row in table.rows),
        note=table.note,
    )


def _is_number(cell: str) -> bool:
    return cell[:1].lstrip("+-−<≤>≥ ").isdigit() or (len(cell) > 1 and cell[1].isdigit())


def _generic(analysis: Analysis) -> list[Block]:
    """Means by arm and level of whatever is measured, for kinds without a page of their own."""
    record = analysis.record
    if record.kind.startswith(("serving", "startup")):
        return []
    names = dict.fromkeys(name for row in record.rows for name in row.metrics)
    rows = []
    for level in analysis.levels:
        for name in names:
            cells = []
            for arm in record.arms:
                values = analysis.values.get((arm.name, level.key, name), {})
                shown = f"{summary(list(values.values())).mean:.6g}" if values else "–"
                cells.append(Text(shown, numeric=True))
            if any(cell.text != "–" for cell in cells):
                rows.append((Text(level.label), Text(name), *cells))
    if not rows:
        return []
    head = ("Level", "Metric", *(arm.name for arm in record.arms))
    return [Grid("By level", head, tuple(rows))]


# --- where it ran, and how to run it again ------------------------------------------------------


def _environment(record: RunRecord) -> Section | None:
    names = [arm.name for arm in record.arms]
    different = [
        (Text(variable), *(Text(values.get(name) or "(not set)") for name in names))
        for variable, values in record.environment_difference.items()
    ]
    blocks: list[Block] = []
    if different:
        blocks.append(Grid("What differs between the arms", ("Setting", *names), tuple(different)))
    elif len(names) > 1:
        blocks.append(Paragraph("The arms have the same variables and arguments."))
    evidence = tuple(f"{arm.name}: {line}" for arm in record.arms for line in arm.evidence)
    if evidence:
        blocks.append(Paragraph("What shows that the treatment was active, and where it was not:"))
        blocks.append(Bullets(evidence))
    plain = {name: value for name, value in record.workload.items() if not _is_nested(value)}
    nested = {name: value for name, value in record.workload.items() if _is_nested(value)}
    for title, facts in (
        ("Workload", plain),
        ("Workload in detail", nested),
        ("Machine", record.machine),
        ("Software", record.software),
    ):
        rows = tuple((Text(name), Text(value)) for name, value in flat(facts))
        if rows:
            blocks.append(Grid(title, (title, ""), rows, folded=title != "Workload"))
    return section("Environment", blocks)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as one list: {"gpu": {"0": "MI300X"}} -> ("gpu 0", "MI300X")."""
    found: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{name} ")
        elif isinstance(value, list | tuple) and all(
            isinstance(entry, str | int | float) for entry in value
        ):
            found.append((f"{prefix}{name}", ", ".join(str(entry) for entry in value)))
        elif isinstance(value, list | tuple):
            entries = {str(index): entry for index, entry in enumerate(value)}
            found += flat(entries, f"{prefix}{name} ")
        elif value is not None:
            found.append((f"{prefix}{name}", str(value)))
    return found


def _reproduce(record: RunRecord) -> Section | None:
    lines = list(record.commands)
    if not lines:
        return None
    blocks: list[Block] = [Commands(tuple(lines))]
    servers = [_server_command(record, arm) for arm in record.arms if arm.serve_arguments]
    if servers:
        blocks += [Paragraph("The servers of the arms:"), Commands(tuple(servers))]
    return section("Commands to reproduce", blocks)


def _server_command(record: RunRecord, arm: Arm) -> str:
    model = str(record.workload.get("model", ""))
    words = [model] if model and model not in arm.serve_arguments else []
    return " ".join(
        [f"{name}={shlex.quote(value)}" for name, value in arm.environment.items()]
        + ["vllm serve", *(shlex.quote(word) for word in (*words, *arm.serve_arguments))]
    )


def verdict_line(report: Report) -> str:
    """One line for a terminal."""
    if not report.banners:
        return report.title
    return "; ".join(f"{banner.headline}. {banner.sentence}" for banner in report.banners)
