"""What a report is made of, for any format: sections of paragraphs, tables, charts and commands.

All text in it is plain: each format escapes what its own syntax needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["", "good", "bad", "muted", "strong"]


@dataclass(frozen=True)
class Text:
    """A cell of a table. `numeric` cells are aligned to the right."""

    text: str
    tone: Tone = ""
    numeric: bool = False


@dataclass(frozen=True)
class Paragraph:
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Bullets:
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table. `folded`: shown on demand where the format can."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Point:
    """`*_range`: the ends of an interval, None where there is none."""

    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    label: str = ""


@dataclass(frozen=True)
class Series:
    """`arm`: 0 for the baseline, 1 and up for candidates; it decides the colour."""

    name: str
    arm: int
    points: tuple[Point, ...]
    joined: bool = True


@dataclass(frozen=True)
class Marker:
    """A line across a chart: at a height (a limit) or at a place (saturation)."""

    label: str
    x: float | None = None
    y: float | None = None
    arm: int | None = None


@dataclass(frozen=True)
class Chart:
    """`x_logarithmic`: for loads that double from one level to the next. `ticks`: numbers on x."""

    title: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    markers: tuple[Marker, ...] = ()
    x_logarithmic: bool = False
    from_zero: bool = True
    note: str = ""
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Bar:
    """One bar of parts: (name, amount)."""

    name: str
    arm: int
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Bars:
    title: str
    unit: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Forest:
    """Effects with their intervals, one line each, around no effect; in percent.

    `rows`: (label, value, low, high, tone). `margin`: half the width of the band of no concern.
    """

    title: str
    x_title: str
    rows: tuple[tuple[str, float, float | None, float | None, Tone], ...]
    margin: float
    note: str = ""


Block = Paragraph | Bullets | Commands | Grid | Chart | Bars | Forest


@dataclass(frozen=True)
class Section:
    """`group`: the record it is about, where a report is of several."""

    title: str
    blocks: tuple[Block, ...]
    group: str = ""


@dataclass(frozen=True)
class Banner:
    """The verdict. `outcome`: of `analysis.Outcome`, or what a tool concluded: passed, failed."""

    outcome: str
    headline: str
    sentence: str
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Report:
    title: str
    subtitle: str
    synthetic: bool
    banners: tuple[Banner, ...]
    sections: tuple[Section, ...] = field(default_factory=tuple)


def section(title: str, blocks: Sequence[Block | None]) -> Section | None:
    """A section without the blocks that have nothing to say; None if none has."""
    kept = tuple(block for block in blocks if block is not None)
    return Section(title, kept) if kept else None
