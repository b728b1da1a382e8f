"""The charts as PNG files, for slides; needs matplotlib (`pip install vllm-amdopt[plot]`)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_amdopt.bench.report.content import Bars, Chart, Forest, Report
from vllm_amdopt.run_record import RecordError

COLOURS = ("#66717f", "#0b6fb8", "#b4500f", "#6a3fa0")
TONES = {"good": "#0a6b3d", "bad": "#b3261e"}


def write_figures(report: Report, directory: Path) -> list[Path]:
    """One file for each chart of the report; the names tell what they show."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RecordError(
            "PNG needs matplotlib: `pip install vllm-amdopt[plot]`, or leave png out of --format"
        ) from error
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, block in _drawn(report):
        figure = Figure(figsize=(7.2, 4.3), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        if isinstance(block, Chart):
            _chart(axes, block)
        elif isinstance(block, Forest):
            _forest(axes, block)
        else:
            _bars(axes, block)
        title = _literal(block.title)
        axes.set_title(f"SYNTHETIC, not measured\n{title}" if report.synthetic else title, size=11)
        path = directory / f"{name}.png"
        figure.savefig(path)
        written.append(path)
    return written


def _drawn(report: Report) -> Iterator[tuple[str, Chart | Forest | Bars]]:
    seen: dict[str, int] = {}
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Chart | Forest | Bars):
                plain = f"{section.group} {block.title}".lower()
                name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:80]
                seen[name] = seen.get(name, 0) + 1
                yield (name if seen[name] == 1 else f"{name}-{seen[name]}"), block


def _literal(text: str) -> str:
    """Dollars are mathematics to matplotlib, and a record may hold anything."""
    return text.replace("$", r"\$")


def _chart(axes: Any, chart: Chart) -> None:
    for series in chart.series:
        xs, ys = [point.x for point in series.points], [point.y for point in series.points]
        axes.errorbar(
            xs,
            ys,
            xerr=_errors([(point.x, point.x_range) for point in series.points]),
            yerr=_errors([(point.y, point.y_range) for point in series.points]),
            fmt=("o-", "s-")[min(series.arm, 1)],
            color=COLOURS[min(series.arm, 3)],
            capsize=3,
            label=_literal(series.name),
        )
        for point in series.points:
            if point.label:
                axes.annotate(
                    _literal(point.label),
                    (point.x, point.y),
                    xytext=(7, -11) if series.arm == 0 else (-7, 6),
                    textcoords="offset points",
                    ha="left" if series.arm == 0 else "right",
                    color=COLOURS[min(series.arm, 3)],
                    size=8,
                )
    for marker in chart.markers:
        colour = TONES["bad"] if marker.arm is None else COLOURS[min(marker.arm, 3)]
        draw = axes.axhline if marker.y is not None else axes.axvline
        place = marker.y if marker.y is not None else marker.x
        draw(place, color=colour, linestyle="--", linewidth=1, label=_literal(marker.label))
    if chart.x_logarithmic:
        axes.set_xscale("log", base=2)
    if chart.ticks:
        axes.set_xticks(chart.ticks, [f"{tick:g}" for tick in chart.ticks])
        axes.minorticks_off()
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(_literal(chart.x_title))
    axes.set_ylabel(_literal(chart.y_title))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _errors(points: list[tuple[float, tuple[float, float] | None]]) -> Any:
    """Distances below and above, 0 where there is no interval; None where there is none at all."""
    if all(ends is None for _, ends in points):
        return None
    below = [value - ends[0] if ends else 0.0 for value, ends in points]
    above = [ends[1] - value if ends else 0.0 for value, ends in points]
    return [below, above]


def _forest(axes: Any, forest: Forest) -> None:
    axes.axvspan(-forest.margin, forest.margin, color="#e8f1fb")
    axes.axvline(0, color="#1c2430", linewidth=1)
    for index, (_, value, low, high, tone) in enumerate(forest.rows):
        colour = TONES.get(tone, COLOURS[0])
        if low is not None and high is not None:
            axes.plot([low, high], [index, index], color=colour, linewidth=2.5)
        axes.plot([value], [index], "o", color=colour)
    axes.set_yticks(range(len(forest.rows)), [_literal(row[0]) for row in forest.rows])
    axes.invert_yaxis()
    axes.set_xlabel(forest.x_title)
    axes.grid(alpha=0.3, axis="x")


def _bars(axes: Any, bars: Bars) -> None:
    names = list(dict.fromkeys(name for bar in bars.bars for name, _ in bar.parts))
    starts = [0.0] * len(bars.bars)
    for name in names:
        amounts = [dict(bar.parts).get(name, 0.0) for bar in bars.bars]
        axes.barh(range(len(bars.bars)), amounts, left=starts, label=_literal(name))
        starts = [start + amount for start, amount in zip(starts, amounts, strict=True)]
    axes.set_yticks(range(len(bars.bars)), [_literal(bar.name) for bar in bars.bars])
    axes.invert_yaxis()
    axes.set_xlabel(bars.unit)
    axes.legend(frameon=False, fontsize=8)
