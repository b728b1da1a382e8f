"""What a serving comparison came to, in words and as an exit code, from its record alone."""

import math
import statistics
from collections.abc import Sequence

from vllm_amdopt.bench.metrics import Metric, metric_and_load
from vllm_amdopt.bench.statistics import (
    PairedEffect,
    effect_of_logs,
    holm,
    improvement,
    verdict,
)
from vllm_amdopt.run_record import RunRecord, level_key

EXIT_REGRESSION = 1
EXIT_INCONCLUSIVE = 3
EXIT_INVALID = 4

FEWEST_BLOCKS = 2
"""Below, there is no spread and so no interval."""


def conclude(record: RunRecord, *, require_conclusive: bool) -> tuple[str, int]:
    """The text to print and the exit code."""
    lines = []
    baseline, *others = record.arms
    effects: dict[tuple[str, str], tuple[Metric, PairedEffect]] = {}
    claims = tuple(dict.fromkeys((record.judgement.primary, *record.judgement.gated)))
    for arm in others:
        for claim in claims:
            metric, load = metric_and_load(claim)
            logs = _logs(record, metric.name, load, baseline.name, arm.name)
            if logs:
                effects[arm.name, claim] = (
                    metric,
                    effect_of_logs(logs, record.judgement.confidence),
                )
    adjusted = holm(
        {"/".join(key): effect.p for key, (_, effect) in effects.items() if effect.p is not None}
    )
    verdicts = []
    for (arm_name, claim), (metric, effect) in effects.items():
        assert metric.higher_is_better is not None
        said = verdict(
            effect,
            metric.higher_is_better,
            record.judgement.margin,
            adjusted.get(f"{arm_name}/{claim}"),
        )
        verdicts.append(said)
        lines.append(
            f"{arm_name} against {baseline.name}, {claim}: {_told(effect, metric)}: {said}"
        )
    bad = [row for row in record.rows if row.status in ("error", "tainted")]
    unsupported = {row.arm: row.reason for row in record.rows if row.status == "unsupported"}
    for name, reason in unsupported.items():
        lines.append(f"{name} is left out: {reason}")
    for row in bad[:5]:
        lines.append(f"{row.status}: {row.arm}, block {row.block + 1}: {row.reason}")
    complete = [effect for _, effect in effects.values() if effect.n >= FEWEST_BLOCKS]
    if not complete:
        lines.append("This measurement does not count: there are not two blocks of both arms.")
        return "\n".join(lines), EXIT_INVALID
    if bad and any(effect.n < record.workload.get("blocks_done", 0) / 2 for effect in complete):
        lines.append("This measurement does not count: less than half of its blocks do.")
        return "\n".join(lines), EXIT_INVALID
    if "regression" in verdicts:
        return "\n".join(lines), EXIT_REGRESSION
    if require_conclusive and "inconclusive" in verdicts:
        return "\n".join(lines), EXIT_INCONCLUSIVE
    return "\n".join(lines), 0


def _logs(
    record: RunRecord, metric: str, load: float | None, baseline: str, arm: str
) -> list[float]:
    """ln of arm/baseline in each block where both have the metric at every level of that load."""
    keys = {
        level_key(row.level)
        for row in record.rows
        if load is None or float(row.level.get("concurrency") or row.level["request_rate"]) == load
    }
    found = []
    for block in sorted({row.block for row in record.rows}):
        logs = [_level_log(record, block, key, metric, (baseline, arm)) for key in sorted(keys)]
        if logs and None not in logs:
            found.append(statistics.fmean(log for log in logs if log is not None))
    return found


def _level_log(
    record: RunRecord, block: int, key: str, metric: str, arms: Sequence[str]
) -> float | None:
    means = []
    for arm in arms:
        values = [
            row.metrics[metric]
            for row in record.rows
            if row.block == block
            and row.arm == arm
            and row.status == "ok"
            and metric in row.metrics
            and level_key(row.level) == key
        ]
        if not values or min(values) <= 0:
            return None
        means.append(statistics.fmean(values))
    return math.log(means[1] / means[0])


def _told(effect: PairedEffect, metric: Metric) -> str:
    assert metric.higher_is_better is not None
    change = improvement(effect, metric.higher_is_better)
    if change.low is None or change.high is None:
        return f"{change.value:+.2%} in one block, which has no interval"
    seen = "" if effect.detectable is None else f", could have seen {effect.detectable - 1:.1%}"
    return f"{change.value:+.2%} [{change.low:+.2%}, {change.high:+.2%}], n={effect.n}{seen}"
