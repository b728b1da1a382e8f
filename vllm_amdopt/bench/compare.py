"""Compares two records of different sessions, or says in words why that would mean nothing.

Sessions are not paired: another day, perhaps another host. What is compared is the improvement
that each session measured within itself, and, only for orientation, the level of each arm.
"""

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_amdopt.bench.analysis import Analysis, Comparison, analyse
from vllm_amdopt.bench.distributions import t_quantile, two_sided_p
from vllm_amdopt.bench.levels import Level
from vllm_amdopt.bench.metrics import Metric
from vllm_amdopt.bench.report import words
from vllm_amdopt.bench.report.content import (
    Banner,
    Bullets,
    Grid,
    Report,
    Text,
    Tone,
    section,
)
from vllm_amdopt.run_record import RecordError, RunRecord

COMPARED_METRICS = (
    "request_throughput",
    "output_throughput",
    "total_token_throughput",
    "mean_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "mean_itl_ms",
    "p99_itl_ms",
    "mean_e2el_ms",
    "total_s",
)

PROVENANCE = ("machine", "software")

VOLATILE = ("host",)
"""Facts of a machine that may differ without a doubt about the numbers: only a warning."""


@dataclass(frozen=True)
class Change:
    """How much the improvement of a session differs from that of another: new / old, as a ratio.

    Welch's interval of the difference of two independent means of log ratios. None: one block.
    """

    metric: Metric
    level: Level | None
    old: float
    new: float
    ratio: float
    low: float | None
    high: float | None
    p: float | None


def refusals(old: RunRecord, new: RunRecord) -> list[str]:
    """Why the two cannot be compared; empty if they can."""
    found = []
    if old.kind != new.kind:
        found.append(f"one is of {old.kind}, the other of {new.kind}")
        return found
    if old.synthetic != new.synthetic:
        found.append("one is synthetic, the other was measured")
    for name in ("model", "model_config_sha256"):
        before, after = old.workload.get(name), new.workload.get(name)
        if name == "model":
            before, after = _last(before), _last(after)
        if before != after and None not in (before, after):
            found.append(f"they are of different models ({before} and {after})")
            break
    gpus = [_gpus(record) for record in (old, new)]
    if gpus[0] != gpus[1]:
        found.append(f"they ran on different GPUs ({gpus[0] or 'none'} and {gpus[1] or 'none'})")
    arms = [[arm.name for arm in record.arms] for record in (old, new)]
    if len(arms[0]) < 2 or len(arms[1]) < 2:
        found.append("a record with one arm has nothing that a session compared within itself")
    elif arms[0] != arms[1]:
        found.append(f"their arms differ ({', '.join(arms[0])} and {', '.join(arms[1])})")
    else:
        for before, after in zip(old.arms, new.arms, strict=True):
            if before.serve_arguments != after.serve_arguments:
                found.append(f"the arm {before.name} was served with other arguments")
            elif before.environment != after.environment:
                found.append(f"the arm {before.name} had another environment")
    levels = [{level.key for level in analyse(record).levels} for record in (old, new)]
    if not levels[0] & levels[1]:
        found.append("they have no level in common")
    return found


def _last(path: Any) -> str | None:
    return path.rstrip("/").rpartition("/")[2] if isinstance(path, str) else None


def _gpus(record: RunRecord) -> str:
    """The products, without what tells one board from another."""
    gpus = record.machine.get("gpus") or ()
    names = []
    for gpu in gpus if isinstance(gpus, list | tuple) else ():
        if isinstance(gpu, Mapping):
            kept = ("product", "gfx", "compute_partition", "memory_partition")
            names.append(" ".join(str(gpu[name]) for name in kept if gpu.get(name)))
        else:
            names.append(str(gpu))
    return ", ".join(sorted(names))


def warnings(old: RunRecord, new: RunRecord) -> list[str]:
    """What differs between the sessions besides what is compared."""
    said = [
        f"The sessions are not paired ({old.created} and {new.created}): what changed between "
        "them besides the code is in the intervals only as far as it moved both arms alike."
    ]
    for name in PROVENANCE:
        before, after = getattr(old, name), getattr(new, name)
        for fact in sorted({*before, *after}):
            values = before.get(fact), after.get(fact)
            if values[0] != values[1]:
                shown = [json.dumps(value, ensure_ascii=False) for value in values]
                said.append(f"{name}, {fact}: {shown[0]} before, {shown[1]} now")
    levels = [{level.key: level.label for level in analyse(one).levels} for one in (old, new)]
    for first, second, when in ((0, 1, "earlier"), (1, 0, "later")):
        missing = [label for key, label in levels[first].items() if key not in levels[second]]
        if missing:
            said.append(f"only in the {when} record: {words.listed(missing)}")
    return said


