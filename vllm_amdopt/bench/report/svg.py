"""Charts as inline SVG: text and colours come from the page's style sheet, nothing from outside."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from vllm_amdopt.bench.report.content import Bars, Chart, Forest, Point

WIDTH, HEIGHT = 520, 310
LEFT, RIGHT, TOP, BOTTOM = 70, 26, 12, 46
WIDE = 580
"""Of charts with names on their left: forests and bars."""


def number(value: float) -> str:
    """A number on an axis: 12,000 and 0.25, without digits that say nothing."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def nice_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers from below `low` to above `high`."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True)
class _Axis:
    """Where a number lies on the page."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def _ends(chart: Chart, axis: str) -> tuple[float, float]:
    values: list[float] = []
    for series in chart.series:
        for point in series.points:
            values += [getattr(point, axis), *(getattr(point, f"{axis}_range") or ())]
    values += [place for one in chart.markers if (place := getattr(one, axis)) is not None]
    return min(values), max(values)


def chart_svg(chart: Chart) -> str:
    """Lines with interval crosses, one colour for each arm."""
    parts = [_open(WIDTH, HEIGHT, chart.title)]
    x_low, x_high = _ends(chart, "x")
    y_low, y_high = _ends(chart, "y")
    if chart.from_zero:
        y_low = min(0.0, y_low)
    y_ticks = nice_ticks(y_low, y_high)
    if chart.x_logarithmic:
        x_ticks = list(chart.ticks)
        pad = (x_high / x_low) ** 0.04 if x_high > x_low else 1.5
        x = _Axis(x_low / pad, x_high * pad, LEFT, WIDTH - RIGHT, True)
    else:
        x_ticks = list(chart.ticks) or nice_ticks(x_low, x_high)
        edge = 0.5 if chart.ticks else 0.0
        x = _Axis(x_ticks[0] - edge, x_ticks[-1] + edge, LEFT, WIDTH - RIGHT)
    y = _Axis(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    for tick in y_ticks:
        place = y.at(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" {_same("y", place)}/>')
        parts.append(_text(LEFT - 8, place + 4, number(tick), "end"))
    for tick in _thinned(x_ticks, x):
        place = x.at(tick)
        parts.append(f'<line class="grid" {_same("x", place)} y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(_text(place, HEIGHT - BOTTOM + 18, number(tick), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, chart.x_title, "middle", "axis"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="axis" text-anchor="middle" transform="translate(16 {middle:.1f}) '
        f'rotate(-90)">{escape(chart.y_title)}</text>'
    )
    stacked = 0
    for marker in chart.markers:
        colour = "limit" if marker.arm is None else f"arm{min(marker.arm, 3)}"
        if marker.y is not None:
            place = y.at(marker.y)
            parts.append(
                f'<line class="marker {colour}" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
                f"{_same('y', place)}/>"
            )
            parts.append(_text(LEFT + 6, place - 5, marker.label, "start", f"label {colour}"))
        elif marker.x is not None:
            place = x.at(marker.x)
            parts.append(
                f'<line class="marker {colour}" {_same("x", place)} y1="{TOP}" '
                f'y2="{HEIGHT - BOTTOM}"/>'
            )
            stacked += 1
            anchor, shift = ("end", -5) if place > (LEFT + WIDTH) / 2 else ("start", 5)
            height = HEIGHT - BOTTOM - 8 - 15 * (stacked - 1)
            parts.append(_text(place + shift, height, marker.label, anchor, f"label {colour}"))
    for series in chart.series:
        colour = f"arm{min(series.arm, 3)}"
        if series.joined and len(series.points) > 1:
            path = " ".join(f"{x.at(p.x):.1f},{y.at(p.y):.1f}" for p in series.points)
            parts.append(f'<polyline class="line {colour}" points="{path}"/>')
        for point in series.points:
            parts += _point(point, x, y, colour, series.arm, series.name, chart)
    parts.append("</svg>")
    return "".join(parts)


def _point(
    point: Point, x: _Axis, y: _Axis, colour: str, arm: int, name: str, chart: Chart
) -> list[str]:
    across, up = x.at(point.x), y.at(point.y)
    parts = []
    if point.y_range is not None:
        ends = [y.at(value) for value in point.y_range]
        parts.append(
            f'<line class="error {colour}" {_same("x", across)} y1="{ends[0]:.1f}" '
            f'y2="{ends[1]:.1f}"/>'
        )
    if point.x_range is not None and min(point.x_range) >= x.low:
        ends = [x.at(value) for value in point.x_range]
        parts.append(
            f'<line class="error {colour}" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" {_same("y", up)}/>'
        )
    said = f"{name}{', ' + point.label if point.label else ''}: {number(point.x)}, {point.y:,.4g}"
    title = f"<title>{escape(said)} ({escape(chart.y_title)})</title>"
    # Shapes differ as well as colours: a printed page may be grey.
    if arm == 0:
        shape = f'<circle class="dot {colour}" cx="{across:.1f}" cy="{up:.1f}" r="4">'
        parts.append(f"{shape}{title}</circle>")
    else:
        shape = (
            f'<rect class="dot {colour}" x="{across - 4:.1f}" y="{up - 4:.1f}" '
            'width="8" height="8">'
        )
        parts.append(f"{shape}{title}</rect>")
    if point.label:
        below = arm == 0
        parts.append(
            _text(
                across + (8 if below else -8),
                up + (15 if below else -8),
                point.label,
                "start" if below else "end",
                f"label {colour}",
            )
        )
    return parts


def _thinned(ticks: Sequence[float], x: _Axis) -> list[float]:
    """The ticks whose numbers have room."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or x.at(tick) - x.at(kept[-1]) > 34:
            kept.append(tick)
    return kept


