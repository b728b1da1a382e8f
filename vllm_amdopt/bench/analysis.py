"""From a run record to what it shows: effects by metric and level, gates, verdict, warnings.

It reads records and computes; it renders nothing. The rules are docs/statistics.md.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from vllm_amdopt.bench.levels import Level, levels_of
from vllm_amdopt.bench.metrics import ALL, Metric, metric_and_load
from vllm_amdopt.bench.statistics import (
    Drift,
    Improvement,
    OrderEffect,
    PairedDifference,
    PairedEffect,
    Summary,
    Verdict,
    drift,
    effect_of_logs,
    holm,
    improvement,
    order_effect,
    paired_difference,
    summary,
    verdict,
)
from vllm_amdopt.run_record import RecordError, Row, RunRecord, level_key

Outcome = Literal["better", "regression", "equivalent", "inconclusive", "invalid"]

WORST_FIRST: Sequence[Outcome] = (
    "invalid",
    "regression",
    "inconclusive",
    "equivalent",
    "better",
)

ALARM = 0.05
"""The p below which drift and order effects are mentioned."""


@dataclass(frozen=True)
class Cell:
    """One metric at one level, or over all levels (`level` None), baseline against candidate.

    `effect`, `improvement` and `verdict` are None for metrics without a good direction and where
    `missing` says why there are no pairs. `adjusted_p`: Holm's, for gated cells only.
    """

    metric: Metric
    level: Level | None
    baseline: Summary | None = None
    candidate: Summary | None = None
    effect: PairedEffect | None = None
    difference: PairedDifference | None = None
    improvement: Improvement | None = None
    verdict: Verdict | None = None
    adjusted_p: float | None = None
    missing: str = ""

    @property
    def gated(self) -> bool:
        return self.adjusted_p is not None

    @property
    def name(self) -> str:
        where = "all levels" if self.level is None else self.level.label
        return f"{self.metric.title}, {where}"


Values = Mapping[tuple[str, str, str], Mapping[int, float]]
"""(arm, level key, metric) -> block -> mean over the repetitions."""


class Comparison:
    """One candidate against the baseline."""

    def __init__(self, record: RunRecord, candidate: str, values: Values) -> None:
        self.record = record
        self.judgement = record.judgement
        self.baseline = record.arms[0].name
        self.candidate = candidate
        self.levels = levels_of(row for row in record.rows if row.arm in self.arms)
        self._values = values

    @property
    def primary_metric(self) -> Metric:
        return metric_and_load(self.judgement.primary)[0]

    @property
    def arms(self) -> tuple[str, str]:
        return self.baseline, self.candidate

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The known metrics that any row of the two arms holds, in the order of the tables."""
        present = {name for arm, _, name in self._values if arm in self.arms}
        return tuple(metric for name, metric in ALL.items() if name in present)

    def series(self, arm: str, level: Level, metric: Metric) -> Mapping[int, float]:
        """Block -> value of one arm."""
        return self._values.get((arm, level.key, metric.name), {})

    def logs(self, level: Level, metric: Metric) -> dict[int, float]:
        """Block -> ln(candidate / baseline), for blocks in which both are above 0."""
        a, b = (self.series(arm, level, metric) for arm in self.arms)
        return {
            block: math.log(b[block] / a[block])
            for block in sorted(set(a) & set(b))
            if a[block] > 0 and b[block] > 0
        }

    def _overall_logs(self, metric: Metric) -> dict[int, float]:
        """Block -> mean over all levels, for blocks that have them all."""
        by_level = [logs for level in self.levels if (logs := self.logs(level, metric))]
        blocks = set.intersection(*(set(logs) for logs in by_level)) if by_level else set()
        return {
            block: statistics.fmean(logs[block] for logs in by_level) for block in sorted(blocks)
        }

    @cached_property
    def _plain_cells(self) -> dict[tuple[str | None, str], Cell]:
        cells = {}
        for metric in self.metrics:
            for level in (*self.levels, None):
                cells[None if level is None else level.key, metric.name] = self._cell(metric, level)
        return cells

    def _cell(self, metric: Metric, level: Level | None) -> Cell:
        cell = Cell(metric, level)
        if level is not None:
            a, b = (self.series(arm, level, metric) for arm in self.arms)
            cell = replace(
                cell,
                baseline=summary(list(a.values())) if a else None,
                candidate=summary(list(b.values())) if b else None,
                difference=self._difference(a, b),
            )
        if metric.higher_is_better is None:
            return cell
        logs = self._overall_logs(metric) if level is None else self.logs(level, metric)
        if not logs:
            return replace(cell, missing="no block in which both arms have a value above 0")
        effect = effect_of_logs(list(logs.values()), self.judgement.confidence)
        return replace(
            cell,
            effect=effect,
            improvement=improvement(effect, metric.higher_is_better),
            verdict=verdict(effect, metric.higher_is_better, self.judgement.margin),
        )

    def _difference(
        self, a: Mapping[int, float], b: Mapping[int, float]
    ) -> PairedDifference | None:
        both = sorted(set(a) & set(b))
        if not both:
            return None
        return paired_difference(
            [a[block] for block in both], [b[block] for block in both], self.judgement.confidence
        )

    @cached_property
    def cells(self) -> dict[tuple[str | None, str], Cell]:
        """(level key or None, metric) -> cell; the gated ones judged by their adjusted p."""
        cells = dict(self._plain_cells)
        gated = {
            key
            for text in (self.judgement.primary, *self.judgement.gated)
            for key in self._keys(text)
        }
        p_values = {
            key: cell.effect.p
            for key in gated
            if (cell := cells.get(key)) and cell.effect and cell.effect.p is not None
        }
        for key, p in holm(p_values).items():
            cell = cells[key]
            assert cell.effect is not None and cell.metric.higher_is_better is not None
            said = verdict(cell.effect, cell.metric.higher_is_better, self.judgement.margin, p)
            cells[key] = replace(cell, adjusted_p=p, verdict=said)
        return cells

    def _keys(self, text: str) -> list[tuple[str | None, str]]:
        metric, load = metric_and_load(text)
        if load is None:
            single = self.levels[0].key if len(self.levels) == 1 else None
            return [(single, metric.name)]
        return [(level.key, metric.name) for level in self.levels if level.load == load]

    def cell(self, level: Level | None, metric: Metric) -> Cell:
        return self.cells[None if level is None else level.key, metric.name]

    def cells_of(self, text: str) -> tuple[Cell, ...]:
        """The cells that `metric@load` names."""
        return tuple(self.cells[key] for key in self._keys(text) if key in self.cells)

    @cached_property
    def primary(self) -> tuple[Cell, ...]:
        """More than one where several workloads have the primary's load."""
        return self.cells_of(self.judgement.primary)

    @cached_property
    def gates(self) -> tuple[Cell, ...]:
        return tuple(cell for text in self.judgement.gated for cell in self.cells_of(text))

    @cached_property
    def unsupported(self) -> str:
        """Why this model or machine has no such candidate; "" where it was tried."""
        statuses = {row.status: row for row in self.record.rows if row.arm == self.candidate}
        return statuses["unsupported"].reason if set(statuses) == {"unsupported"} else ""

    @cached_property
    def invalid(self) -> str:
        """Why nothing can be concluded: a judged cell that was not measured; "" otherwise."""
        for text in (self.judgement.primary, *self.judgement.gated):
            cells = self.cells_of(text)
            if not cells:
                return f"{text} was not measured in both arms"
            for cell in cells:
                if cell.effect is None:
                    return f"{cell.name}: {cell.missing}"
        return ""

    @cached_property
    def outcome(self) -> Outcome:
        """A regression anywhere in the gated set is one; else the worst that the primary says."""
        if self.invalid:
            return "invalid"
        if any(cell.verdict == "regression" for cell in (*self.primary, *self.gates)):
            return "regression"
        said = {cell.verdict for cell in self.primary}
        return next(outcome for outcome in WORST_FIRST if outcome in said)

    @cached_property
    def blocks(self) -> int:
        """Blocks behind the primary metric."""
        return min((cell.effect.n if cell.effect else 0 for cell in self.primary), default=0)

    @cached_property
    def drifts(self) -> dict[str, Drift]:
        """Arm -> drift of the primary metric over blocks, where it is more than chance."""
        metric = self.primary_metric
        found = {}
        for arm in self.arms:
            series = [
                values for level in self.levels if (values := self.series(arm, level, metric))
            ]
            blocks = set.intersection(*(set(values) for values in series)) if series else set()
            means = [
                statistics.fmean(math.log(values[block]) for values in series if values[block] > 0)
                for block in sorted(blocks)
                if any(values[block] > 0 for values in series)
            ]
            measured = drift(means)
            if measured is not None and measured.p < ALARM:
                found[arm] = measured
        return found

    @cached_property
    def order(self) -> OrderEffect | None:
        """Whether it matters that the candidate ran second, by the primary metric."""
        metric = self.primary_metric
        logs = self._overall_logs(metric)
        position = {
            (row.block, row.arm): row.position for row in self.record.rows if row.arm in self.arms
        }
        second = [
            position.get((block, self.candidate), 1) > position.get((block, self.baseline), 0)
            for block in logs
        ]
        return order_effect(list(logs.values()), second)