def changes(old: Comparison, new: Comparison) -> list[Change]:
    """The change of each compared metric at each common level, and over all of them."""
    found = []
    for name in COMPARED_METRICS:
        metric = next((one for one in new.metrics if one.name == name and one in old.metrics), None)
        if metric is None:
            continue
        common = [
            (level, counterpart)
            for level in new.levels
            for counterpart in old.levels
            if level.key == counterpart.key
        ]
        for level, counterpart in common:
            before, after = old.logs(counterpart, metric), new.logs(level, metric)
            if before and after:
                found.append(_change(metric, level, list(before.values()), list(after.values())))
    return found


def _change(metric: Metric, level: Level, before: list[float], after: list[float]) -> Change:
    difference = statistics.fmean(after) - statistics.fmean(before)
    old, new = math.exp(statistics.fmean(before)), math.exp(statistics.fmean(after))
    if min(len(before), len(after)) < 2:
        return Change(metric, level, old, new, math.exp(difference), None, None, None)
    parts = [statistics.variance(values) / len(values) for values in (before, after)]
    error = math.sqrt(sum(parts))
    if error == 0:
        p = 1.0 if difference == 0 else 0.0
        ratio = math.exp(difference)
        return Change(metric, level, old, new, ratio, ratio, ratio, p)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (before, after), strict=True)
    )
    half = t_quantile(0.975, freedom) * error
    return Change(
        metric,
        level,
        old,
        new,
        math.exp(difference),
        math.exp(difference - half),
        math.exp(difference + half),
        two_sided_p(difference / error, freedom),
    )


def compare(old: RunRecord, new: RunRecord) -> Report:
    """The comparison as a report; RecordError that says why, where there is none."""
    reasons = refusals(old, new)
    if reasons:
        raise RecordError(
            f"these records cannot be compared: {'; '.join(reasons)}. Measure both arms again "
            "under the same conditions, or look at each with `vllm-amdopt report`"
        )
    before, after = analyse(old), analyse(new)
    if not before.comparisons:
        raise RecordError("these records cannot be compared: they hold no numbers to compare")
    parts = []
    banners = []
    for first, second in zip(before.comparisons, after.comparisons, strict=True):
        found = changes(first, second)
        banners.append(_banner(second, found))
        primary = primary_changes(second, found)
        others = [change for change in found if change not in primary]
        grids = [
            _grid(f"{second.primary_metric.label}, improvement then and now", primary),
            _grid("Other metrics, exploratory", others, folded=True),
        ]
        parts.append(section(f"{second.candidate} against {second.baseline}", grids))
    parts.append(section("Levels of the arms", [_levels(before, after)]))
    parts.append(section("What differs between the sessions", [Bullets(tuple(warnings(old, new)))]))
    return Report(
        title=f"{new.title or new.kind}: two sessions",
        subtitle=f"{old.created} and {new.created}; not paired",
        synthetic=old.synthetic or new.synthetic,
        banners=tuple(banners),
        sections=tuple(part for part in parts if part is not None),
    )


def primary_changes(comparison: Comparison, found: list[Change]) -> list[Change]:
    """Those of the primary metric, at the levels that the judgement names."""
    keys = {cell.level.key for cell in comparison.primary if cell.level is not None}
    return [
        change
        for change in found
        if change.metric == comparison.primary_metric
        and (not keys or (change.level is not None and change.level.key in keys))
    ]


def is_worse(change: Change, margin: float) -> bool:
    """Whether all of the interval is a loss of more than the margin."""
    if change.low is None or change.high is None:
        return False
    if change.metric.higher_is_better:
        return change.high < 1 - margin
    return change.low > 1 + margin


