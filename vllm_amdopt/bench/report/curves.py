"""What a serving record shows as curves: against load, latency and context; capacity, memory."""

import math
from collections.abc import Mapping, Sequence

from vllm_amdopt.bench.analysis import Comparison
from vllm_amdopt.bench.levels import LOADS, Level
from vllm_amdopt.bench.metrics import ALL, MEMORY, Metric
from vllm_amdopt.bench.report import words
from vllm_amdopt.bench.report.content import (
    Block,
    Chart,
    Grid,
    Marker,
    Paragraph,
    Point,
    Section,
    Series,
    Text,
    section,
)
from vllm_amdopt.bench.saturation import highest_load, knee, saturation_point
from vllm_amdopt.bench.statistics import mean_interval

THROUGHPUT = "output_throughput"
LATENCY = "mean_e2el_ms"


# --- curves -------------------------------------------------------------------------------------


def _groups(comparison: Comparison) -> Mapping[str, Sequence[Level]]:
    """The levels with a load by workload; a curve needs two of them."""
    groups: dict[str, list[Level]] = {}
    for level in comparison.levels:
        if level.load is not None:
            groups.setdefault(level.group, []).append(level)
    return {group: levels for group, levels in groups.items() if len(levels) > 1}


def curves(comparison: Comparison) -> Section | None:
    """Throughput against latency, and both against load."""
    blocks: list[Block | None] = []
    slo = comparison.judgement.slo
    groups = _groups(comparison)
    for levels in groups.values():
        suffix = f" ({levels[0].group_label})" if len(groups) > 1 else ""
        axis = LOADS[levels[0].load_name or "concurrency"]
        blocks.append(_tradeoff(comparison, levels, suffix))
        latencies = dict.fromkeys(("mean_ttft_ms", "p99_itl_ms", *slo))
        for name in (THROUGHPUT, *latencies):
            if name in ALL:
                blocks.append(_against_load(comparison, levels, ALL[name], axis, suffix))
    blocks.append(_by_context(comparison))
    return section("Curves", blocks)


def _tradeoff(comparison: Comparison, levels: Sequence[Level], suffix: str) -> Chart | None:
    series = []
    x_metric, y_metric = ALL[LATENCY], ALL[THROUGHPUT]
    for index, arm in enumerate(comparison.arms):
        points = []
        for level in levels:
            x = list(comparison.series(arm, level, x_metric).values())
            y = list(comparison.series(arm, level, y_metric).values())
            if x and y:
                points.append(
                    Point(_mean(x), _mean(y), mean_interval(x), mean_interval(y), level.short_label)
                )
        if points:
            series.append(Series(arm, index, tuple(points)))
    if not series:
        return None
    load = LOADS[levels[0].load_name or "concurrency"]
    return Chart(
        f"Throughput against end-to-end latency{suffix}",
        x_metric.title,
        y_metric.title,
        tuple(series),
        note=f"Each point is a {load}, written beside it; up and to the left is better. Crosses: "
        "intervals of each arm's mean, which are wider than those of the paired improvement.",
    )


def _against_load(
    comparison: Comparison, levels: Sequence[Level], metric: Metric, axis: str, suffix: str
) -> Chart | None:
    series, markers = [], []
    for index, arm in enumerate(comparison.arms):
        points = []
        for level in levels:
            values = list(comparison.series(arm, level, metric).values())
            if values:
                points.append(Point(level.load or 0.0, _mean(values), None, mean_interval(values)))
        if not points:
            continue
        series.append(Series(arm, index, tuple(points)))
        if metric.name == THROUGHPUT:
            saturated = saturation_point([(point.x, point.y) for point in points])
            if saturated is not None:
                markers.append(Marker(f"saturation, {arm}", x=saturated, arm=index))
    if not series:
        return None
    if metric.name in comparison.judgement.slo:
        limit = comparison.judgement.slo[metric.name]
        markers.append(Marker(f"limit {limit:g} {metric.unit}", y=limit))
    return Chart(
        f"{metric.label} against {axis}{suffix}",
        axis,
        metric.title,
        tuple(series),
        tuple(markers),
        x_logarithmic=True,
        ticks=tuple(level.load or 0.0 for level in levels),
    )