class Analysis:
    """Everything that one record shows."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        # Other kinds have metrics of their own and bring their conclusion with them.
        judged_here = record.kind.startswith(("serving", "startup"))
        if judged_here:
            metric_and_load(record.judgement.primary)
            for text in record.judgement.gated:
                metric_and_load(text)
        self.values = values_of(record.rows)
        self.levels = levels_of(record.rows)
        self.comparisons = tuple(
            Comparison(record, arm.name, self.values) for arm in record.arms[1:] if judged_here
        )

    @cached_property
    def set_aside(self) -> tuple[Row, ...]:
        """The rows that count for nothing here, each with its reason."""
        return tuple(row for row in self.record.rows if row.status != "ok")

    @cached_property
    def blocks(self) -> int:
        return len({row.block for row in self.record.rows})

    @cached_property
    def outcome(self) -> Outcome:
        """The worst of the comparisons with what could be tried; `invalid` where there is none."""
        found = {
            comparison.outcome for comparison in self.comparisons if not comparison.unsupported
        }
        return next((outcome for outcome in WORST_FIRST if outcome in found), "invalid")


def values_of(rows: Iterable[Row]) -> Values:
    """The numbers of the rows that count, repetitions inside a launch averaged."""
    gathered: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for row in rows:
        if row.status != "ok":
            continue
        key = level_key(row.level)
        for name, value in row.metrics.items():
            blocks = gathered.setdefault((row.arm, key, name), {})
            blocks.setdefault(row.block, []).append(float(value))
    return {
        cell: {block: statistics.fmean(values) for block, values in sorted(blocks.items())}
        for cell, blocks in gathered.items()
    }


def analyse(record: RunRecord) -> Analysis:
    """The analysis of a record; RecordError for a judgement that names an unknown metric."""
    try:
        return Analysis(record)
    except ValueError as error:
        raise RecordError(f"the record cannot be judged: {error}") from error


EXIT_CODES: Mapping[Outcome, int] = {
    "better": 0,
    "equivalent": 0,
    "inconclusive": 0,
    "regression": 1,
    "invalid": 4,
}


def exit_code(analysis: Analysis, require_conclusive: bool = False) -> int:
    """0 no proven regression; 1 a regression; 3 inconclusive, if that was asked for; 4 invalid."""
    if require_conclusive and analysis.outcome == "inconclusive":
        return 3
    return EXIT_CODES[analysis.outcome]