def lost(old: RunRecord, new: RunRecord) -> bool:
    """Whether any level of the primary metric lost more than the margin since the old session."""
    return any(
        is_worse(change, new.judgement.margin)
        for first, second in zip(analyse(old).comparisons, analyse(new).comparisons, strict=True)
        for change in primary_changes(second, changes(first, second))
    )


def _banner(comparison: Comparison, found: list[Change]) -> Banner:
    primary = primary_changes(comparison, found)
    worse = [change for change in primary if is_worse(change, comparison.judgement.margin)]
    unsure = [change for change in primary if change.low is None]
    label = comparison.primary_metric.label
    if worse:
        where = words.listed([change.level.label for change in worse if change.level])
        return Banner(
            "regression",
            f"{comparison.candidate} lost against {comparison.baseline} since the earlier session",
            f"{label} at {where}.",
        )
    if not primary or len(unsure) == len(primary):
        return Banner(
            "inconclusive",
            "No conclusion about the two sessions",
            "The primary metric has no interval in both sessions: measure two blocks or more.",
        )
    margin = comparison.judgement.margin
    ends = [(change.low, change.high) for change in primary]
    if all(low and high and 1 - margin < low and high < 1 + margin for low, high in ends):
        return Banner(
            "equivalent",
            f"{comparison.candidate} against {comparison.baseline} is as it was",
            f"{label}: every level within the margin of {_plus_minus(margin)}, with its interval.",
        )
    return Banner(
        "inconclusive",
        f"No proven loss of {comparison.candidate} against {comparison.baseline}",
        f"{label}: no level lost more than {_plus_minus(margin)} with its whole interval. That is "
        "no proof that none did: two sessions show less than blocks of one.",
    )


def _plus_minus(margin: float) -> str:
    return words.percent(margin).lstrip("+")


def _grid(title: str, found: list[Change], folded: bool = False) -> Grid | None:
    rows = []
    for change in found:
        sign = 1 if change.metric.higher_is_better else -1
        tone: Tone = "muted"
        if change.low is not None and change.high is not None:
            gain = (change.low > 1) if sign > 0 else (change.high < 1)
            loss = (change.high < 1) if sign > 0 else (change.low > 1)
            tone = "good" if gain else "bad" if loss else "muted"
        ends = [None if end is None else sign * (end - 1) for end in (change.low, change.high)]
        if sign < 0:
            ends.reverse()
        rows.append(
            (
                Text(change.metric.title),
                Text("all levels" if change.level is None else change.level.label),
                Text(words.percent(sign * (change.old - 1)), numeric=True),
                Text(words.percent(sign * (change.new - 1)), numeric=True),
                Text(words.percent(sign * (change.ratio - 1)), tone, numeric=True),
                Text(words.interval(ends[0], ends[1]) or "–", tone, numeric=True),
                Text("–" if change.p is None else f"{change.p:.3f}", numeric=True),
            )
        )
    head = ("Metric", "Level", "Improvement then", "now", "Gained", "95 % interval", "p")
    note = (
        "Improvement: of the candidate over the baseline, each within its own session. Gained: "
        "how the two compare, with Welch's interval; not adjusted for the number of lines."
    )
    return Grid(title, head, tuple(rows), note, folded) if rows else None


def _levels(old: Analysis, new: Analysis) -> Grid | None:
    rows = []
    then = {level.key for level in old.levels}
    for metric in new.comparisons[0].metrics:
        if metric.name not in COMPARED_METRICS:
            continue
        for level in new.levels:
            for arm in new.record.arms:
                before = old.values.get((arm.name, level.key, metric.name))
                after = new.values.get((arm.name, level.key, metric.name))
                if level.key not in then or not before or not after:
                    continue
                means = [statistics.fmean(values.values()) for values in (before, after)]
                change = words.percent(means[1] / means[0] - 1) if means[0] else "–"
                rows.append(
                    (
                        Text(metric.title),
                        Text(level.label),
                        Text(arm.name),
                        *(Text(metric.shown(mean), numeric=True) for mean in means),
                        Text(change, "muted", numeric=True),
                    )
                )
    head = ("Metric", "Level", "Arm", "Then", "Now", "Change")
    note = (
        "For orientation only: anything that changed between the sessions is in these means, so "
        "they have no interval and no verdict."
    )
    return Grid("Plain means then and now", head, tuple(rows), note, True) if rows else None