def _by_context(comparison: Comparison) -> Chart | None:
    """Throughput against the length of prompts, at the highest load that several lengths share."""
    by_load: dict[float, dict[float, Level]] = {}
    for level in comparison.levels:
        length = level.fields.get("input_len")
        if level.load is not None and isinstance(length, int | float) and length > 0:
            by_load.setdefault(level.load, {})[float(length)] = level
    shared = [load for load, levels in by_load.items() if len(levels) > 1]
    if not shared:
        return None
    levels = by_load[max(shared)]
    series = []
    for index, arm in enumerate(comparison.arms):
        points = [
            Point(length, _mean(values), None, mean_interval(values))
            for length, level in sorted(levels.items())
            if (values := list(comparison.series(arm, level, ALL[THROUGHPUT]).values()))
        ]
        series.append(Series(arm, index, tuple(points)))
    name = LOADS[next(iter(levels.values())).load_name or "concurrency"]
    return Chart(
        f"Throughput against context ({name} {max(shared):g})",
        "input tokens",
        ALL[THROUGHPUT].title,
        tuple(series),
        x_logarithmic=True,
        ticks=tuple(sorted(levels)),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# --- saturation and limits ----------------------------------------------------------------------


def capacity(comparison: Comparison, workload: Mapping[str, object]) -> Section | None:
    """Peak, saturation, knee, and the highest load that keeps each limit, for both arms."""
    grids: list[Block | None] = []
    slo = {name: limit for name, limit in comparison.judgement.slo.items() if name in ALL}
    active = workload.get("active_parameters")
    for levels in _groups(comparison).values():
        rows = []
        for arm in comparison.arms:
            throughputs = _block_curves(comparison, arm, levels, ALL[THROUGHPUT])
            if not throughputs:
                continue
            mean = [
                (load, _mean([dict(curve)[load] for curve in throughputs]))
                for load, _ in throughputs[0]
            ]
            peak_load, peak = max(mean, key=lambda point: point[1])
            bend = knee(mean)
            cells = [
                Text(arm),
                Text(f"{peak:,.1f} at {peak_load:g}", numeric=True),
                Text(_saturation(throughputs), numeric=True),
                Text("–" if bend is None else f"{bend:g}", numeric=True),
            ]
            if isinstance(active, int | float) and active > 0:
                cells.append(Text(f"{peak / (active / 1e9):,.1f}", numeric=True))
            for name, limit in slo.items():
                cells.append(Text(_highest(comparison, arm, levels, name, limit), numeric=True))
            rows.append(tuple(cells))
        head = ["Arm", f"Peak {ALL[THROUGHPUT].unit}", "Saturation", "Knee"]
        if isinstance(active, int | float) and active > 0:
            head.append("Peak tok/s by 10⁹ active parameters")
        head += [f"Highest load with {ALL[name].label} ≤ {slo[name]:g} ms" for name in slo]
        axis = LOADS[levels[0].load_name or "concurrency"]
        title = f"{levels[0].group_label or 'all levels'}, by {axis}"
        grids.append(Grid(title, tuple(head), tuple(rows)) if rows else None)
    note = Paragraph(
        "Saturation: the first load with 95 % of the peak from which a doubling brings less than "
        "5 %, in how many of the blocks. Knee: where two straight lines fit best. Highest load: "
        "interpolated on logarithmic axes in each block, with the interval over blocks; ≥ and < "
        "mean that it lies outside of what was measured.",
        "muted",
    )
    return section("Saturation and limits kept", [*grids, note] if any(grids) else [])


def _block_curves(
    comparison: Comparison, arm: str, levels: Sequence[Level], metric: Metric
) -> list[list[tuple[float, float]]]:
    """One curve for each block that has all loads which any block has."""
    series = {
        level.load or 0.0: values
        for level in levels
        if (values := comparison.series(arm, level, metric))
    }
    if len(series) < 2:
        return []
    blocks = set.intersection(*(set(values) for values in series.values()))
    return [[(load, values[block]) for load, values in series.items()] for block in sorted(blocks)]


def _saturation(curves: Sequence[Sequence[tuple[float, float]]]) -> str:
    found = [saturation_point(curve) for curve in curves]
    commonest = max(set(found), key=lambda point: (found.count(point), point or 0))
    where = "beyond the highest load" if commonest is None else f"{commonest:g}"
    return f"{where} ({found.count(commonest)} of {len(found)})"


def _highest(
    comparison: Comparison, arm: str, levels: Sequence[Level], name: str, limit: float
) -> str:
    found = _block_curves(comparison, arm, levels, ALL[name])
    if not found:
        return "–"
    highest = highest_load(found, limit, comparison.judgement.confidence)
    text = str(highest.middle).replace(">=", "≥")
    if highest.low is not None and highest.high is not None and highest.low != highest.high:
        text += f" [{highest.low}, {highest.high}]".replace(">=", "≥")
    return text


def memory(comparison: Comparison) -> Section | None:
    """What a launch holds in the GPU's memory."""
    rows = []
    for metric in MEMORY:
        values = [
            [
                value
                for level in comparison.levels
                for value in comparison.series(arm, level, metric).values()
            ]
            for arm in comparison.arms
        ]
        if any(values):
            shown = [metric.shown(_mean(known)) if known else "–" for known in values]
            change = ""
            if all(values) and _mean(values[0]) > 0:
                change = words.percent(_mean(values[1]) / _mean(values[0]) - 1)
            texts = (Text(cell, numeric=True) for cell in (*shown, change))
            rows.append((Text(metric.title), *texts))
    head = ("GPU memory", *comparison.arms, "Change")
    return section("Memory", [Grid("After start-up", head, tuple(rows)) if rows else None])


def run_order(comparison: Comparison) -> Chart | None:
    """The primary metric of each block against its own mean: drift shows as a slope."""
    metric = comparison.primary_metric
    series = []
    for index, arm in enumerate(comparison.arms):
        relative: dict[int, list[float]] = {}
        for level in comparison.levels:
            values = comparison.series(arm, level, metric)
            if values and (middle := _mean(list(values.values()))) > 0:
                for block, value in values.items():
                    relative.setdefault(block, []).append(100 * (value / middle - 1))
        points = tuple(
            Point(block + 1, _mean(values)) for block, values in sorted(relative.items())
        )
        if len(points) > 1:
            series.append(Series(arm, index, points))
    if not series:
        return None
    return Chart(
        f"{metric.label} by block",
        "block, in the order of the runs",
        "difference from the arm's mean, %",
        tuple(series),
        from_zero=False,
        ticks=tuple(point.x for point in series[0].points),
        note="Both arms together: the machine moved. One arm alone: a launch was odd.",
    )