def forest_svg(forest: Forest) -> str:
    """One line for each effect, its interval around no effect, the margin as a band."""
    row, top = 30, 10
    height = top + row * len(forest.rows) + 46
    label_width = _room([label for label, *_ in forest.rows])
    values = [0.0, forest.margin, -forest.margin]
    for _, value, low, high, _ in forest.rows:
        values += [value, *(end for end in (low, high) if end is not None)]
    ticks = nice_ticks(min(values), max(values), 7)
    x = _Axis(ticks[0], ticks[-1], label_width + 10, WIDE - 92)
    bottom = height - 44
    parts = [_open(WIDE, height, forest.title)]
    band = (x.at(-forest.margin), x.at(forest.margin))
    parts.append(
        f'<rect class="band" x="{band[0]:.1f}" width="{band[1] - band[0]:.1f}" y="{top}" '
        f'height="{bottom - top}"/>'
    )
    for tick in ticks:
        place = x.at(tick)
        kind = "zero" if abs(tick) < 1e-9 else "grid"
        parts.append(f'<line class="{kind}" {_same("x", place)} y1="{top}" y2="{bottom}"/>')
        parts.append(_text(place, bottom + 18, number(tick), "middle"))
    parts.append(_text((x.start + x.end) / 2, height - 8, forest.x_title, "middle", "axis"))
    for index, (label, value, low, high, tone) in enumerate(forest.rows):
        middle = top + row * index + row / 2
        parts.append(_text(label_width, middle + 4, _short(label), "end", "row"))
        if low is not None and high is not None:
            parts.append(
                f'<line class="interval {tone}" x1="{x.at(low):.1f}" x2="{x.at(high):.1f}" '
                f"{_same('y', middle)}/>"
            )
        said = f"{label}: {value:+.2f} %"
        parts.append(
            f'<circle class="effect {tone}" cx="{x.at(value):.1f}" cy="{middle:.1f}" r="5">'
            f"<title>{escape(said)}</title></circle>"
        )
        amount = f"{value:+.1f} %".replace("-", "−")
        parts.append(_text(WIDE - 82, middle + 4, amount, "start", f"amount {tone}"))
    parts.append("</svg>")
    return "".join(parts)


def bars_svg(bars: Bars) -> str:
    """Stacked bars, the parts in the order in which they happen."""
    row, top = 34, 8
    label_width = _room([bar.name for bar in bars.bars])
    height = top + row * len(bars.bars) + 40
    longest = max(sum(amount for _, amount in bar.parts) for bar in bars.bars)
    ticks = nice_ticks(0, longest)
    x = _Axis(0, ticks[-1], label_width + 10, WIDE - 70)
    bottom = height - 38
    names = list(dict.fromkeys(name for bar in bars.bars for name, _ in bar.parts))
    parts = [_open(WIDE, height, bars.title)]
    for tick in ticks:
        parts.append(f'<line class="grid" {_same("x", x.at(tick))} y1="{top}" y2="{bottom}"/>')
        parts.append(_text(x.at(tick), bottom + 18, number(tick), "middle"))
    parts.append(_text((x.start + x.end) / 2, height - 4, bars.unit, "middle", "axis"))
    for index, bar in enumerate(bars.bars):
        start, y = 0.0, top + row * index + 5
        parts.append(_text(label_width, y + 16, _short(bar.name), "end", "row"))
        for name, amount in bar.parts:
            begin, end = x.at(start), x.at(start + max(amount, 0))
            said = f"{bar.name}, {name}: {amount:.2f} {bars.unit}"
            parts.append(
                f'<rect class="part part{names.index(name) % 9}" x="{begin:.1f}" y="{y:.1f}" '
                f'width="{end - begin:.1f}" height="{row - 10}"><title>{escape(said)}</title>'
                "</rect>"
            )
            start += max(amount, 0)
        parts.append(_text(x.at(start) + 6, y + 16, f"{start:.1f} {bars.unit}", "start", "row"))
    parts.append("</svg>")
    return "".join(parts)


LONGEST_NAME = 28


def _short(name: str) -> str:
    """The end of a name tells levels apart."""
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def _room(names: Iterable[str]) -> float:
    """The width of the longest of these names, at 7.4 for a letter of 13 pixels."""
    return 7.4 * max(len(_short(name)) for name in names) + 4


def _open(width: float, height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title)}" '
        'preserveAspectRatio="xMidYMid meet">'
    )


def _same(axis: str, place: float) -> str:
    return f'{axis}1="{place:.1f}" {axis}2="{place:.1f}"'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
